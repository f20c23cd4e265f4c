"""The work of a fit: which texts are solved, which wait, which seed is next, what is recorded and what is saved."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax.devices.placement import Placement
from onestep_jax.errors import Interrupted, UserError
from onestep_jax.fitting.engine import Engine
from onestep_jax.fitting.group_results import Given, text_results
from onestep_jax.fitting.progress import Progress
from onestep_jax.fitting.slot_ladder import narrower, starting
from onestep_jax.fitting.slots import Problem
from onestep_jax.fitting.snapshot import Saved, pack
from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.fitting.work_blocks import Block, cut, from_its_place
from onestep_jax.model.cost import step_flops
from onestep_jax.model.decoder import Model
from onestep_jax.model.likelihood import TextNats, text_nats
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.store.results import TextResult
from onestep_jax.store.run import Run
from onestep_jax.tokens import buckets, id_words

FLUSH_SECONDS = 10.0
AHEAD = 256  # texts whose nats are counted together with those of one that is needed


class _Bucket(NamedTuple):
    """What the groups of one padded length run with; `flops` are those of a step of one of them."""

    problem: Problem
    params: Any
    placement: Placement
    positions: int
    chunk: int
    flops: float


class Sweep:
    """The `Work` of the engine: seeds of each group in turn, best kept, results recorded in parts."""

    def __init__(
        self,
        tokens: list[np.ndarray],
        ids: list[str],
        scheme: Scheme,
        seed: int,
        seeds: int,
        model: Model,
        progress: Callable[[Progress], None] | None,
        save_every: float,
    ):
        self.tokens, self.ids, self.scheme, self.model = tokens, ids, scheme, model
        self.first_seed, self.seeds, self.progress, self.save_every = seed, seeds, progress, save_every
        self.groups = [tuple(range(i, min(i + scheme.group, len(ids)))) for i in range(0, len(ids), scheme.group)]
        self.waiting: deque[Task] = deque()
        self.trials: dict[tuple[int, ...], list[Outcome]] = {}
        self.results: list[TextResult] = []
        self.unwritten: list[TextResult] = []
        self.run: Run | None = None
        self.done: set[tuple[int, ...]] = set()
        self.saved: Saved | None = None
        self.unclaimed: deque[Block] = deque()
        self.known: dict[str, float] = {}  # accuracies by text_id, of all texts that are finished
        self.known_before = self.solved = 0
        self.apart = False  # whether other processes take texts of the same run
        self.records = True  # whether this process is the one that records
        self.stopping = False
        self.last_save = self.last_flush = self.last_tick = self.started = time.monotonic()
        self.nats: dict[int, TextNats] = {}

    # --- order of work ---

    def optimise(self, problem: Problem, placement: Placement, ladder: list[int], chunk: int) -> None:
        """Run the engine over the padded lengths, longest first, with slots from a ladder.

        Raises:
          Interrupted: if told to stop; the state is saved.
          UserError: if the devices have no memory for even one slot each.
        """
        params = placement.place(self.model.params, self.model.config.kv_heads)
        self.ladder = ladder
        longest = [max(len(self.tokens[i]) for i in group) for group in self.groups]
        padded = buckets(longest, self.model.config.boundary, self.scheme.extra)
        self.apart = self.run is not None and self.run.processes > 1 and not placement.lockstep
        self.records = not placement.lockstep or jax.process_index() == 0
        process, processes, size = 0, 1, len(self.groups)
        if self.run is not None and self.apart:
            process, processes, size = self.run.process, self.run.processes, self.run.session.block
        for positions, blocks in cut(self.groups, padded, size).items():
            self.unclaimed = from_its_place(blocks, process, processes)
            left = sum(group not in self.done for block in blocks for group in block.groups)
            self._claim()
            if self.waiting:
                flops = self.scheme.group * step_flops(self.model.config, positions + self.scheme.extra)
                bucket = _Bucket(problem, params, placement, positions, chunk, flops)
                self._of_one_length(bucket, starting(self.ladder, -(-left // processes)))
        self.flush()
        if self.run is not None and self.records:
            self.run.save_state({}, {})
            self.run.wait()
        self.results.sort(key=lambda text: text.index)

    def _claim(self) -> None:
        """Make the groups of the next block wait that is nobody else's and not yet done."""
        while not self.waiting and self.unclaimed:
            block = self.unclaimed.popleft()
            groups = [group for group in block.groups if group not in self.done]
            if not groups or (self.run is not None and self.apart and not self.run.claim(block.number)):
                continue
            tasks, outcomes = self.saved.of(groups) if self.saved else ([], [])
            for outcome in outcomes:
                self.trials.setdefault(outcome.task.texts, []).append(outcome)
            resumed = {task.texts for task in tasks}
            self.waiting.extend([*tasks, *(self._task(group) for group in groups if group not in resumed)])

    def _of_one_length(self, bucket: _Bucket, width: int) -> None:
        """Run the engine over what waits, on narrower rungs of the ladder at the end and where memory is short."""
        self.bucket, self.spent, self.width = bucket, [], width
        verdict = "narrow"
        while verdict == "narrow":
            sizes = {"positions": bucket.positions, "slots": self.width, "chunk": bucket.chunk}
            engine = Engine(bucket.problem, bucket.params, bucket.placement, **sizes)
            try:
                verdict = engine.run(self)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                engine.abandon(self)
                self._use_less_memory(error)
        if verdict == "stop":
            if self.run is not None:
                self.run.wait()
            where = self.run.folder if self.run else ""
            raise Interrupted(f"stopped; everything is saved in {where}, the same command goes on from there")

    def _use_less_memory(self, error: Exception) -> None:
        """Leave the rungs that do not fit."""
        fitting = [rung for rung in self.ladder if rung < self.width]
        where = f"{self.width} slots of {self.bucket.positions} tokens"
        if not fitting:
            cure = "give --remat on, a smaller --length or --dtype bfloat16"
            raise UserError(f"the device's memory does not hold {where}; {cure}") from error
        warnings.warn(f"the device's memory does not hold {where}; going on with {fitting[0]}", stacklevel=2)
        self.ladder, self.width = fitting, fitting[0]

    def _task(self, group: tuple[int, ...], seed: int | None = None) -> Task:
        """A group from one seed, by default the first not yet tried."""
        seed = self.first_seed + len(self.trials.get(group, [])) if seed is None else seed
        ids = np.zeros((self.scheme.group, 4), np.uint32)
        ids[: len(group)] = [id_words(self.ids[i], seed) for i in group]
        start = None
        if self.scheme.start is not None:
            rows = list(group)
            start = {name: array[rows] for name, array in self.scheme.start.items()}
            start |= {name: start[name][0] for name in self.scheme.shared}
        return Task(group, seed, [self.tokens[i] for i in group], ids, start)

    def _count_nats(self, task: Task) -> None:
        """Nats of each token and H_LM (Eq. 3) of texts about to be fitted, and of some that come next: a forward pass
        each, which for all texts of a large sweep would hold up the first chunk."""
        if all(i in self.nats for i in task.texts):
            return
        soon = itertools.islice(self.waiting, AHEAD // self.scheme.group)
        texts = [i for coming in (task, *soon) for i in coming.texts if i not in self.nats]
        self.nats |= zip(texts, text_nats(self.model, [self.tokens[i] for i in texts]), strict=True)

    def take(self) -> Task | None:
        if not self.waiting:
            self._claim()
        if not self.waiting:
            return None
        task = self.waiting.popleft()
        self._count_nats(task)
        return task

    def give_back(self, task: Task) -> None:
        self.waiting.appendleft(task)

    def finished(self, outcome: Outcome) -> None:
        group = outcome.task.texts
        self.spent.append(outcome.steps)
        self.trials.setdefault(group, []).append(outcome)
        if outcome.status != "solved" and len(self.trials[group]) < self.seeds:
            self.waiting.append(self._task(group))
            return
        given = [Given(i, self.ids[i], self.tokens[i], self.nats.pop(i)) for i in group]
        texts = list(text_results(given, self.trials.pop(group), self.scheme.shared))
        self.done.add(group)
        self._note({text.text_id: text.accuracy for text in texts})
        if self.run is None:
            self.results.extend(texts)
        else:
            self.unwritten.extend(texts)

    # --- survival ---

    def tick(self, running: int, steps: int) -> str:
        now = time.monotonic()
        self._report(running, steps / max(now - self.last_tick, 1e-9))
        self.last_tick = now
        if now - self.last_flush > FLUSH_SECONDS:
            self.flush()
        if self.run is not None and self.stopping:
            return "stop"
        if self._narrows(running):
            return "narrow"
        return "save" if self.run is not None and now - self.last_save > self.save_every else "go"

    def _report(self, running: int, speed: float) -> None:
        """Tell how far the fit is; of a job of several processes, what this one knows of the others."""
        if self.progress is None:
            return
        texts, done = len(self.ids), len(self.known)
        rate = (done - self.known_before) / (time.monotonic() - self.started)
        left = (texts - done) / rate if rate else None
        waiting = max(0, texts - done - running * self.scheme.group)
        self.progress(Progress(texts, self.solved, done, running, waiting, speed, left))

    def show_recorded(self, recorded: Mapping[str, float]) -> None:
        """Take note of, and report, what all processes have recorded: accuracies by text_id."""
        self._note(recorded)
        self._report(0, 0.0)

    def _note(self, finished: Mapping[str, float]) -> None:
        """Count texts that are finished, accuracies by text_id, each once."""
        new = {text_id: accuracy for text_id, accuracy in finished.items() if text_id not in self.known}
        self.known |= new
        self.solved += sum(accuracy == 1 for accuracy in new.values())

    def _narrows(self, running: int) -> bool:
        """Whether to go on with fewer slots, which `width` then says; the rest is guessed to take the mean so far."""
        if self.waiting or self.unclaimed or not running or not self.spent:
            return False
        device = self.bucket.placement.devices[0]
        expected = sum(self.spent) / len(self.spent)
        found = narrower(self.ladder, self.width, running, self.bucket.flops, expected, device.platform)
        self.width = found or self.width
        return found is not None

    def flush(self) -> None:
        """Record the results that are ready."""
        if self.run is not None and self.records:
            self.run.append(self.unwritten)
            if self.apart:
                self._note(self.run.accuracies())
        self.unwritten, self.last_flush = [], time.monotonic()

    def save(self, tasks: list[Task]) -> None:
        """Record what is ready, then the slots in flight and the seeds already tried of unfinished groups."""
        self.flush()
        self.last_save = time.monotonic()
        if self.run is None or not self.records:
            return
        waiting = [task for task in self.waiting if task.saved is not None]
        arrays, record = pack([*tasks, *waiting], [outcome for group in self.trials.values() for outcome in group])
        self.run.save_state(arrays, record)

    def resume(self, run: Run, problem: Problem) -> None:
        """Take over what a run directory holds; a recorded text is never reopened."""
        self.run = run
        self._note(run.accuracies())
        self.known_before = len(self.known)
        self.done = {group for group in self.groups if all(self.ids[i] in self.known for i in group)}
        self.saved = Saved(run.saved_states(), run.load_state_arrays, problem, self._task)

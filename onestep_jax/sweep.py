"""The work of a fit: which texts are solved, which wait, which seed is next, what is recorded and what is saved."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax.config import Interrupted, UserError
from onestep_jax.engine import Engine, Outcome, Task
from onestep_jax.footprint import step_flops
from onestep_jax.inflight import pack, unpack
from onestep_jax.ladder import narrower, starting
from onestep_jax.likelihood import TextNats, text_nats
from onestep_jax.model import Model
from onestep_jax.placement import Pmap
from onestep_jax.results import TextResult, Trial
from onestep_jax.schemes import Scheme
from onestep_jax.slots import Problem
from onestep_jax.store import Run
from onestep_jax.texts import buckets, id_words

FLUSH_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a fit is.

    Attributes:
      texts: in the fit; solved, finished (solved or not), running and waiting ones among them.
      steps_per_second: gradient evaluations of one text, since the last report.
      seconds_left: estimate from the texts finished in this session, or None before the first.
    """

    texts: int
    solved: int
    finished: int
    running: int
    waiting: int
    steps_per_second: float
    seconds_left: float | None


class _Bucket(NamedTuple):
    """What the groups of one padded length run with; `flops` are those of a step of one of them."""

    problem: Problem
    params: Any
    placement: Pmap
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
        self.saved_tasks: list[Task] = []
        self.solved = 0
        self.stopping = False
        self.last_save = self.last_flush = self.last_tick = self.started = time.monotonic()
        self.finished_here = 0
        self.nats: dict[int, TextNats] = {}

    # --- order of work ---

    def optimise(self, problem: Problem, placement: Pmap, ladder: list[int], chunk: int) -> None:
        """Run the engine over the padded lengths, longest first, with slots from a ladder.

        Raises:
          Interrupted: if told to stop; the state is saved.
          UserError: if the devices have no memory for even one slot each.
        """
        params = placement.replicate(self.model.params)
        self.ladder = ladder
        longest = [max(len(self.tokens[i]) for i in group) for group in self.groups]
        padded = buckets(longest, self.model.config.boundary, self.scheme.extra)
        for positions in sorted(set(padded), reverse=True):
            members = [group for group, bucket in zip(self.groups, padded, strict=True) if bucket == positions]
            members = [group for group in members if group not in self.done]
            resumed = {task.texts for task in self.saved_tasks}
            self.waiting.extend(task for task in self.saved_tasks if task.texts in members)
            self.waiting.extend(self._task(group) for group in members if group not in resumed)
            if not self.waiting:
                continue
            self._count_nats([i for group in members for i in group])
            flops = self.scheme.group * step_flops(self.model.config, positions + self.scheme.extra)
            self._of_one_length(_Bucket(problem, params, placement, positions, chunk, flops))
        self.flush()
        if self.run is not None:
            self.run.save_state({}, {})
        self.results.sort(key=lambda text: text.index)

    def _of_one_length(self, bucket: _Bucket) -> None:
        """Run the engine over what waits, on narrower rungs of the ladder at the end and where memory is short."""
        self.bucket, self.spent = bucket, []
        self.width = starting(self.ladder, len(self.waiting))
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
            if self.run:
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

    def _count_nats(self, texts: list[int]) -> None:
        """Nats of each token and H_LM (Eq. 3) of texts that are going to be fitted: one forward pass each."""
        self.nats |= zip(texts, text_nats(self.model, [self.tokens[i] for i in texts]), strict=True)

    def take(self) -> Task | None:
        if not self.waiting:
            return None
        return self.waiting.popleft()

    def give_back(self, task: Task) -> None:
        self.waiting.appendleft(task)

    def finished(self, outcome: Outcome) -> None:
        group = outcome.task.texts
        self.spent.append(outcome.steps)
        self.trials.setdefault(group, []).append(outcome)
        if outcome.status != "solved" and len(self.trials[group]) < self.seeds:
            self.waiting.append(self._task(group))
            return
        texts = list(self._results(group, self.trials.pop(group)))
        self.done.add(group)
        self.finished_here += len(texts)
        self.solved += sum(text.accuracy == 1 for text in texts)
        if self.run is None:
            self.results.extend(texts)
        else:
            self.unwritten.extend(texts)

    def _results(self, group: tuple[int, ...], outcomes: list[Outcome]) -> Iterator[TextResult]:
        best = max(outcomes, key=lambda outcome: (outcome.accuracy_G[: len(group)].mean(), -outcome.loss))
        for g, i in enumerate(group):
            count = len(self.tokens[i])
            trials = []
            for outcome in outcomes:
                correct = round(float(outcome.accuracy_G[g]) * count)
                numbers = (correct / count, outcome.loss, outcome.steps, outcome.best_step)
                trace = np.asarray(outcome.task.trace, float).reshape(-1, 3)
                found = (trace, outcome.first_hit_GT[g, :count], self._path(outcome.task, g))
                trials.append(Trial(outcome.task.seed, outcome.status, *numbers, *found))
            vectors = {name: leaf if name in self.scheme.shared else leaf[g] for name, leaf in best.leaves.items()}
            nats = self.nats[i].nats
            correct = round(float(best.accuracy_G[g]) * count)
            yield TextResult(
                index=i,
                text_id=self.ids[i],
                tokens=self.tokens[i],
                vectors=vectors,
                predicted=best.predicted_GT[g, :count],
                nats=np.concatenate([np.full(count - len(nats), np.nan, np.float32), nats]),
                accuracy=correct / count,
                c_tokens=correct,
                loss=best.loss,
                steps=sum(outcome.steps for outcome in outcomes),
                best_step=best.best_step,
                seconds=sum(outcome.task.seconds for outcome in outcomes),
                seed=best.task.seed,
                status=best.status,
                h_lm=self.nats[i].total,
                trials=tuple(trials),
            )

    def _path(self, task: Task, g: int) -> dict[str, np.ndarray] | None:
        """The recorded vectors of one text of a group, leaf → (points, *shape)."""
        if not task.path:
            return None
        stacked = {name: np.stack([point[name] for point in task.path]) for name in task.path[0]}
        return {name: leaf if name in self.scheme.shared else leaf[:, g] for name, leaf in stacked.items()}

    # --- survival ---

    def tick(self, running: int, steps: int) -> str:
        now = time.monotonic()
        if self.progress is not None:
            done = sum(len(group) for group in self.done)
            rate = self.finished_here / (now - self.started)
            left = (len(self.ids) - done) / rate if self.finished_here else None
            waiting = max(0, len(self.ids) - done - running * self.scheme.group)
            speed = steps / max(now - self.last_tick, 1e-9)
            self.progress(Progress(len(self.ids), self.solved, done, running, waiting, speed, left))
        self.last_tick = now
        if now - self.last_flush > FLUSH_SECONDS:
            self.flush()
        if self.run is not None and self.stopping:
            return "stop"
        if self._narrows(running):
            return "narrow"
        return "save" if self.run is not None and now - self.last_save > self.save_every else "go"

    def _narrows(self, running: int) -> bool:
        """Whether to go on with fewer slots, which `width` then says; the rest is guessed to take the mean so far."""
        if self.waiting or not running or not self.spent:
            return False
        device = self.bucket.placement.devices[0]
        expected = sum(self.spent) / len(self.spent)
        found = narrower(self.ladder, self.width, running, self.bucket.flops, expected, device.platform)
        self.width = found or self.width
        return found is not None

    def flush(self) -> None:
        """Record the results that are ready."""
        if self.run is not None:
            self.run.append(self.unwritten)
        self.unwritten, self.last_flush = [], time.monotonic()

    def save(self, tasks: list[Task]) -> None:
        """Record what is ready, then the slots in flight and the seeds already tried of unfinished groups."""
        self.flush()
        assert self.run is not None
        waiting = [task for task in self.waiting if task.saved is not None]
        arrays, record = pack([*tasks, *waiting], [outcome for group in self.trials.values() for outcome in group])
        self.run.save_state(arrays, record)
        self.last_save = time.monotonic()

    def resume(self, run: Run, problem: Problem) -> None:
        """Take over what a run directory holds; a recorded text is never reopened."""
        self.run = run
        recorded = run.recorded()
        self.done = {group for group in self.groups if all(self.ids[i] in recorded for i in group)}
        self.solved = sum(row["accuracy"] == 1 for row in recorded.values())
        tasks: dict[tuple[tuple[int, ...], int], Task] = {}
        outcomes: dict[tuple[tuple[int, ...], int], Outcome] = {}
        for name, record in run.saved_states():
            found, ended = unpack(run.load_state_arrays(name), record, problem, self._task)
            outcomes |= {_key(outcome.task): outcome for outcome in ended if outcome.task.texts not in self.done}
            for task in found:
                if task.texts not in self.done and _steps(task) > _steps(tasks.get(_key(task))):
                    tasks[_key(task)] = task
        for outcome in outcomes.values():
            self.trials.setdefault(outcome.task.texts, []).append(outcome)
        self.saved_tasks = [task for key, task in tasks.items() if key not in outcomes]


def _key(task: Task) -> tuple[tuple[int, ...], int]:
    return task.texts, task.seed


def _steps(task: Task | None) -> int:
    """Gradient evaluations made, −1 of no task."""
    return -1 if task is None else task.trace[-1][0] if task.trace else 0

"""`fit`: proto-tokens for many texts, in memory or into a run directory that survives being killed."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from onestep_jax.config import Interrupted, UserError, check_known
from onestep_jax.fit import Engine, Outcome, Task
from onestep_jax.inflight import pack, unpack
from onestep_jax.model import Model, input_scale
from onestep_jax.optimizers import PRESETS, Optimizer
from onestep_jax.placement import Pmap
from onestep_jax.results import Results, TextResult, Trial
from onestep_jax.schemes import OneStep, Scheme
from onestep_jax.slots import Problem
from onestep_jax.store import Run, open_run, read_results
from onestep_jax.texts import buckets, check_tokens, id_words, text_ids, tokenise

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


def fit(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    length: int | None = None,
    run: str | Path | None = None,
    preset: str = "fast",
    optimizer: optax.GradientTransformation | Optimizer | None = None,
    optimizer_name: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    slots: int | str = "auto",
    scheme: Scheme | None = None,
    chunk: int = 10,
    save_every: float = 60.0,
    placement: Pmap | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Find proto-tokens with which the frozen model emits each text in one forward pass.

    Args:
      model: see `load_model`.
      texts: strings, or lists of token ids.
      length: tokens of each text to keep (its first ones), at most the model's context; None for all.
      run: run directory to record in; a run that is there already is gone on with.
      preset: "fast" or "paper", see `optimizers.PRESETS`; gives what the next two leave open.
      optimizer: any optax optimiser, or `Optimizer` for one by name.
      optimizer_name: what a run directory shall call an optimiser given as an object.
      steps: budget of a text and seed, in gradient evaluations.
      seed: number of the first seed.
      seeds: how many seeds a text may use, one after the other until it is solved; the best is kept.
      slots: texts optimised at a time over all devices, or "auto".
      scheme: the arrangement, `OneStep()` by default.
      chunk: steps between looks of the host.
      save_every: seconds between saves of the slots in flight.
      placement: the devices, all local ones by default.
      progress: called after each chunk.

    Returns:
      One result a text, in source order.

    Raises:
      UserError: for input that cannot be fitted, or a run directory of another run.
      Interrupted: on SIGTERM or SIGINT with a run directory, after saving.
    """
    scheme = scheme or OneStep()
    tokens = prepare(model, texts, length)
    check_known("preset", [preset], PRESETS)
    chosen = PRESETS[preset]
    transformation, described = _optimizer(optimizer or chosen.optimizer, optimizer_name, needs_name=run is not None)
    for name, value in (("steps", steps), ("seeds", seeds), ("chunk", chunk), ("length", length)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value}: expected at least 1")
    if seed < 0:
        raise UserError(f"seed = {seed}: expected at least 0")
    steps = steps or chosen.steps
    placement = placement or Pmap()
    ids = text_ids(tokens)
    identity = {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "texts": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
        "length": length,
        "scheme": scheme.describe() | ({"start": _digest(scheme.start)} if scheme.start else {}),
        "start": chosen.start,
        "optimizer": described,
        "steps": steps,
        "seed": seed,
        "seeds": seeds,
    }
    count = _slot_count(slots, model, tokens, scheme)
    settings = {"model": model.source, "preset": preset, "slots": count, "chunk": chunk, "save_every": save_every}
    settings |= {"devices": len(placement.devices), "device": placement.devices[0].device_kind, **_versions()}
    sweep = Sweep(tokens, ids, scheme, seed, seeds, model, progress, save_every)
    scale = 1.0 if chosen.start == "normal" else input_scale(model)
    problem = Problem(model, scheme, transformation, scale, steps)
    if run is None:
        sweep.optimise(problem, placement, count, chunk)
        return Results(tuple(sweep.results), scheme.describe(), model.fingerprint, model.source)
    folder = Path(run)
    with open_run(folder, identity, settings, list(zip(ids, tokens, strict=True))) as opened, _catch_signals(sweep):
        sweep.resume(opened, problem)
        sweep.optimise(problem, placement, count, chunk)
    return read_results(folder)


def prepare(model: Model, texts: Sequence[str] | Sequence[Sequence[int]], length: int | None) -> list[np.ndarray]:
    """Token ids of texts given as strings or ids, cut to `length` and checked against the model."""
    context = model.config.context
    if length is not None and length > context:
        raise UserError(f"length {length} is beyond the model's context of {context} positions")
    if len(texts) == 0:
        raise UserError("no texts: expected at least one")
    if isinstance(texts[0], str):
        if model.tokenizer is None:
            raise UserError(f"model {model.source!r} has no tokenizer: give lists of token ids instead of strings")
        tokens = tokenise(model.tokenizer, [str(text) for text in texts], length)
    else:
        tokens = [np.asarray(ids, np.int32)[:length] for ids in texts]
    return check_tokens(tokens, model.config.vocab_size, context)


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
        self.begun: set[tuple[int, ...]] = set()
        self.solved = 0
        self.stopping = False
        self.last_save = self.last_flush = self.last_tick = self.started = time.monotonic()
        self.finished_here = 0

    # --- order of work ---

    def optimise(self, problem: Problem, placement: Pmap, slots: int, chunk: int) -> None:
        """Run the engine over the padded lengths, longest first.

        Raises:
          Interrupted: if told to stop; the state is saved.
        """
        params = placement.replicate(self.model.params)
        longest = [max(len(self.tokens[i]) for i in group) for group in self.groups]
        padded = buckets(longest)
        for positions in sorted(set(padded), reverse=True):
            members = [group for group, bucket in zip(self.groups, padded, strict=True) if bucket == positions]
            members = [group for group in members if group not in self.done]
            resumed = {task.texts for task in self.saved_tasks}
            self.waiting.extend(task for task in self.saved_tasks if task.texts in members)
            self.waiting.extend(self._task(group) for group in members if group not in resumed)
            if not self.waiting:
                continue
            width = min(slots, len(self.waiting))
            engine = Engine(problem, params, placement, positions=positions, slots=width, chunk=chunk)
            if not engine.run(self):
                where = self.run.folder if self.run else ""
                raise Interrupted(f"stopped; everything is saved in {where}, the same command goes on from there")
        self.flush()
        if self.run is not None:
            self.run.save_state({}, [])
        self.results.sort(key=lambda text: text.index)

    saved_tasks: Sequence[Task] = ()

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

    def take(self) -> Task | None:
        if not self.waiting:
            return None
        task = self.waiting.popleft()
        self.begun.add(task.texts)
        return task

    def give_back(self, task: Task) -> None:
        self.waiting.appendleft(task)

    def finished(self, outcome: Outcome) -> None:
        group = outcome.task.texts
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
                trials.append(
                    Trial(outcome.task.seed, outcome.status, *numbers, trace, outcome.first_hit_GT[g, :count])
                )
            vectors = {name: leaf if name in self.scheme.shared else leaf[g] for name, leaf in best.leaves.items()}
            correct = round(float(best.accuracy_G[g]) * count)
            yield TextResult(
                index=i,
                text_id=self.ids[i],
                tokens=self.tokens[i],
                vectors=vectors,
                accuracy=correct / count,
                c_tokens=correct,
                loss=best.loss,
                steps=sum(outcome.steps for outcome in outcomes),
                best_step=best.best_step,
                seconds=sum(outcome.task.seconds for outcome in outcomes),
                seed=best.task.seed,
                status=best.status,
                trials=tuple(trials),
            )

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
        if self.run is None:
            return "go"
        if self.stopping:
            return "stop"
        return "save" if now - self.last_save > self.save_every else "go"

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
        self.solved = sum(text.accuracy == 1 for text in read_results(run.folder)) if recorded else 0
        state = run.load_state()
        if state is not None:
            tasks, outcomes = unpack(*state, problem, self._task)
            self.saved_tasks = [task for task in tasks if task.texts not in self.done]
            for outcome in outcomes:
                if outcome.task.texts not in self.done:
                    self.trials.setdefault(outcome.task.texts, []).append(outcome)


def _optimizer(
    given: optax.GradientTransformation | Optimizer, name: str | None, *, needs_name: bool
) -> tuple[optax.GradientTransformation, dict[str, Any]]:
    """The transformation and its description for the identity of a run."""
    if isinstance(given, Optimizer):
        return given.build(), given.describe()
    if needs_name and not name:
        raise UserError("an optimizer given as an object needs optimizer_name=…, by which a resumed run knows it")
    return given, {"name": name, "object": True}


def _slot_count(slots: int | str, model: Model, tokens: Sequence[np.ndarray], scheme: Scheme) -> int:
    """Texts at a time: as given, or enough to fill a device without running out of its memory."""
    if isinstance(slots, int):
        if slots < 1:
            raise UserError(f"slots = {slots}: expected at least 1, or 'auto'")
        return slots
    if slots != "auto":
        raise UserError(f"slots = {slots!r}: expected a number or 'auto'")
    config, positions = model.config, max(len(ids) for ids in tokens) * scheme.group
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return max(4, min(32, 1024 // positions)) * jax.local_device_count()
    activations = 12 * config.width + 4 * config.ffn + 2 * config.heads * positions
    text_bytes = 4 * positions * config.layers * activations
    free = 0.8 * (device.memory_stats() or {}).get("bytes_limit", 2**34)
    free -= sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    fitting = int(free // text_bytes)
    return max(1, min(fitting, 2**17 // positions)) * jax.local_device_count()


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name], np.float32).tobytes())
    return digest.hexdigest()[:16]


def _versions() -> dict[str, Any]:
    """Versions of what decides the numbers, and the commit of a checkout."""
    names = ("onestep_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {"versions": versions, "commit": None}
    return {"versions": versions, "commit": commit.stdout.strip()}


@contextmanager
def _catch_signals(sweep: Sweep) -> Iterator[None]:
    """SIGTERM and SIGINT ask the sweep to save and stop; a second one acts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _frame: Any) -> None:
        sweep.stopping = True
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

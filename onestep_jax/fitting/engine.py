"""The fit engine: a host loop that keeps the slots of all devices full.

Chunk k + 1 is dispatched before the host looks at chunk k, and the harvest of finished slots is read only after the
next chunk is under way, so that the devices never wait for the host. No shape changes inside a run, so nothing
recompiles. The engine knows tasks and outcomes; where they come from and go to is the business of a `Work`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.devices.placement import Placement
from onestep_jax.fitting import slots as device
from onestep_jax.fitting.slots import RUNNING, STATUS, Harvest, Info, Offer, Problem, Slot
from onestep_jax.fitting.tasks import VERDICTS, Outcome, Task, Work

HARVESTS = 8  # how many it takes to harvest all slots at once; few finish in a chunk


class Pending(NamedTuple):
    """A harvest and refill under way on the devices.

    Attributes:
      harvested: harvests on the devices, each with slot → its place in it, (row, index).
      offers: slot → task offered to it.
      taken: (row, slot) bool array on the devices, whether an offer was taken.
    """

    harvested: list[tuple[Harvest, dict[int, tuple[int, int]]]]
    offers: dict[int, Task]
    taken: jax.Array | None


class Engine:
    """Optimises groups whose texts are padded to `positions` tokens, `slots` of them at a time.

    Args:
      problem: model functions, scheme, optimiser, budget.
      params: the frozen weights, where `placement` puts them.
      placement: the devices.
      positions: T.
      slots: groups at a time, rounded up to a multiple of the placement's rows.
      chunk: steps between looks of the host.
    """

    def __init__(self, problem: Problem, params: Any, placement: Placement, *, positions: int, slots: int, chunk: int):
        self.problem, self.params, self.placement = problem, params, placement
        self.positions, self.group = positions, problem.scheme.group
        self.per_row = -(-slots // placement.rows)
        self.lead = (placement.rows, self.per_row)
        self.count = placement.rows * self.per_row
        self.at_a_time = -(-self.per_row // HARVESTS)
        self._chunk = placement.map(device.chunk, problem, chunk, donate=1)
        self._harvest = placement.map(device.harvest, problem, donate=1)
        self._refill = placement.map(device.refill, problem, donate=1)
        self._restore = placement.map(_restore, donate=1)

    def run(self, work: Work) -> str:
        """Optimise until `work` has no task left ("done") or says "stop" or "narrow"; returns which."""
        self.tasks: list[Task | None] = [None] * self.count
        self.offered: dict[int, Task] = {}
        idle, nobody = self.placement.spread((self._idle(), self._nobody()))
        state, _ = self._harvest(self.params, idle, nobody)  # compiled before time is counted
        state, pending = self._turn(state, {}, work)
        previous: Info | None = None
        looked = 0.0
        while pending or any(self.tasks):
            state, info = self._chunk(self.params, state)
            looked = looked or time.perf_counter()  # the first call returns when the chunk is compiled
            changed, pending = self._settle(pending, work), None
            if previous is not None:
                finished, steps = self._look(previous, changed, looked)
                looked = time.perf_counter()
                state, pending = self._turn(state, finished, work)
                verdict = work.tick(sum(task is not None for task in self.tasks), steps)
                verdict = VERDICTS[self.placement.agree(VERDICTS.index(verdict))]
                if verdict != "go":
                    changed, pending = self._settle(pending, work), None
                    self._look(info, changed, looked)
                    looked, info = time.perf_counter(), None
                    if not self._hand_over(verdict, state, work):
                        return verdict
            previous = info
        return "done"

    def abandon(self, work: Work) -> None:
        """Give all tasks back after an error of the devices, on which what they had reached is lost."""
        begun = [dataclasses.replace(task, trace=[], path=[]) for task in self.tasks if task is not None]
        for task in reversed([*begun, *self.offered.values()]):
            work.give_back(task)

    def _hand_over(self, verdict: str, state: Slot, work: Work) -> bool:
        """Give the groups in flight to be saved, or back; whether to go on."""
        tasks = self._in_flight(state)
        if verdict == "narrow":
            for task in reversed(tasks):
                work.give_back(task)
            return False
        work.save(tasks)
        return verdict != "stop"

    def _look(self, info: Info, changed: set[int], since: float) -> tuple[dict[int, Task], int]:
        """Read a chunk's numbers: extend the traces, share out the time; finished slots and steps made."""
        host = jax.tree.map(lambda field: field.reshape(self.count, *field.shape[2:]), self.placement.fetch(info))
        seen = {slot: task for slot, task in enumerate(self.tasks) if task is not None and slot not in changed}
        share = (time.perf_counter() - since) / max(1, len(seen))
        finished, steps = {}, 0
        for slot, task in seen.items():
            task.seconds += share
            before = task.trace[-1][0] if task.trace else 0
            if host.steps[slot] > before:
                steps += int(host.steps[slot]) - before
                task.trace.append((int(host.steps[slot]), float(host.loss[slot]), float(host.accuracy[slot])))
                if host.leaves:
                    task.path.append({name: leaf[slot].copy() for name, leaf in host.leaves.items()})
            if host.status[slot] != RUNNING:
                finished[slot] = task
        return finished, steps

    def _turn(self, state: Slot, finished: dict[int, Task], work: Work) -> tuple[Slot, Pending | None]:
        """Dispatch the harvest of finished slots and offer them, and the empty ones, new tasks."""
        harvested: list[tuple[Harvest, dict[int, tuple[int, int]]]] = []
        for which, places in self._by_turns(finished):
            state, harvest = self._harvest(self.params, state, self.placement.spread(which))
            harvested.append((harvest, places))
        fresh: dict[int, Task] = {}
        saved: dict[int, Task] = {}
        for slot in [slot for slot, task in enumerate(self.tasks) if task is None or slot in finished]:
            task = work.take()
            if task is None:
                break
            (fresh if task.saved is None else saved)[slot] = task
        self.offered = offers = fresh | saved
        taken = None
        if fresh:
            state, taken = self._refill(self.params, state, self._offer(fresh))
        if saved:
            state, taken_saved = self._restore(self.params, state, *self._rows(saved))
            taken = taken_saved if taken is None else taken | taken_saved
        return state, Pending(harvested, offers, taken) if harvested or offers else None

    def _settle(self, pending: Pending | None, work: Work) -> set[int]:
        """Read a harvest: hand out the outcomes, note which tasks now hold which slots; which slots it was about.

        The numbers of a chunk that was dispatched before the harvest are, in these slots, of the groups before it.
        """
        if pending is None:
            return set()
        changed = set(pending.offers)
        for harvests, places in pending.harvested:
            host = self.placement.fetch(harvests)
            changed |= set(places)
            for slot, place in places.items():
                harvest = jax.tree.map(lambda array, place=place: np.array(array[place]), host)
                if harvest.slot.status != RUNNING:
                    self._finish(slot, harvest, work)
        taken = None if pending.taken is None else np.asarray(self.placement.fetch(pending.taken)).reshape(self.count)
        for slot, task in pending.offers.items():
            assert taken is not None
            if taken[slot]:
                assert self.tasks[slot] is None
                task.saved = None
                self.tasks[slot] = task
            else:
                work.give_back(task)
        self.offered = {}
        return changed

    def _finish(self, slot: int, harvest: Any, work: Work) -> None:
        """Hand out what became of the task of a slot, which is free then; the harvest is its own, on the host."""
        task, row = self.tasks[slot], harvest.slot
        assert task is not None
        self.tasks[slot] = None
        leaves = {name: leaf.astype(np.float32) for name, leaf in row.best.items()}
        status, numbers = STATUS[int(row.status)], (int(row.steps), int(row.best_step), float(row.best_loss))
        decoded = (harvest.accuracy_G, harvest.predicted_GT)
        work.finished(Outcome(task, status, *numbers, *decoded, leaves, row.first_hit_GT))

    def _in_flight(self, state: Slot) -> list[Task]:
        host: Slot = self.placement.fetch(state)
        tasks = []
        for slot, task in enumerate(self.tasks):
            if task is not None:
                place = divmod(slot, self.per_row)
                row = jax.tree.map(lambda array, place=place: np.asarray(array[place]), host)
                tasks.append(dataclasses.replace(task, saved=row, trace=list(task.trace), path=list(task.path)))
        return tasks

    # --- host arrays of the right shapes ---

    def _idle(self) -> Slot:
        return device.idle(self.problem, self.positions, self.lead)

    def _nobody(self) -> np.ndarray:
        return np.full((self.lead[0], self.at_a_time), self.per_row, np.int32)

    def _by_turns(self, finished: Iterable[int]) -> Iterator[tuple[np.ndarray, dict[int, tuple[int, int]]]]:
        """Which slots of each row to harvest together, and slot → its place in that harvest."""
        of_rows: dict[int, list[int]] = {}
        for slot in finished:
            of_rows.setdefault(slot // self.per_row, []).append(slot)
        while any(of_rows.values()):
            which, places = self._nobody(), {}
            for row, waiting in of_rows.items():
                for index, slot in enumerate(waiting[: self.at_a_time]):
                    which[row, index], places[slot] = slot % self.per_row, (row, index)
                del waiting[: self.at_a_time]
            yield which, places

    def _offer(self, tasks: dict[int, Task]) -> Offer:
        offered = np.zeros(self.lead, bool)
        tokens = np.zeros((*self.lead, self.group, self.positions), np.int32)
        lengths = np.zeros((*self.lead, self.group), np.int32)
        ids = np.zeros((*self.lead, self.group, 4), np.uint32)
        start: dict[str, np.ndarray] | None = None
        for slot, task in tasks.items():
            place = divmod(slot, self.per_row)
            offered[place] = True
            for g, text in enumerate(task.tokens):
                tokens[place][g, : len(text)], lengths[place][g] = text, len(text)
            ids[place][: len(task.ids)] = task.ids
            for name, vectors in (task.start or {}).items():
                start = start or {}
                leaf = start.setdefault(name, np.zeros((*self.lead, *self._leaf_shape(name)), np.float32))
                leaf[place][: len(vectors)] = vectors
        return self.placement.spread(Offer(offered, tokens, lengths, ids, start))

    def _leaf_shape(self, name: str) -> tuple[int, ...]:
        shape = self.problem.scheme.leaf_shapes(self.problem.network.embed_width)[name]
        return shape if name in self.problem.scheme.shared else (self.group, *shape)

    def _rows(self, tasks: dict[int, Task]) -> tuple[Any, Slot]:
        """Mask and slots of tasks that go on from saved state."""
        offered, rows = np.zeros(self.lead, bool), self._idle()
        for slot, task in tasks.items():
            place = divmod(slot, self.per_row)
            offered[place] = True
            jax.tree.map(lambda array, value, place=place: array.__setitem__(place, value), rows, task.saved)
        return self.placement.spread(offered), self.placement.spread(rows)


def _restore(_params: Any, slots: Slot, offered: jax.Array, rows: Slot) -> tuple[Slot, jax.Array]:
    def one(slot: Slot, offered: jax.Array, row: Slot) -> tuple[Slot, jax.Array]:
        taken = offered & (slot.status != RUNNING)
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), row, slot), taken

    return jax.vmap(one)(slots, offered, rows)

"""The fit engine: a host loop that keeps the slots of all devices full.

A *chunk* is some steps of all slots. An *exchange* harvests the slots that a chunk has finished and refills them with
new groups; exchange k follows from the numbers of chunk k. Both are dispatched without waiting for them, so the devices
have the next chunk in their queue before the host looks at the last one:

    devices   … chunk 2 │ exchange 1 │ chunk 3 │ exchange 2 │ chunk 4 │ exchange 3 │ …

    host      dispatch chunk 3        the devices are at chunk 2 or exchange 1
              read exchange 1         waits for it; from here on chunk 3 runs
              read chunk 2            ready, since it ran before exchange 1
              dispatch exchange 2     of what chunk 2 finished; it runs after chunk 3
              ask the work            go on, save, narrow or stop
              dispatch chunk 4 …

`Engine.run` calls the chunk that it has just dispatched chunk k; above, k is 3. Exchange 1 runs after chunk 2: where it
put a new group into a slot, the numbers of chunk 2 are of the group before, and are skipped. No shape changes inside a
run, so nothing recompiles. The engine knows tasks and outcomes; where they come from and go to is the business of a
`Work`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from onestep_jax.devices.placement import Placement
from onestep_jax.fitting import programs, slots
from onestep_jax.fitting.slots import RUNNING, FitProblem, Frozen, Harvest, Info, Offer, Slot
from onestep_jax.fitting.tasks import VERDICTS, Task, Work, outcome_of
from onestep_jax.prototokens.prefixes import Prefixes, stack_prefixes
from onestep_jax.prototokens.schemes import group_shapes

HARVESTS = 8  # harvests that take all slots; one takes an eighth of them, since few finish in a chunk

Places: TypeAlias = dict[int, tuple[int, int]]
"""Slot → its place in a harvest, (row, index)."""


class Exchange(NamedTuple):
    """A harvest and a refill that are dispatched and not yet read.

    Attributes:
      harvests: arrays on the devices, and which slots are in them.
      offers: slot → the task offered to it.
      taken: (row, slot) bool array on the devices, whether a slot took its offer; None without offers.
    """

    harvests: list[tuple[Harvest, Places]]
    offers: dict[int, Task]
    taken: jax.Array | None


class Engine:
    """Optimises groups whose texts are padded to `positions` tokens, `slots` of them at a time.

    Args:
      problem: model functions, scheme, optimiser, budget.
      frozen: the weights and the common prefix, where `placement` puts them.
      placement: the devices.
      positions: T.
      prefix_rows: P, to which the prefixes of the texts are padded; 0 where they have none of their own.
      context: name → shape of a text's row, of what the losses beside Eq. 1 know.
      slots: groups at a time, rounded up to a multiple of the placement's rows.
      chunk: steps between looks of the host.
    """

    def __init__(
        self,
        problem: FitProblem,
        frozen: Frozen,
        placement: Placement,
        *,
        positions: int,
        prefix_rows: int = 0,
        context: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
        slots: int,
        chunk: int,
    ):
        self.problem, self.frozen, self.placement = problem, frozen, placement
        self.positions, self.group = positions, problem.scheme.group
        self.prefix_rows, self.context = prefix_rows, context
        self.per_row = -(-slots // placement.rows)
        self.lead = (placement.rows, self.per_row)
        self.count = placement.rows * self.per_row
        self.harvest_width = -(-self.per_row // HARVESTS)
        self._chunk = placement.map(programs.chunk, problem, chunk, donate=1)
        self._harvest = placement.map(programs.harvest, problem, donate=1)
        self._refill = placement.map(programs.refill, problem, donate=1)
        self._restore = placement.map(programs.restore, problem, donate=1)

    def run(self, work: Work) -> str:
        """Optimise until `work` has no task left ("done") or says "stop" or "narrow"; returns which."""
        self.tasks: list[Task | None] = [None] * self.count
        self.offered: dict[int, Task] = {}
        self.read_at = 0.0
        state, no_slots = self.placement.spread((self._idle(), self._no_slots()))
        state, _ = self._harvest(self.frozen, state, no_slots)  # compiled before time is counted
        state, exchange = self._dispatch_exchange(state, {}, work)
        previous: Info | None = None
        while exchange or any(self.tasks):
            state, latest = self._chunk(self.frozen, state)  # chunk k
            self.read_at = self.read_at or time.perf_counter()  # the first call returns when the chunk is compiled
            changed = self._read_exchange(exchange, work)  # exchange k - 2
            exchange = None
            if previous is not None:
                finished, steps = self._read_chunk(previous, changed)  # chunk k - 1
                state, exchange = self._dispatch_exchange(state, finished, work)  # exchange k - 1
                verdict = work.tick(sum(task is not None for task in self.tasks), steps)
                verdict = VERDICTS[self.placement.greatest(VERDICTS.index(verdict))]
                if verdict != "go":
                    # Read what is dispatched, exchange k - 1 and chunk k, so that tasks and state agree.
                    self._read_chunk(latest, self._read_exchange(exchange, work))
                    exchange = latest = None
                    if not self._hand_over(verdict, state, work):
                        return verdict
            previous = latest
        return "done"

    def abandon(self, work: Work) -> None:
        """Give all tasks back after an error of the devices, on which what they had reached is lost."""
        begun = [dataclasses.replace(task, trace=[], path=[]) for task in self.tasks if task is not None]
        for task in reversed([*begun, *self.offered.values()]):
            work.give_back(task)

    def _hand_over(self, verdict: str, state: Slot, work: Work) -> bool:
        """Save the groups in flight, or give them back; returns whether to go on."""
        tasks = self._in_flight(state)
        if verdict == "narrow":
            for task in reversed(tasks):
                work.give_back(task)
            return False
        work.save(tasks)
        return verdict != "stop"

    def _dispatch_exchange(self, state: Slot, finished: dict[int, Task], work: Work) -> tuple[Slot, Exchange | None]:
        """Harvest the finished slots, and offer new tasks to them and to the empty ones; waits for nothing."""
        harvests: list[tuple[Harvest, Places]] = []
        for which, places in self._harvest_batches(finished):
            state, harvest = self._harvest(self.frozen, state, self.placement.spread(which))
            harvests.append((harvest, places))
        for slot in [slot for slot, task in enumerate(self.tasks) if task is None or slot in finished]:
            task = work.take()
            if task is None:
                break
            self.offered[slot] = task  # at once, so that `abandon` knows it if the next one fails
        fresh = {slot: task for slot, task in self.offered.items() if task.saved is None}
        saved = {slot: task for slot, task in self.offered.items() if task.saved is not None}
        state, taken = self._refill(self.frozen, state, self._offer(fresh)) if fresh else (state, None)
        if saved:
            state, taken_saved = self._restore(self.frozen, state, *self._saved_rows(saved))
            taken = taken_saved if taken is None else taken | taken_saved
        if not harvests and not self.offered:
            return state, None
        return state, Exchange(harvests=harvests, offers=self.offered, taken=taken)

    def _read_exchange(self, exchange: Exchange | None, work: Work) -> set[int]:
        """Hand out the outcomes, and note which tasks now hold which slots; returns the slots it was about."""
        if exchange is None:
            return set()
        changed = set(exchange.offers)
        for harvests, places in exchange.harvests:
            host = self.placement.fetch(harvests)
            changed |= set(places)
            for slot, place in places.items():
                harvest = jax.tree.map(lambda array, place=place: np.array(array[place]), host)
                if harvest.slot.status != RUNNING:  # else the decode program refuted the solution
                    self._finish(slot, harvest, work)
        taken = None if exchange.taken is None else np.asarray(self.placement.fetch(exchange.taken)).reshape(self.count)
        for slot, task in exchange.offers.items():
            assert taken is not None
            if taken[slot]:
                assert self.tasks[slot] is None
                task.saved = None
                self.tasks[slot] = task
            else:
                work.give_back(task)
        self.offered = {}
        return changed

    def _read_chunk(self, info: Info, changed: set[int]) -> tuple[dict[int, Task], int]:
        """Read a chunk's numbers: extend the traces, share out the time; returns finished slots and steps made.

        Args:
          info: of the chunk, on the devices.
          changed: slots that hold another task now than in this chunk.
        """
        host = jax.tree.map(lambda field: field.reshape(self.count, *field.shape[2:]), self.placement.fetch(info))
        seen = {slot: task for slot, task in enumerate(self.tasks) if task is not None and slot not in changed}
        share = (time.perf_counter() - self.read_at) / max(1, len(seen))
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
        self.read_at = time.perf_counter()
        return finished, steps

    def _finish(self, slot: int, harvest: Harvest, work: Work) -> None:
        """Free a slot and hand out what became of its task; the harvest is of this slot alone, on the host."""
        task = self.tasks[slot]
        assert task is not None
        self.tasks[slot] = None
        work.finished(outcome_of(task, harvest))

    def _in_flight(self, state: Slot) -> list[Task]:
        """Copies of the tasks that hold a slot, with `saved` set."""
        host: Slot = self.placement.fetch(state._replace(budget=None, past=None, context={}))
        tasks = []
        for slot, task in enumerate(self.tasks):
            if task is not None:
                place = divmod(slot, self.per_row)
                row = jax.tree.map(lambda array, place=place: np.asarray(array[place]), host)
                tasks.append(dataclasses.replace(task, saved=row, trace=list(task.trace), path=list(task.path)))
        return tasks

    # --- host arrays of the right shapes ---

    def _idle(self) -> Slot:
        past = slots.own_past_shapes(self.problem, self.frozen.params, self.prefix_rows)
        return slots.idle(self.problem, self.positions, self.lead, past, self.context)

    def _no_slots(self) -> np.ndarray:
        """Indices for a harvest of nothing: each is beyond the last slot."""
        return np.full((self.lead[0], self.harvest_width), self.per_row, np.int32)

    def _harvest_batches(self, finished: Iterable[int]) -> Iterator[tuple[np.ndarray, Places]]:
        """Which slots of each row to harvest together, and their places in that harvest."""
        of_rows: dict[int, list[int]] = {}
        for slot in finished:
            of_rows.setdefault(slot // self.per_row, []).append(slot)
        while any(of_rows.values()):
            which, places = self._no_slots(), {}
            for row, waiting in of_rows.items():
                for index, slot in enumerate(waiting[: self.harvest_width]):
                    which[row, index], places[slot] = slot % self.per_row, (row, index)
                del waiting[: self.harvest_width]
            yield which, places

    def _offer(self, tasks: dict[int, Task]) -> Offer:
        """Tasks that begin, by slot, on the devices."""
        offer = Offer(
            offered=np.zeros(self.lead, bool),
            budget=np.zeros(self.lead, np.int32),
            tokens_GT=np.zeros((*self.lead, self.group, self.positions), np.int32),
            lengths_G=np.zeros((*self.lead, self.group), np.int32),
            ids_G4=np.zeros((*self.lead, self.group, 4), np.uint32),
            prefixes=self._prefixes(tasks),
            context=self._context(tasks),
        )
        start: dict[str, np.ndarray] = {}
        shapes = group_shapes(self.problem.scheme, self.problem.network.embed_width)
        for slot, task in tasks.items():
            place = divmod(slot, self.per_row)
            offer.offered[place], offer.budget[place] = True, task.budget
            for g, text in enumerate(task.tokens):
                offer.tokens_GT[place][g, : len(text)], offer.lengths_G[place][g] = text, len(text)
            offer.ids_G4[place][: len(task.ids)] = task.ids
            for name, vectors in (task.start or {}).items():
                leaf = start.setdefault(name, np.zeros((*self.lead, *shapes[name]), np.float32))
                leaf[place][: len(vectors)] = vectors
        return self.placement.spread(offer._replace(start=start or None))

    def _prefixes(self, tasks: dict[int, Task]) -> Prefixes | None:
        """The prefixes of tasks, by slot; None where they have none of their own."""
        none = [np.zeros(0, np.int32)] * self.group
        given = {slot: [*task.prefixes, *none][: self.group] for slot, task in tasks.items()}
        stacked = stack_prefixes([one for i in range(self.count) for one in given.get(i, none)], self.prefix_rows)
        return jax.tree.map(lambda array: array.reshape(*self.lead, self.group, *array.shape[1:]), stacked)

    def _context(self, tasks: dict[int, Task]) -> dict[str, np.ndarray]:
        """What the losses know of the texts of tasks, by slot."""
        rows = slots.empty_context(self.problem, self.lead, self.context)
        for slot, task in tasks.items():
            for name, given in task.context.items():
                rows[name][divmod(slot, self.per_row)][: len(given)] = given
        return rows

    def _saved_rows(self, tasks: dict[int, Task]) -> tuple[Any, Slot, Prefixes | None, Any]:
        """Mask, slots, prefixes and context of tasks that resume from saved state, on the devices."""
        offered, rows = np.zeros(self.lead, bool), self._idle()._replace(past=None, context={})
        of_saved = rows._replace(budget=None)  # the same arrays
        for slot, task in tasks.items():
            place = divmod(slot, self.per_row)
            offered[place], rows.budget[place] = True, task.budget
            jax.tree.map(lambda array, value, place=place: array.__setitem__(place, value), of_saved, task.saved)
        return self.placement.spread((offered, rows, self._prefixes(tasks), self._context(tasks)))

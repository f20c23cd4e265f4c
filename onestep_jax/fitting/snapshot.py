"""Work in flight as flat arrays and a JSON record, so that a store can keep it without knowing what it is."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from onestep_jax.errors import Damaged
from onestep_jax.fitting import slots
from onestep_jax.fitting.slots import FitProblem
from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.fitting.work_queue import Group
from onestep_jax.store.saved_states import reached


def pack(tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> tuple[dict[str, np.ndarray], Any]:
    """Arrays and record of tasks with a saved slot, and of outcomes whose group still has seeds to come.

    All slots and all outcomes have the same padded length, so each array is stacked over them.
    """
    arrays: dict[str, np.ndarray] = {}
    for place, column in enumerate(zip(*(jax.tree.leaves(task.saved) for task in tasks), strict=True)):
        arrays[f"slot_{place:03d}"] = np.stack(column)
    if outcomes:
        for name in outcomes[0].leaves:
            arrays[f"leaf_{name}"] = np.stack([outcome.leaves[name] for outcome in outcomes])
        arrays["accuracy_G"] = np.stack([outcome.accuracy_G for outcome in outcomes])
        arrays["predicted_GT"] = np.stack([outcome.predicted_GT for outcome in outcomes])
        arrays["first_hit_GT"] = np.stack([outcome.first_hit_GT for outcome in outcomes])
        arrays["margin_G"] = np.stack([outcome.margin_G for outcome in outcomes])
    for kind, of_kind in (("task", tasks), ("outcome", [outcome.task for outcome in outcomes])):
        for number, task in enumerate(of_kind):
            for name in task.path[0] if task.path else ():
                arrays[f"{kind}_{number}_path_{name}"] = np.stack([point[name] for point in task.path])
    record = {"tasks": [_task_record(task) for task in tasks], "outcomes": [_outcome_record(one) for one in outcomes]}
    return arrays, record


def _task_record(task: Task) -> dict[str, Any]:
    return {"texts": list(task.texts), "seed": task.seed, "trace": task.trace, "seconds": task.seconds}


def _outcome_record(outcome: Outcome) -> dict[str, Any]:
    return {
        **_task_record(outcome.task),
        "status": outcome.status,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "loss": outcome.loss,
    }


def unpack(
    arrays: Mapping[str, np.ndarray],
    record: Any,
    problem: FitProblem,
    make_task: Callable[[Group, int], Task],
    wanted: Collection[Group],
) -> tuple[list[Task], list[Outcome]]:
    """What `pack` was given, of the wanted groups; `make_task` makes a task of (group, seed) as at its beginning."""
    treedef = jax.tree.structure(slots.shapes(problem, 1)._replace(budget=None))
    leaf_names = list(problem.scheme.leaf_shapes(problem.network.embed_width))

    def task_of(about: Any, kind: str, number: int) -> Task:
        task = make_task(_group(about), about["seed"])
        path = {name: arrays[key] for name in leaf_names if (key := f"{kind}_{number}_path_{name}") in arrays}
        task.path = [{name: leaf[i] for name, leaf in path.items()} for i in range(len(about["trace"]))] if path else []
        task.trace = [(steps, loss, accuracy) for steps, loss, accuracy in about["trace"]]
        task.seconds = about["seconds"]
        return task

    tasks, outcomes = [], []
    for number, about in enumerate(record["tasks"]):
        if _group(about) in wanted:
            task = task_of(about, "task", number)
            leaves = [arrays[f"slot_{place:03d}"][number] for place in range(treedef.num_leaves)]
            task.saved = jax.tree.unflatten(treedef, leaves)
            tasks.append(task)
    for number, about in enumerate(record["outcomes"]):
        if _group(about) in wanted:
            outcomes.append(_outcome(about, number, task_of(about, "outcome", number), arrays))
    return tasks, outcomes


def _outcome(about: Any, number: int, task: Task, arrays: Mapping[str, np.ndarray]) -> Outcome:
    """The outcome at a place of the stacked arrays, of its record and its task."""
    leaves = {key.removeprefix("leaf_"): array[number] for key, array in arrays.items() if key.startswith("leaf_")}
    unknown_G = np.full_like(arrays["accuracy_G"][number], np.nan)  # a state of a version that kept no margins
    return Outcome(
        task=task,
        status=about["status"],
        steps=about["steps"],
        best_step=about["best_step"],
        loss=about["loss"],
        accuracy_G=arrays["accuracy_G"][number],
        predicted_GT=arrays["predicted_GT"][number],
        leaves=leaves,
        first_hit_GT=arrays["first_hit_GT"][number],
        margin_G=arrays["margin_G"][number] if "margin_G" in arrays else unknown_G,
    )


class Furthest(NamedTuple):
    """Where a group is furthest: the later seed, then the more gradient evaluations, of those that were saved.

    Attributes:
      seed: number of the seed.
      steps: gradient evaluations made from it, infinitely many if it has come to its end, see `saved_states.reached`.
      state: name of the saved state.
    """

    seed: int
    steps: float
    state: str


class SavedWork:
    """What earlier sessions left in flight, each group from the state that has it furthest (`Furthest`).

    Args:
      states: (name, record) of each, newest first; of states that have a group equally far, the newest is taken.
      load: arrays of a state by its name.
    """

    def __init__(self, states: Iterable[tuple[str, Any]], load: Callable[[str], Mapping[str, np.ndarray]]):
        self._records, self._load = dict(states), load
        self._furthest = self._compare()

    def _compare(self) -> dict[Group, Furthest]:
        furthest: dict[Group, Furthest] = {}
        for name, record in self._records.items():
            for (group, seed), steps in reached(record).items():
                best = furthest.get(group)
                if best is None or (seed, steps) > (best.seed, best.steps):
                    furthest[group] = Furthest(seed=seed, steps=steps, state=name)
        return furthest

    def of(
        self, groups: Sequence[Group], problem: FitProblem, make_task: Callable[[Group, int], Task]
    ) -> tuple[list[Task], list[Outcome]]:
        """Tasks to resume and outcomes of seeds already tried, of these groups; the arrays of a state are read once.

        A state whose arrays are damaged is left aside with a warning, and its groups go on from the next one.

        Args:
          groups: that are wanted.
          problem, make_task: see `unpack`.
        """
        tasks, outcomes = [], []
        wanted: dict[str, set[Group]] = {}
        for group in groups:
            if group in self._furthest:
                wanted.setdefault(self._furthest[group].state, set()).add(group)
        for name, members in wanted.items():
            try:
                arrays = self._load(name)
            except Damaged as error:
                warnings.warn(f"{error}; it is left aside", stacklevel=2)
                del self._records[name]
                self._furthest = self._compare()
                return self.of(groups, problem, make_task)
            some_tasks, some_outcomes = unpack(arrays, self._records[name], problem, make_task, members)
            tasks += some_tasks
            outcomes += some_outcomes
        return tasks, outcomes


_Work = TypeVar("_Work", Task, Outcome)


def repadded(work: _Work, positions: int) -> _Work:
    """A task or an outcome with its arrays over tokens padded to `positions`; another session may have padded more."""

    def over(rows_GT: Any, filler: int) -> np.ndarray:
        made = np.full((*rows_GT.shape[:-1], positions), filler, rows_GT.dtype)
        kept = min(positions, rows_GT.shape[-1])
        made[..., :kept] = rows_GT[..., :kept]
        return made

    if isinstance(work, Outcome):
        return work._replace(predicted_GT=over(work.predicted_GT, 0), first_hit_GT=over(work.first_hit_GT, -1))
    if work.saved is None:
        return work
    tokens_GT, first_hit_GT = over(work.saved.tokens_GT, 0), over(work.saved.first_hit_GT, -1)
    return dataclasses.replace(work, saved=work.saved._replace(tokens_GT=tokens_GT, first_hit_GT=first_hit_GT))


def _group(about: Any) -> Group:
    return tuple(about["texts"])

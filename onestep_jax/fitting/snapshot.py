"""Work in flight as flat arrays and a JSON record, so that a store can keep it without knowing what it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from onestep_jax.fitting import slots
from onestep_jax.fitting.slots import Problem
from onestep_jax.fitting.tasks import Outcome, Task

Group: TypeAlias = tuple[int, ...]
"""Indices of the texts of a group."""

_PLAIN = ("status", "steps", "best_step", "loss")
_ARRAYS = ("accuracy_G", "predicted_GT", "first_hit_GT")


def pack(tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> tuple[dict[str, np.ndarray], Any]:
    """Arrays and record of tasks with a saved slot, and of outcomes whose text still has seeds to come.

    All slots and all outcomes have the same padded length, so each array is stacked over them.
    """
    arrays: dict[str, np.ndarray] = {}
    for place, column in enumerate(zip(*(jax.tree.leaves(task.saved) for task in tasks), strict=True)):
        arrays[f"slot_{place:03d}"] = np.stack(column)
    if outcomes:
        for name in outcomes[0].leaves:
            arrays[f"leaf_{name}"] = np.stack([outcome.leaves[name] for outcome in outcomes])
        for name in _ARRAYS:
            arrays[name] = np.stack([getattr(outcome, name) for outcome in outcomes])
    for kind, of_kind in (("task", tasks), ("outcome", [outcome.task for outcome in outcomes])):
        for number, task in enumerate(of_kind):
            for name in task.path[0] if task.path else ():
                arrays[f"{kind}_{number}_path_{name}"] = np.stack([point[name] for point in task.path])
    record = {
        "tasks": [_about(task) for task in tasks],
        "outcomes": [_about(one.task) | {key: getattr(one, key) for key in _PLAIN} for one in outcomes],
    }
    return arrays, record


def _about(task: Task) -> dict[str, Any]:
    return {"texts": list(task.texts), "seed": task.seed, "trace": task.trace, "seconds": task.seconds}


def unpack(
    arrays: Mapping[str, np.ndarray],
    record: Any,
    problem: Problem,
    make_task: Callable[[Group, int], Task],
    wanted: Collection[Group],
) -> tuple[list[Task], list[Outcome]]:
    """What `pack` was given, of the wanted groups; `make_task` makes a task of (texts, seed) as at its beginning."""
    shapes_of = problem.scheme.leaf_shapes(problem.network.embed_width)
    treedef = jax.tree.structure(slots.shapes(problem, 1))
    names = [key.removeprefix("leaf_") for key in arrays if key.startswith("leaf_")]

    def task_of(about: Any, kind: str, number: int) -> Task:
        task = make_task(_group(about), about["seed"])
        path = {name: arrays[key] for name in shapes_of if (key := f"{kind}_{number}_path_{name}") in arrays}
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
            leaves = {name: arrays[f"leaf_{name}"][number] for name in names}
            fields = {key: about[key] for key in _PLAIN} | {name: arrays[name][number] for name in _ARRAYS}
            outcomes.append(Outcome(task=task_of(about, "outcome", number), leaves=leaves, **fields))
    return tasks, outcomes


class Saved:
    """What earlier sessions left in flight, found by group: the state that has it furthest.

    Args:
      states: (name, record) of each.
      load: arrays of a state by its name.
      problem, make_task: see `unpack`.
    """

    def __init__(
        self,
        states: Iterable[tuple[str, Any]],
        load: Callable[[str], Mapping[str, np.ndarray]],
        problem: Problem,
        make_task: Callable[[Group, int], Task],
    ):
        self._load, self._problem, self._make_task = load, problem, make_task
        self._records = dict(states)
        self._where: dict[Group, tuple[tuple[int, int], str]] = {}
        for name, record in self._records.items():
            for about in record.get("tasks", []) + record.get("outcomes", []):
                far = (about["seed"] + ("status" in about), 0 if "status" in about else _steps(about))
                best = self._where.get(_group(about))
                if best is None or far > best[0]:
                    self._where[_group(about)] = (far, name)

    def of(self, groups: Sequence[Group]) -> tuple[list[Task], list[Outcome]]:
        """Tasks that go on and outcomes of seeds already tried, of these groups; a state is read once."""
        tasks, outcomes = [], []
        wanted: dict[str, set[Group]] = {}
        for group in groups:
            if group in self._where:
                wanted.setdefault(self._where[group][1], set()).add(group)
        for name, members in wanted.items():
            found = unpack(self._load(name), self._records[name], self._problem, self._make_task, members)
            tasks += found[0]
            outcomes += found[1]
        return tasks, outcomes


def _group(about: Any) -> Group:
    return tuple(about["texts"])


def _steps(about: Any) -> int:
    return about["trace"][-1][0] if about["trace"] else 0

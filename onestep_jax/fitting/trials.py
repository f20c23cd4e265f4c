"""The seeds that each group is tried from, one after the other, and what came of them so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.fitting.work_queue import Group
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.tokens import id_words


class Trials:
    """Outcomes of the seeds of unfinished groups, and which seed comes next.

    A group is tried from seeds `first_seed`, `first_seed` + 1, … until one solves it, or `seeds` of them have been
    tried. Each may spend `steps`; without a number of seeds all of a group together may. Where a group starts depends
    on its texts and the seed alone, so it starts at the same vectors in every process and every session.

    Args:
      tokens: (N,) int32 of each text of the fit.
      ids: identity of each text, from which its start vectors are drawn.
      scheme: the arrangement, with start vectors if they were given; the first seed of a group starts at them.
      prefixes: of each text, where each has its own; else empty.
      first_seed: number of the first seed.
      seeds: how many a group may use; None for as many as `steps` lasts for.
      steps: budget, in gradient evaluations.
      redraw: draws the start vectors of a group from its ids, for seeds after the first where start vectors were given.
      context: name → a row for each text, of what the losses beside Eq. 1 know.
    """

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        ids: Sequence[str],
        scheme: Scheme,
        prefixes: Sequence[np.ndarray],
        first_seed: int,
        seeds: int | None,
        steps: int,
        redraw: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None,
        context: Mapping[str, np.ndarray] | None = None,
    ):
        self._tokens, self._ids, self._scheme, self._prefixes = tokens, ids, scheme, prefixes
        self._first_seed, self._seeds, self._steps, self._redraw = first_seed, seeds, steps, redraw
        self._context = context or {}
        self._outcomes: dict[Group, list[Outcome]] = {}

    def task(self, group: Group, seed: int) -> Task:
        """A group at the start vectors of a seed."""
        ids = np.zeros((self._scheme.group, 4), np.uint32)
        ids[: len(group)] = [id_words(self._ids[i], seed) for i in group]
        tokens, prefixes = [self._tokens[i] for i in group], [self._prefixes[i] for i in group if self._prefixes]
        context = {name: rows[list(group)] for name, rows in self._context.items()}
        return Task(
            texts=group,
            seed=seed,
            budget=self.budget(group),
            tokens=tokens,
            ids=ids,
            prefixes=prefixes,
            context=context,
            start=self._start(group, seed, ids),
        )

    def _start(self, group: Group, seed: int, ids: np.ndarray) -> Mapping[str, np.ndarray] | None:
        """The start vectors of a seed, None to draw them in the program that begins it."""
        if self._scheme.start is None:
            return None
        if seed > self._first_seed and self._redraw is not None:
            return self._redraw(ids)
        rows = list(group)
        start = {name: array[rows] for name, array in self._scheme.start.items()}
        return start | {name: start[name][0] for name in self._scheme.shared}

    def budget(self, group: Group) -> int:
        """Gradient evaluations that the next seed of a group may spend."""
        if self._seeds is not None:
            return self._steps
        return self._steps - sum(outcome.steps for outcome in self._outcomes.get(group, ()))

    def next_task(self, group: Group) -> Task:
        """A group at the start vectors of its first seed that was not tried yet."""
        return self.task(group, self._first_seed + len(self._outcomes.get(group, ())))

    def add(self, outcome: Outcome) -> None:
        """Note what came of the next seed of a group."""
        self._outcomes.setdefault(outcome.task.texts, []).append(outcome)

    def ended(self, group: Group) -> bool:
        """Whether a group is solved, or has used all its seeds or its budget.

        Without a number of seeds a failed one ends it too: a failure costs one evaluation, and a model whose loss is
        never finite would fail from thousands of seeds.
        """
        outcomes = self._outcomes[group]
        status = outcomes[-1].status
        if self._seeds is None:
            return status != "exhausted" or self.budget(group) <= 0
        return status == "solved" or len(outcomes) >= self._seeds

    def pop(self, group: Group) -> list[Outcome]:
        """Remove and return the outcomes of a group that has ended, in the order of their seeds."""
        return self._outcomes.pop(group)

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes of groups that have not ended."""
        return [outcome for of_group in self._outcomes.values() for outcome in of_group]

"""What goes into the fit engine and comes out of it: tasks, outcomes, and the `Work` that it talks to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from onestep_jax.fitting.slots import STATUS, Harvest, Slot

VERDICTS = ("go", "save", "narrow", "stop")  # processes in lockstep follow the one that comes last here


@dataclasses.dataclass
class Task:
    """A group to optimise from one seed.

    Attributes:
      texts: indices of the group's texts, which the engine does not use.
      seed: number of the seed.
      budget: gradient evaluations that it may spend.
      tokens: token ids of each text.
      prefixes: token ids of each text's own prefix; empty where they have none of their own.
      context: name → (texts, …) float32, what the losses beside Eq. 1 know of them.
      ids: (texts, 4) uint32, see `schemes.draw`.
      start: leaf → (texts, *shape), or its plain shape where shared, or None to draw.
      saved: the slot to resume from, as host arrays, or None to begin.
      trace: (steps, loss in nats per token, accuracy) after each chunk.
      path: the vectors at each point of the trace, as in `Slot.leaves`, if the problem records them.
      seconds: share of the wall-clock time so far: each chunk's time divided by the number of running slots.
    """

    texts: tuple[int, ...]
    seed: int
    budget: int
    tokens: list[np.ndarray]
    ids: np.ndarray
    prefixes: list[np.ndarray] = dataclasses.field(default_factory=list)
    context: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    start: Mapping[str, np.ndarray] | None = None
    saved: Slot | None = None
    trace: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)
    path: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class Outcome(NamedTuple):
    """What became of a task; vectors, loss, accuracies and predictions are those of its best step.

    Attributes:
      task: with its trace and seconds.
      status: "solved", "exhausted" (budget or patience spent) or "failed" (not finite).
      steps: gradient evaluations spent.
      best_step: updates made before the vectors kept.
      loss: nats per token at the vectors kept, mean over the group.
      accuracy_G: (G,) accuracy of each text, by the decode program.
      predicted_GT: (G, T) int32, the argmax ids of the decode program.
      leaves: leaf → (G, *shape), or its plain shape where shared, float32.
      first_hit_GT: see `Slot`.
      margin_G: (G,) float32, least lead of each text over its tokens, by the decode program; NaN if not known.
    """

    task: Task
    status: str
    steps: int
    best_step: int
    loss: float
    accuracy_G: np.ndarray
    predicted_GT: np.ndarray
    leaves: dict[str, np.ndarray]
    first_hit_GT: np.ndarray
    margin_G: np.ndarray


def outcome_of(task: Task, harvest: Harvest) -> Outcome:
    """What a harvest of one slot, on the host, says of the task that held it."""
    row = harvest.slot
    return Outcome(
        task=task,
        status=STATUS[int(row.status)],
        steps=int(row.steps),
        best_step=int(row.best_step),
        loss=float(row.best_loss),
        accuracy_G=np.asarray(harvest.accuracy_G),
        predicted_GT=np.asarray(harvest.predicted_GT),
        leaves={name: np.asarray(leaf, np.float32) for name, leaf in row.best.items()},
        first_hit_GT=np.asarray(row.first_hit_GT),
        margin_G=np.asarray(harvest.margin_G),
    )


class Work(Protocol):
    """Where tasks come from and where outcomes go."""

    def take(self) -> Task | None:
        """The next task, or None if there is none at the moment."""
        ...

    def give_back(self, task: Task) -> None:
        """Receive a task that found no slot, or lost its slot; it is to be taken again."""
        ...

    def finished(self, outcome: Outcome) -> None:
        """Receive an outcome; may make new tasks available."""
        ...

    def tick(self, running: int, steps: int) -> str:
        """Called after each chunk with the numbers of running slots and of steps made; returns one of `VERDICTS`.

        "go" continues; "save" continues after the tasks in flight were saved; "narrow" ends the engine's run after they
        were given back; "stop" ends it after they were saved.
        """
        ...

    def save(self, tasks: list[Task]) -> None:
        """Receive every task in flight, with `saved` set."""
        ...

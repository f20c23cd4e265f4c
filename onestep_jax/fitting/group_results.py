"""What a group's seeds came to, as results of its texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.model.likelihood import TextNats
from onestep_jax.store.results import TextResult, Trial


@dataclasses.dataclass(frozen=True)
class Given:
    """A text as it went into the fit.

    Attributes:
      index: place in the source.
      text_id: its identity.
      tokens: (N,) int32.
      nats: under the model.
    """

    index: int
    text_id: str
    tokens: np.ndarray
    nats: TextNats


def text_results(texts: Sequence[Given], outcomes: Sequence[Outcome], shared: frozenset[str]) -> Iterator[TextResult]:
    """Results of the texts of a group: the best seed is kept, the one of the best mean accuracy (ties: lower loss).

    Args:
      texts: of the group.
      outcomes: of its seeds, in turn.
      shared: leaves that the texts share.
    """
    best = max(outcomes, key=lambda outcome: (outcome.accuracy_G[: len(texts)].mean(), -outcome.loss))
    for g, text in enumerate(texts):
        count, nats = len(text.tokens), text.nats.nats
        correct = round(float(best.accuracy_G[g]) * count)
        yield TextResult(
            index=text.index,
            text_id=text.text_id,
            tokens=text.tokens,
            vectors={name: leaf if name in shared else leaf[g] for name, leaf in best.leaves.items()},
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
            h_lm=text.nats.total,
            trials=tuple(_trial(outcome, g, count, shared) for outcome in outcomes),
        )


def _trial(outcome: Outcome, g: int, count: int, shared: frozenset[str]) -> Trial:
    """One seed of the g-th text of a group, of `count` tokens."""
    correct = round(float(outcome.accuracy_G[g]) * count)
    numbers = (correct / count, outcome.loss, outcome.steps, outcome.best_step)
    trace = np.asarray(outcome.task.trace, float).reshape(-1, 3)
    found = (trace, outcome.first_hit_GT[g, :count], _path(outcome.task, g, shared))
    return Trial(outcome.task.seed, outcome.status, *numbers, *found)


def _path(task: Task, g: int, shared: frozenset[str]) -> dict[str, np.ndarray] | None:
    """The recorded vectors of one text of a group, leaf → (points, *shape)."""
    if not task.path:
        return None
    stacked = {name: np.stack([point[name] for point in task.path]) for name in task.path[0]}
    return {name: leaf if name in shared else leaf[:, g] for name, leaf in stacked.items()}

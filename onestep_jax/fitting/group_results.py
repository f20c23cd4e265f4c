"""The texts of a fit as they went in, and what a group's seeds came to, as results of its texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.fitting.work_queue import Group
from onestep_jax.model.decoder import Model
from onestep_jax.model.likelihood import TextNats, text_nats
from onestep_jax.store.results import TextResult, Trial


@dataclasses.dataclass(frozen=True)
class GivenText:
    """A text as it went into the fit.

    Attributes:
      index: place in the source.
      text_id: its identity.
      tokens: (N,) int32.
      prefix: (P,) int32, the tokens before it.
      nats: under the model, behind its prefix.
    """

    index: int
    text_id: str
    tokens: np.ndarray
    prefix: np.ndarray
    nats: TextNats


class GivenTexts:
    """The texts of a fit, with their nats, which are counted when a group is about to be fitted.

    Nats of each token and H_LM (Eq. 3) take a forward pass a text. Counting those of all texts of a large fit at once
    would hold up its first chunk, so they are counted for one group and those that come next.

    Args:
      model: the frozen model.
      tokens: (N,) int32 of each text.
      ids: identity of each text.
      prefix: what stands before the text of an index.
      room: of the plan.
    """

    def __init__(
        self,
        model: Model,
        tokens: Sequence[np.ndarray],
        ids: Sequence[str],
        prefix: Callable[[int], np.ndarray],
        room: int = 0,
    ):
        self._model, self._tokens, self._ids, self._prefix, self._room = model, tokens, ids, prefix, room
        self._nats: dict[int, TextNats] = {}

    def count_nats(self, group: Group, upcoming: Iterable[Group]) -> None:
        """Count the nats of a group unless they are known, and with them those of the groups that come next."""
        if all(i in self._nats for i in group):
            return
        texts = [i for members in (group, *upcoming) for i in members if i not in self._nats]
        prefixes = [self._prefix(i) for i in texts]
        nats = text_nats(self._model, [self._tokens[i] for i in texts], prefixes=prefixes, room=self._room)
        self._nats |= zip(texts, nats, strict=True)

    def pop(self, group: Group) -> list[GivenText]:
        """The texts of a group whose nats were counted, which are forgotten then."""
        return [
            GivenText(
                index=i,
                text_id=self._ids[i],
                tokens=self._tokens[i],
                prefix=self._prefix(i),
                nats=self._nats.pop(i),
            )
            for i in group
        ]


def text_results(
    texts: Sequence[GivenText], outcomes: Sequence[Outcome], shared: frozenset[str], margin: float = 0.0
) -> Iterator[TextResult]:
    """Results of the texts of a group, from its best seed: the best mean accuracy, or of equal ones the lowest loss.

    Args:
      texts: of the group.
      outcomes: of its seeds, in turn.
      shared: leaves that the texts share.
      margin: of the fit; with one, of equally accurate seeds that which solved the group comes first.
    """

    def worth(outcome: Outcome) -> tuple[float, bool, float]:
        solved = margin > 0 and outcome.status == "solved"
        return float(outcome.accuracy_G[: len(texts)].mean()), solved, -outcome.loss

    best = max(outcomes, key=worth)
    for g, text in enumerate(texts):
        count, nats = len(text.tokens), text.nats.nats
        correct = round(float(best.accuracy_G[g]) * count)
        yield TextResult(
            index=text.index,
            text_id=text.text_id,
            tokens=text.tokens,
            prefix=text.prefix,
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
            margin=float(best.margin_G[g]),
            trials=tuple(_trial(outcome, g, count, shared) for outcome in outcomes),
        )


def _trial(outcome: Outcome, g: int, count: int, shared: frozenset[str]) -> Trial:
    """One seed of the g-th text of a group, of `count` tokens."""
    return Trial(
        seed=outcome.task.seed,
        status=outcome.status,
        accuracy=round(float(outcome.accuracy_G[g]) * count) / count,
        loss=outcome.loss,
        steps=outcome.steps,
        best_step=outcome.best_step,
        trace=np.asarray(outcome.task.trace, float).reshape(-1, 3),
        first_hit=outcome.first_hit_GT[g, :count],
        path=_path(outcome.task, g, shared),
    )


def _path(task: Task, g: int, shared: frozenset[str]) -> dict[str, np.ndarray] | None:
    """The recorded vectors of one text of a group, leaf → (points, *shape)."""
    if not task.path:
        return None
    stacked = {name: np.stack([point[name] for point in task.path]) for name in task.path[0]}
    return {name: leaf if name in shared else leaf[:, g] for name, leaf in stacked.items()}

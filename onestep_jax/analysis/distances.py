"""Cosine distances between learned vectors, by the relation of their texts (Figure 6).

A row is one learned vector with its text and the context that the text continues. Two rows have the *same text* (with
different seeds), the *same context* (with different continuations of it) or *different contexts*.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.analysis.samples import auc
from onestep_jax.errors import UserError, check_known, check_least
from onestep_jax.store.results import Results
from onestep_jax.tokens import plain_id

MOST = 200_000  # pairs of one relation
ROWS_AT_A_TIME = 2**22  # float64 components gathered at a time


class Relations(NamedTuple):
    """One array for each relation: pairs, (P, 2), or their distances, (P,).

    Attributes:
      same_text: different seeds of one text.
      same_context: different texts after one context.
      different_contexts: texts after different contexts.
    """

    same_text: np.ndarray
    same_context: np.ndarray
    different_contexts: np.ndarray


def learned_vectors(results: Results, leaf: str = "e") -> np.ndarray:
    """The vectors of one leaf, (texts, D) float64; the K vectors of a leaf of several are concatenated, D = K · width.

    Raises:
      UserError: for a leaf that the results do not have.
    """
    vectors = results.vectors
    check_known("leaf", [leaf], vectors)
    return vectors[leaf].astype(np.float64).reshape(len(results), -1)


def plain_ids(results: Results) -> list[str]:
    """`tokens.plain_id` of each row, the same for all copies of a text."""
    return [plain_id(text.text_id) for text in results]


def relation_pairs(
    contexts: Sequence[Hashable], texts: Sequence[Hashable], *, most: int = MOST, seed: int = 0
) -> Relations:
    """Find the unordered pairs of two different rows in each relation.

    Args:
      contexts: the context of each row.
      texts: the text of each row, such as `plain_ids`.
      most: pairs of a relation at most; from more, this many are drawn without replacement.
      seed: of that drawing.

    Returns:
      (P, 2) int64 row numbers for each relation.

    Raises:
      UserError: if the lengths differ or one text follows two contexts.
    """
    if len(contexts) != len(texts):
        raise UserError(f"{len(contexts)} contexts for {len(texts)} texts: expected one of each for every row")
    check_least(1, most=most)
    context_N, text_N = distinct(contexts)[1], distinct(texts)[1]
    owner: dict[int, int] = {}
    for row, (context, text) in enumerate(zip(context_N.tolist(), text_N.tolist(), strict=True)):
        if owner.setdefault(text, context) != context:
            raise UserError(f"row {row}: text {texts[row]!r} follows two contexts; expected one context for every text")
    order = np.lexsort((text_N, context_N))
    context_N, text_N = context_N[order], text_N[order]
    # Rows are sorted by context and text. The later rows in a relation with a row are therefore a range: up to the end
    # of its text, from there to the end of its context, and from there to the last row.
    after_row, after_last = np.arange(1, len(order) + 1), np.full(len(order), len(order))
    after_text, after_context = _ends(text_N), _ends(context_N)
    streams = np.random.default_rng(seed).spawn(len(Relations._fields))

    def rows_of(low_N: np.ndarray, high_N: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        return np.sort(order[_draw(low_N, high_N, most, stream)], axis=1)

    return Relations(
        same_text=rows_of(after_row, after_text, streams[0]),
        same_context=rows_of(after_text, after_context, streams[1]),
        different_contexts=rows_of(after_context, after_last, streams[2]),
    )


def distinct(values: Sequence[Hashable]) -> tuple[list[Any], np.ndarray]:
    """Distinct values in order of appearance, and for each row the place of its value among them, (N,) int64."""
    places: dict[Hashable, int] = {}
    place_N = np.array([places.setdefault(value, len(places)) for value in values], np.int64)
    return list(places), place_N


def _ends(labels_N: np.ndarray) -> np.ndarray:
    """End of the run of equal labels around each place, (N,)."""
    last = np.flatnonzero(np.append(labels_N[1:] != labels_N[:-1], True)[: len(labels_N)])
    return last[np.searchsorted(last, np.arange(len(labels_N)))] + 1


def _draw(low_N: np.ndarray, high_N: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs (i, j) with low[i] ≤ j < high[i], in lexicographic order: all of them, or `most` drawn ones."""
    before = np.concatenate([[0], np.cumsum(high_N - low_N)])
    total = int(before[-1])
    ranks = np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False, shuffle=False))
    first = np.searchsorted(before, ranks, side="right") - 1
    return np.stack([first, low_N[first] + ranks - before[first]], axis=-1).astype(np.int64)


def cosine_distances(vectors_ND: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """Cosine distance 1 − cos of the two vectors of each pair, (P,) float64 from 0 to 2; exactly 0 for equal vectors.

    Raises:
      UserError: for a vector without a direction: zero, or not finite.
    """
    vectors_ND = np.asarray(vectors_ND, np.float64)
    # Scaled first, so that the squares of tiny and of huge vectors stay in the range of float64.
    largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True, initial=0.0)
    bad = np.flatnonzero(~np.isfinite(largest_N1[:, 0]) | (largest_N1[:, 0] == 0))
    if len(bad):
        raise UserError(f"row {bad[0]}: a vector that is zero or not finite has no direction; leave failed fits out")
    scaled_ND = vectors_ND / largest_N1
    unit_ND = scaled_ND / np.linalg.norm(scaled_ND, axis=1, keepdims=True)
    step = max(1, ROWS_AT_A_TIME // max(1, unit_ND.shape[1]))
    distances = np.empty(len(pairs_P2))
    for begin in range(0, len(pairs_P2), step):
        first, second = pairs_P2[begin : begin + step].T
        # 1 − cos = |u − v|² / 2 for unit vectors, which has no cancellation at small angles.
        distances[begin : begin + step] = np.square(unit_ND[first] - unit_ND[second]).sum(axis=1) / 2
    return np.minimum(distances, 2.0)


def relation_distances(
    vectors_ND: np.ndarray,
    contexts: Sequence[Hashable],
    texts: Sequence[Hashable],
    *,
    most: int = MOST,
    seed: int = 0,
) -> Relations:
    """Measure the cosine distances of the pairs in each relation (Figure 6).

    Args:
      vectors_ND: one vector for each row.
      contexts, texts, most, seed: see `relation_pairs`.

    Returns:
      (P,) float64 for each relation, in the order of `relation_pairs`.

    Raises:
      UserError: see `relation_pairs` and `cosine_distances`.
    """
    if len(vectors_ND) != len(texts):
        raise UserError(f"{len(vectors_ND)} vectors for {len(texts)} texts: expected one for every row")
    pairs = relation_pairs(contexts, texts, most=most, seed=seed)
    return Relations(**{name: cosine_distances(vectors_ND, found) for name, found in pairs._asdict().items()})


def summary(distances: Relations) -> list[dict[str, Any]]:
    """One row for each relation that has pairs: their number, mean, standard deviation, extremes and quartiles.

    Two pairs with a row in common are not independent, so `std / √pairs` is not a standard error; see `nearer_by`.
    """
    rows = []
    for relation, values in distances._asdict().items():
        if len(values):
            low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
            rows.append(
                {
                    "relation": relation,
                    "pairs": len(values),
                    "mean": float(values.mean()),
                    "std": float(values.std()),
                    "min": float(values.min()),
                    "quartile_1": low,
                    "median": median,
                    "quartile_3": high,
                    "max": float(values.max()),
                }
            )
    return rows


def separations(distances: Mapping[str, np.ndarray] | Relations) -> list[dict[str, Any]]:
    """How well two relations are told apart by distance alone: one row for each two relations that have pairs.

    `auc` is the probability that a pair of the nearer relation has the smaller distance: 1/2 if the two are alike.
    """
    named = distances._asdict() if isinstance(distances, Relations) else distances
    present = [name for name, values in named.items() if len(values)]
    return [
        {"nearer": nearer, "farther": farther, "auc": auc(named[nearer], named[farther])}
        for nearer, farther in itertools.combinations(present, 2)
    ]


class Gap(NamedTuple):
    """How much nearer the pairs of one relation are than those of another.

    Attributes:
      gap: difference of their mean distances; with strata, averaged over those that both have, each with the weight of
        the relation that has fewer pairs there. NaN if there is none.
      low, high: 95 % interval by resampling; NaN where most draws have no pairs to compare.
      contexts, texts: how many were resampled.
    """

    gap: float
    low: float
    high: float
    contexts: int
    texts: int


def nearer_by(
    distances: Relations,
    pairs: Relations,
    contexts: Sequence[Hashable],
    texts: Sequence[Hashable],
    *,
    nearer: str = "same_context",
    farther: str = "different_contexts",
    strata: Mapping[str, np.ndarray] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Gap:
    """Measure how much nearer one relation is, with an interval that knows that pairs share vectors.

    Contexts are drawn with replacement, and texts within each drawn context. A pair counts as often as both its rows
    were drawn together: in one copy of a context for `same_text` and `same_context`, in any for `different_contexts`.

    Args:
      distances, pairs: (P,) and (P, 2) of each relation, see `relation_distances` and `relation_pairs`.
      contexts, texts: of each row.
      nearer, farther: fields of `Relations`.
      strata: relation → (P,) whole numbers; only pairs of one stratum are compared, such as a bin of text distances.
      draws: of the resampling.
      seed: of the draws.
    """
    check_least(1, draws=draws)
    owner_N, text_N = distinct(contexts)[1], distinct(texts)[1]
    sides = [_Side(name, distances, pairs, strata) for name in (nearer, farther)]
    rng = np.random.default_rng(seed)
    drawn = np.array([_gap(sides, _multiplicity(owner_N, text_N, rng)) for _ in range(draws)])
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, (0.025, 0.975)).tolist() if 2 * len(known) > draws else (np.nan, np.nan)
    once_KN = (owner_N == np.unique(owner_N)[:, None]).astype(float)
    return Gap(_gap(sides, once_KN), low, high, len(once_KN), len(set(text_N.tolist())))


class _Side:
    """The pairs of one relation, their distances and strata."""

    def __init__(self, relation: str, distances: Relations, pairs: Relations, strata: Any):
        self.relation, self.values = relation, getattr(distances, relation)
        self.first, self.second = getattr(pairs, relation).T
        self.stratum = np.zeros(len(self.values), int) if strata is None else strata[relation]

    def sums(self, count_KN: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(strata,) number of pairs and sum of their distances, where row n is in copy k of a context so many times."""
        if self.relation == "different_contexts":
            total_N = count_KN.sum(0)
            weight_P = total_N[self.first] * total_N[self.second]
        elif self.relation == "same_text":  # copies of a text each bring its seeds
            weight_P = count_KN.sum(0)[self.first]
        else:
            weight_P = (count_KN[:, self.first] * count_KN[:, self.second]).sum(0)
        sums = (np.bincount(self.stratum, w, minlength=size) for w in (weight_P, weight_P * self.values))
        return next(sums), next(sums)


def _gap(sides: Sequence[_Side], count_KN: np.ndarray) -> float:
    """Mean distance of the second side less that of the first, over the strata that both have."""
    size = 1 + max((int(side.stratum.max()) for side in sides if len(side.stratum)), default=0)
    (near, near_sum), (far, far_sum) = (side.sums(count_KN, size) for side in sides)
    weight = np.minimum(near, far)
    both = weight > 0
    if not both.any():
        return float("nan")
    return float(weight[both] @ (far_sum[both] / far[both] - near_sum[both] / near[both]) / weight.sum())


def _multiplicity(owner_N: np.ndarray, text_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each row is in each of the drawn copies of contexts, (K, N)."""
    names = np.unique(owner_N)
    count_KN = np.zeros((len(names), len(owner_N)))
    for copy, name in enumerate(rng.choice(names, len(names))):
        own = np.unique(text_N[owner_N == name])
        drawn = np.bincount(rng.choice(own, len(own)), minlength=text_N.max() + 1)
        count_KN[copy] = np.where(owner_N == name, drawn[text_N], 0)
    return count_KN

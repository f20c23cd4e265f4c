"""Cosine distances between learned vectors, by the relation of their texts (Figure 6).

A row is one learned vector with its text and the context that the text continues. Two rows have the *same text* (with
different seeds), the *same context* (with different continuations of it) or *different contexts*.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.analysis.ranks import auc
from onestep_jax.errors import UserError, check_known, check_least
from onestep_jax.model.decoder import Model
from onestep_jax.store.results import Results
from onestep_jax.texts import corpora
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


def continued_texts(
    model: Model, source: str, *, count: int, context: int, continuations: int, seeds: int, length: int, seed: int = 0
) -> tuple[list[int], list[np.ndarray]]:
    """Make the texts of Figures 5 and 6: the model's own continuations of contexts, the last of each `seeds` times.

    Args:
      model: continues the contexts, at temperature 1.
      source: of the contexts, see `corpora.contexts`.
      count: number of contexts.
      context: tokens of each.
      continuations: number of continuations of each context.
      seeds: how often the last continuation of each context appears, to be fitted with different seeds.
      length: tokens of each continuation.
      seed: of all that is drawn.

    Returns:
      For every text to fit, the number of its context and its token ids.
    """
    given = corpora.contexts(model, source, count=count, length=context, seed=seed)
    drawn = corpora.continuations(model, given, length=length, per_context=continuations, seed=seed)
    owners, texts = [], []
    for number, (*once, often) in enumerate(drawn):
        texts += [*once, *[often] * seeds]
        owners += [number] * (len(once) + seeds)
    return owners, texts


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

    Two pairs with a row in common are not independent, so `std / √pairs` is not a standard error.
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

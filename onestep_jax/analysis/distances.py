"""Cosine distances between learned vectors, by what their texts have in common (Figure 6).

A row is one learned vector with its text and the context that the text continues. Two rows are of the *same text*
(different seeds), of the *same context* (different continuations of it) or of *different contexts*.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import UserError, check_known
from onestep_jax.model.decoder import Model
from onestep_jax.store.results import Results
from onestep_jax.texts import corpora

MOST = 200_000  # pairs of one relation
ROWS_AT_A_TIME = 2**22  # float64 components gathered at a time


class Relations(NamedTuple):
    """One array for each relation; of pairs (P, 2) or of their distances (P,).

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
    """What Figures 5 and 6 fit: the model's own continuations of contexts, the last of each context `seeds` times.

    Args:
      model: continues the contexts, at temperature 1.
      source: of the contexts, see `corpora.contexts`.
      count: contexts, of `context` tokens each.
      continuations: of each context, of `length` tokens.
      seeds: fits of the last one.
      seed: of what is drawn.

    Returns:
      For every fit the number of its context, and its token ids.
    """
    given = corpora.contexts(model, source, count=count, length=context, seed=seed)
    drawn = corpora.continuations(model, given, length=length, per_context=continuations, seed=seed)
    owners, texts = [], []
    for number, (*once, often) in enumerate(drawn):
        texts += [*once, *[often] * seeds]
        owners += [number] * (len(once) + seeds)
    return owners, texts


def learned_vectors(results: Results, leaf: str = "e") -> np.ndarray:
    """(texts, D) float64, the vectors of one leaf; several vectors in a leaf are put end to end.

    Raises:
      UserError: for a leaf that the results do not have.
    """
    vectors = results.vectors
    check_known("leaf", [leaf], vectors)
    return vectors[leaf].astype(np.float64).reshape(len(results), -1)


def plain_ids(results: Results) -> list[str]:
    """The hash of each row's token ids: `text_id` without the number of a copy, the same for all copies of a text."""
    return [text.text_id.partition("-")[0] for text in results]


def relation_pairs(
    contexts: Sequence[Hashable], texts: Sequence[Hashable], *, most: int = MOST, seed: int = 0
) -> Relations:
    """The unordered pairs of rows in each relation, each once and none of a row with itself.

    Args:
      contexts: of each row.
      texts: of each row, such as `plain_ids`.
      most: how many pairs of a relation to keep; from more, so many are drawn without replacement.
      seed: of that drawing.

    Returns:
      (P, 2) int64 row numbers for each relation.

    Raises:
      UserError: if the lengths differ or one text is said to follow two contexts.
    """
    if len(contexts) != len(texts):
        raise UserError(f"{len(contexts)} contexts for {len(texts)} texts: expected one of each a row")
    if most < 1:
        raise UserError(f"most = {most}: expected at least 1")
    context_N, text_N = _numbers(contexts), _numbers(texts)
    owner: dict[int, int] = {}
    for row, (context, text) in enumerate(zip(context_N.tolist(), text_N.tolist(), strict=True)):
        if owner.setdefault(text, context) != context:
            raise UserError(f"row {row}: text {texts[row]!r} follows two contexts; expected one context a text")
    order = np.lexsort((text_N, context_N))
    context_N, text_N = context_N[order], text_N[order]
    # In this order the partners of a row in each relation, of those after it, lie side by side.
    after_row, rows = np.arange(1, len(order) + 1), np.full(len(order), len(order))
    after_text, after_context = _ends(text_N), _ends(context_N)
    ranges = ((after_row, after_text), (after_text, after_context), (after_context, rows))
    streams = np.random.default_rng(seed).spawn(len(ranges))
    drawn = (_draw(*ends, most, stream) for ends, stream in zip(ranges, streams, strict=True))
    return Relations(*(np.sort(order[pairs], axis=1) for pairs in drawn))


def _numbers(names: Sequence[Hashable]) -> np.ndarray:
    """Names as integers, in order of their first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], np.int64)


def _ends(labels_N: np.ndarray) -> np.ndarray:
    """Where the run of equal labels that holds each place ends, (N,)."""
    last = np.flatnonzero(np.append(labels_N[1:] != labels_N[:-1], True)[: len(labels_N)])
    return last[np.searchsorted(last, np.arange(len(labels_N)))] + 1


def _draw(low_N: np.ndarray, high_N: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs (i, j) with low[i] ≤ j < high[i], all of them or `most`, in lexicographic order."""
    before = np.concatenate([[0], np.cumsum(high_N - low_N)])
    total = int(before[-1])
    ranks = np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False, shuffle=False))
    first = np.searchsorted(before, ranks, side="right") - 1
    return np.stack([first, low_N[first] + ranks - before[first]] if total else [ranks, ranks], axis=-1).astype(
        np.int64
    )


def cosine_distances(vectors_ND: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """1 − cos of the angle between the two vectors of each pair, (P,) float64, from 0 to 2; exactly 0 for equal ones.

    Raises:
      UserError: for a vector that has no direction: zero, or not finite.
    """
    vectors_ND = np.asarray(vectors_ND, np.float64)
    # Scaled first, so that neither the squares of tiny vectors nor those of huge ones leave float64.
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
        # Half the squared chord of unit vectors: the same as 1 − cos, without its cancellation at small angles.
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
    """Cosine distances of the pairs in each relation (Figure 6); arguments of `relation_pairs`.

    Returns:
      (P,) float64 for each relation, in the order of `relation_pairs`.
    """
    if len(vectors_ND) != len(texts):
        raise UserError(f"{len(vectors_ND)} vectors for {len(texts)} texts: expected one a row")
    pairs = relation_pairs(contexts, texts, most=most, seed=seed)
    return Relations(*(cosine_distances(vectors_ND, relation) for relation in pairs))


def summary(distances: Relations) -> list[dict[str, Any]]:
    """One row a relation that has pairs: their number, mean, standard deviation, extremes and quartiles.

    Pairs that share a row are not independent, so `std / √pairs` is no standard error.
    """
    rows = []
    for relation, values in distances._asdict().items():
        if len(values):
            low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
            row = {"relation": relation, "pairs": len(values), "mean": float(values.mean()), "std": float(values.std())}
            quartiles = {"quartile_1": low, "median": median, "quartile_3": high}
            rows.append(row | {"min": float(values.min())} | quartiles | {"max": float(values.max())})
    return rows


def separations(distances: Mapping[str, np.ndarray] | Relations) -> list[dict[str, Any]]:
    """How well each relation is told from the next by distance alone: one row for each two that have pairs.

    `auc` is the chance that a pair of the nearer relation is nearer than one of the farther: 1/2 where they are alike.
    """
    named = distances._asdict() if isinstance(distances, Relations) else distances
    present = [name for name, values in named.items() if len(values)]
    return [
        {"nearer": nearer, "farther": farther, "auc": auc(named[nearer], named[farther])}
        for nearer, farther in itertools.combinations(present, 2)
    ]


def auc(smaller: np.ndarray, larger: np.ndarray) -> float:
    """P(x < y) + P(x = y) / 2 for x drawn from `smaller` and y from `larger`: the area under the ROC curve."""
    ordered = np.sort(larger)
    not_above = np.searchsorted(ordered, smaller, side="right")
    below = np.searchsorted(ordered, smaller, side="left")
    return float(1 - (not_above + below).mean() / (2 * len(ordered)))

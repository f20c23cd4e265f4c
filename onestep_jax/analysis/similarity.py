"""Distances of texts, and distances of learned vectors against them (Figure 5) or against a teacher's.

Texts are compared in two ways: *token-level*, by the cosine distance of TF-IDF vectors whose terms are the model's own
tokens, and *semantic*, by the cosine distance of sentence embeddings by all-MiniLM-L6-v2.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.analysis.distances import ROWS_AT_A_TIME, Relations, cosine_distances, distinct
from onestep_jax.analysis.samples import spearman
from onestep_jax.errors import UserError, check_least
from onestep_jax.texts.embeddings import sentence_embeddings


class Bin(NamedTuple):
    """Pairs of one relation with similar text distances.

    Attributes:
      relation: such as "same_context", see `distances.Relations`.
      low, high: text distances of the bin, without `high` except in the last bin.
      pairs: how many.
      text_distance: their mean text distance.
      mean, std: mean and standard deviation of their vector distances.
    """

    relation: str
    low: float
    high: float
    pairs: int
    text_distance: float
    mean: float
    std: float


def token_distances(tokens: Sequence[Any], pairs_P2: np.ndarray) -> np.ndarray:
    """Token-level distance of the two texts of each pair: cosine distance of TF-IDF vectors over token ids.

    Document frequencies are counted over the distinct texts, so that a text fitted with many seeds counts once.

    Args:
      tokens: token ids of each row.
      pairs_P2: (P, 2) row numbers.

    Returns:
      (P,) float64, 0 for equal texts, 1 for texts that share no token.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    keys = [tuple(np.asarray(ids).tolist()) for ids in tokens]
    texts, place_N = distinct(keys)
    identity: Any = list
    vectors = TfidfVectorizer(analyzer=identity).fit_transform(texts).tocsr()
    distances = np.empty(len(pairs_P2))
    step = max(1, ROWS_AT_A_TIME // max(map(len, keys), default=1))
    for begin in range(0, len(pairs_P2), step):
        first, second = place_N[pairs_P2[begin : begin + step]].T
        apart = vectors[first] - vectors[second]
        distances[begin : begin + step] = np.asarray(apart.multiply(apart).sum(axis=1)).ravel() / 2
    return np.minimum(distances, 1.0)


def semantic_distances(texts: Sequence[str], pairs_P2: np.ndarray, *, folder: str | Path | None = None) -> np.ndarray:
    """Semantic distance of the two texts of each pair: cosine distance of their sentence embeddings.

    Args:
      texts: string of each row.
      pairs_P2: (P, 2) row numbers.
      folder: see `sentence_embeddings`.

    Returns:
      (P,) float64 from 0 to 2.
    """
    strings, place_N = distinct(texts)
    return cosine_distances(sentence_embeddings(strings, folder=folder), place_N[pairs_P2])


# --- Figure 5 ---


def binned(
    text_distances: Mapping[str, np.ndarray] | Relations,
    vector_distances: Mapping[str, np.ndarray] | Relations,
    *,
    bins: int = 20,
) -> list[Bin]:
    """Bin vector distances by text distance, one curve for each relation, with the same bins for all (Figure 5).

    The bins have equal widths and span the text distances of all relations; empty ones are left out.

    Args:
      text_distances: relation → (P,).
      vector_distances: relation → (P,), of the same pairs.
      bins: how many.

    Raises:
      UserError: if the two are not of the same pairs.
    """
    check_least(1, bins=bins)
    x, y = _named(text_distances), _named(vector_distances)
    if {name: len(values) for name, values in x.items()} != {name: len(values) for name, values in y.items()}:
        raise UserError("text distances and vector distances are not of the same relations and numbers of pairs")
    everything = np.concatenate([np.zeros(0), *x.values()])
    if not len(everything):
        return []
    edges = np.linspace(everything.min(), everything.max(), bins + 1)
    found = []
    for relation in x:
        place = np.clip(np.searchsorted(edges, x[relation], side="right") - 1, 0, bins - 1)
        for i in np.unique(place):
            inside = y[relation][place == i]
            found.append(
                Bin(
                    relation=relation,
                    low=float(edges[i]),
                    high=float(edges[i + 1]),
                    pairs=len(inside),
                    text_distance=float(x[relation][place == i].mean()),
                    mean=float(inside.mean()),
                    std=float(inside.std()),
                )
            )
    return found


def in_bins(text_distances: np.ndarray, curves: Sequence[Bin]) -> np.ndarray:
    """Number of the bin of `binned` that each text distance is in, counted over the bins of all relations, (P,)."""
    lows = np.unique([bin.low for bin in curves])
    return np.searchsorted(lows, text_distances, side="right") - 1


def gap(curves: Sequence[Bin], nearer: str = "same_context", farther: str = "different_contexts") -> float:
    """How much nearer the vectors of one relation are at equal text distance, Figure 5 in one number.

    It is the difference of the mean vector distances of two relations in a bin, averaged over the bins that both have,
    weighted by the pairs of the relation that has fewer; NaN if they have no bin in common. `distances.nearer_by` gives
    the same with an interval, for the pairs themselves and `in_bins`.
    """
    sides = [{bin.low: bin for bin in curves if bin.relation == name} for name in (nearer, farther)]
    shared = [(sides[0][low], sides[1][low]) for low in sides[0] if low in sides[1]]
    weights = np.array([min(near.pairs, far.pairs) for near, far in shared], float)
    differences = np.array([far.mean - near.mean for near, far in shared])
    return float(weights @ differences / weights.sum()) if shared else float("nan")


def _named(distances: Mapping[str, np.ndarray] | Relations) -> Mapping[str, np.ndarray]:
    return distances._asdict() if isinstance(distances, Relations) else distances


# --- Agreement with a teacher ---


def agreement(vectors_ND: np.ndarray, teacher_NF: np.ndarray, pairs_P2: np.ndarray) -> float:
    """Spearman's correlation, over pairs of rows, of the cosine distances of learned vectors and of a teacher's.

    Args:
      vectors_ND: one learned vector for each row.
      teacher_NF: the teacher's embedding of each row.
      pairs_P2: (P, 2) row numbers.

    Returns:
      −1 to 1; NaN where either has equal distances for all pairs.

    Raises:
      UserError: see `distances.cosine_distances`.
    """
    return spearman(cosine_distances(vectors_ND, pairs_P2), cosine_distances(teacher_NF, pairs_P2))


def retrieval(vectors_ND: np.ndarray, labels: Sequence[Hashable]) -> float:
    """Share of rows whose nearest other row, by cosine, has the same label, such as the context of their texts.

    Of rows that are equally near the one that comes first counts. Rows with a label of their own are left out, since
    they can find nothing; NaN if there are no others.
    """
    label_N = distinct(labels)[1]
    count = len(label_N)
    pairs_P2 = np.stack(np.triu_indices(count, k=1), axis=-1)
    distances_NN = np.full((count, count), np.inf)
    distances_NN[pairs_P2[:, 0], pairs_P2[:, 1]] = cosine_distances(vectors_ND, pairs_P2)
    nearest_N = np.minimum(distances_NN, distances_NN.T).argmin(axis=1)
    findable_N = np.bincount(label_N)[label_N] > 1
    return float((label_N[nearest_N] == label_N)[findable_N].mean()) if findable_N.any() else float("nan")


def chance(labels: Sequence[Hashable]) -> float:
    """What `retrieval` is on average if a random other row is the nearest."""
    label_N = distinct(labels)[1]
    same_N = (np.bincount(label_N)[label_N] - 1) / max(1, len(label_N) - 1)
    return float(same_N[same_N > 0].mean()) if (same_N > 0).any() else float("nan")

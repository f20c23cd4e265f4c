"""Statistics of samples: the area under the ROC curve, Spearman's correlation, and permutation tests."""

from __future__ import annotations

import itertools

import numpy as np


def auc(smaller: np.ndarray, larger: np.ndarray) -> float:
    """P(x < y) + P(x = y) / 2 for x drawn from `smaller` and y from `larger`: the area under the ROC curve.

    Args:
      smaller, larger: numbers; NaN is returned if there are none of either.
    """
    if not len(smaller) or not len(larger):
        return float("nan")
    ordered = np.sort(larger)
    not_above = np.searchsorted(ordered, smaller, side="right")
    below = np.searchsorted(ordered, smaller, side="left")
    return float(1 - (not_above + below).mean() / (2 * len(ordered)))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of two columns, infinities ranking last; NaN where either is constant or has no two rows."""
    from scipy.stats import rankdata

    ranks = rankdata(x), rankdata(y)
    if len(x) < 2 or any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def permutation_p(scores: np.ndarray, permutations: int, rng: np.random.Generator) -> float:
    """Probability that a random column of each row sums to at least as much as the first, if columns are exchangeable.

    Args:
      scores: (texts, 1 + others), own first.
      permutations: number of random ones. The given one counts too, so p is at least 1 / (1 + permutations).
      rng: draws them.
    """
    rows, own, reached = np.arange(len(scores))[None], scores[:, 0].sum(), 0
    for first in range(0, permutations, 1000):
        columns = rng.integers(scores.shape[1], size=(min(1000, permutations - first), len(scores)))
        # Sums of the same numbers in other columns may differ by rounding.
        reached += int(np.sum(scores[rows, columns].sum(-1) >= own - 1e-9))
    return (1 + reached) / (1 + permutations)


def sign_flip_p(differences: np.ndarray, permutations: int, rng: np.random.Generator) -> float:
    """Probability that paired differences with random signs sum to at least as much as the given ones (one-sided).

    Args:
      differences: (texts,). All 2 ^ texts patterns of signs are tried where they are no more than `permutations`.
      permutations: number of random patterns otherwise. The given one counts too.
      rng: draws them.
    """
    given, count = differences.sum(), len(differences)
    if 2**count <= permutations:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
        return float(np.mean(signs @ differences >= given - 1e-9))
    signs = rng.choice((1, -1), size=(permutations, count))
    return (1 + int(np.sum(signs @ differences >= given - 1e-9))) / (1 + permutations)

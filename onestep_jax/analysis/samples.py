"""Rank statistics of two samples: the area under the ROC curve, and Spearman's correlation."""

from __future__ import annotations

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

"""Rank statistics against brute force and against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from onestep_jax.analysis.ranks import auc, spearman


def test_auc_is_that_of_brute_force_with_ties():
    rng = np.random.default_rng(5)
    near, far = rng.integers(6, size=40) / 7, rng.integers(2, 9, size=33) / 7
    expected = np.mean([(x < y) + (x == y) / 2 for x in near for y in far])
    np.testing.assert_allclose(auc(near, far), expected, rtol=1e-14)
    np.testing.assert_allclose(auc(far, near), 1 - expected, rtol=1e-14)
    assert auc(np.zeros(3), np.ones(2)) == 1
    assert auc(near, near) == 0.5


def test_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(2)
    low, high = rng.normal(size=50), rng.normal(size=30) + 0.3
    labels = np.repeat([0, 1], [len(low), len(high)])
    assert auc(low, high) == pytest.approx(roc_auc_score(labels, np.concatenate([low, high])), rel=1e-14)


def test_auc_of_nothing_is_unknown():
    assert np.isnan([auc(np.zeros(0), np.ones(2)), auc(np.ones(2), np.zeros(0))]).all()


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(3)
    x = rng.integers(5, size=40)
    y = x + rng.integers(4, size=40)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert spearman(np.array([1.0, 2.0, np.inf]), np.arange(3)) == pytest.approx(1)


def test_a_constant_column_has_no_rank_correlation():
    assert np.isnan([spearman(np.ones(3), np.arange(3)), spearman(np.zeros(1), np.zeros(1))]).all()

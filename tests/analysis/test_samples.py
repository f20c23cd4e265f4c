"""Rank statistics against brute force, scikit-learn and SciPy; permutation tests against what they must find."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from onestep_jax.analysis.samples import auc, permutation_p, sign_flip_p, spearman


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


def test_permutation_test_finds_what_is_there_and_nothing_else():
    noise = np.random.default_rng(1).random((30, 5))
    related = noise.copy()
    related[:, 0] += 0.5
    assert permutation_p(related, 999, np.random.default_rng(0)) == 1 / 1000
    assert permutation_p(noise, 2500, np.random.default_rng(0)) > 0.05
    assert permutation_p(np.ones((30, 5)), 99, np.random.default_rng(0)) == 1
    unrelated = [
        permutation_p(np.random.default_rng(i).random((8, 3)), 99, np.random.default_rng(i)) for i in range(300)
    ]
    assert np.mean(np.array(unrelated) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_random_signs_find_what_is_there_and_nothing_else():
    rng = np.random.default_rng(2)
    assert sign_flip_p(np.ones(5), 99, np.random.default_rng(0)) == 1 / 2**5, "all patterns of signs"
    assert sign_flip_p(np.ones(20), 99, np.random.default_rng(0)) == 1 / 100
    assert sign_flip_p(-np.ones(5), 99, np.random.default_rng(0)) == 1
    assert sign_flip_p(np.zeros(20), 99, np.random.default_rng(0)) == 1
    unrelated = [sign_flip_p(rng.normal(size=12), 199, np.random.default_rng(i)) for i in range(300)]
    assert np.mean(np.array(unrelated) <= 0.1) == pytest.approx(0.1, abs=0.05)

"""The capacity of a text, and a cell of Table 3, against numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
from hand_results import TEXT, prefix, result

from onestep_jax.analysis.text_capacity import capacity, summarise_capacities
from onestep_jax.errors import UserError


def test_capacity_by_hand():
    fits = [prefix(4, 4, steps=5), prefix(8, 8, steps=50), prefix(11, 16, steps=90), prefix(3, 32, steps=100)]
    found = capacity(reversed(fits))
    assert (found.tokens, found.c_tokens, found.h_lm) == (8, 8, 16.0)
    assert (found.exact_tokens, found.exact_h_lm) == (8, 16.0)
    assert (found.horizon, found.exact_horizon, found.longest_tried) == (11, 11, 32)
    assert found.best is fits[2]
    assert found.evaluations == 245
    assert found.token_positions == 4 * 5 + 8 * 50 + 16 * 90 + 32 * 100


def test_a_longer_fit_answers_for_shorter_lengths_if_asked():
    fits = [prefix(4, 4), prefix(3, 8), prefix(11, 16)]
    assert capacity(fits).tokens == 4
    assert capacity(fits, nested=True).tokens == 8
    assert capacity(fits, lengths=[4, 8, 10, 11, 12, 16], nested=True).tokens == 11
    assert capacity(fits, lengths=[4, 8, 10, 11, 12, 16]).tokens == 4
    assert capacity(fits, nested=True).exact_tokens == 8


def test_exact_capacity_stands_beside_the_one_at_99_percent():
    hits = np.ones(200, bool)
    hits[150] = False
    fits = [prefix(128, 128), result(hits)]
    found = capacity(fits)
    assert (found.tokens, found.c_tokens, found.h_lm) == (200, 199, 400.0)
    assert (found.exact_tokens, found.exact_h_lm) == (128, 256.0)
    assert (found.horizon, found.exact_horizon) == (200, 150)
    assert capacity(fits, threshold=1.0).tokens == 128


def test_nothing_reconstructed_is_capacity_zero():
    found = capacity([prefix(0, 4), prefix(2, 8)])
    assert (found.tokens, found.c_tokens, found.h_lm, found.exact_tokens) == (0, 0, 0.0, 0)
    assert (found.horizon, found.best.c_tokens) == (2, 2)


def test_the_first_token_without_context_has_no_nats():
    fits = [result([True] * 4, nats=[np.nan, 1, 2, 3])]
    assert capacity(fits).h_lm == 6


def test_fits_of_different_texts_have_no_common_capacity():
    other = dataclasses.replace(prefix(8, 8), tokens=TEXT[:8] + 1)
    with pytest.raises(UserError, match="not prefixes of one text"):
        capacity([prefix(4, 4), other])
    with pytest.raises(UserError, match="no fits"):
        capacity([])


def test_summary_of_capacities_by_hand():
    nats = np.full(16, 0.5)
    rows = [
        [prefix(4, 4), prefix(8, 8), prefix(3, 16)],
        [prefix(4, 4), prefix(8, 8), prefix(16, 16, nats=nats)],
        [prefix(0, 4)],
        [prefix(4, 4), prefix(1, 8)],
    ]
    found = summarise_capacities([capacity(row) for row in rows])
    assert found.texts == 4
    assert (found.c_tokens_max, found.c_tokens_median, found.c_tokens_mean) == (16, 6, 7)
    assert (found.exact_tokens_max, found.exact_tokens_median, found.exact_tokens_mean) == (16, 6, 7)
    assert found.h_lm_mean == found.exact_h_lm_mean == 8
    assert found.h_lm_std == found.exact_h_lm_std == pytest.approx(math.sqrt((64 + 0 + 64 + 0) / 4))
    assert found.at_longest == 1
    with pytest.raises(UserError, match="no capacities"):
        summarise_capacities([])

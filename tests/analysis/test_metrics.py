"""Metrics against brute force and against numbers worked out by hand."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax.analysis.metrics import (
    bits,
    capacity,
    compression,
    exact_horizon,
    horizon,
    reconstructed,
    summarise_capacities,
    summary,
)
from onestep_jax.errors import UserError
from onestep_jax.store.results import TextResult

TEXT = np.arange(200, dtype=np.int32) % 61


def result(hits, *, steps=10, nats=None, vectors=None, seconds=0.5):
    """A text whose tokens are the first of TEXT and come out right where `hits` says so."""
    hits = np.array(hits, bool)
    tokens = TEXT[: len(hits)]
    nats = np.full(len(hits), 2.0, np.float32) if nats is None else np.array(nats, np.float32)
    correct = int(hits.sum())
    return TextResult(
        index=0,
        text_id=f"{len(hits):016x}",
        tokens=tokens,
        vectors=vectors or {"e": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)},
        predicted=np.where(hits, tokens, tokens + 1).astype(np.int32),
        nats=nats,
        accuracy=correct / len(hits),
        c_tokens=correct,
        loss=0.0,
        steps=steps,
        best_step=0,
        seconds=seconds,
        seed=0,
        status="solved" if correct == len(hits) else "exhausted",
        h_lm=float(np.nansum(nats)),
    )


def prefix(right, length, **kwargs):
    """A fit of `length` tokens of which the first `right` come out right."""
    return result(np.arange(length) < right, **kwargs)


# --- horizons ---


@pytest.mark.parametrize("threshold", [1.0, 0.99, 0.9, 0.5])
def test_horizons_by_brute_force(threshold):
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 250))
        tokens = rng.integers(61, size=count)
        wrong = rng.random(count) < rng.choice([0.0, 0.005, 0.02, 0.3])
        predicted = np.where(wrong, tokens + 1, tokens)
        right = [n for n in range(1, count + 1) if int((~wrong[:n]).sum()) >= threshold * n - 1e-9]
        assert horizon(predicted, tokens, threshold) == max(right, default=0)
        first_wrong = next((i for i in range(count) if wrong[i]), count)
        assert exact_horizon(predicted, tokens) == first_wrong


def test_a_horizon_goes_on_beyond_an_error():
    hits = np.ones(200, bool)
    hits[99] = False
    predicted = np.where(hits, TEXT, TEXT + 1)
    assert horizon(predicted, TEXT) == 200
    hits[:2] = False
    predicted = np.where(hits, TEXT, TEXT + 1)
    assert horizon(predicted, TEXT) == 0
    assert horizon(predicted[:0], TEXT[:0]) == 0


def test_one_token_in_a_hundred_may_be_wrong():
    for count in range(100, 201):
        assert reconstructed(prefix(count - 1, count))
        assert horizon(prefix(count - 1, count).predicted, TEXT[:count]) == count
    assert not reconstructed(prefix(98, 99))
    assert not reconstructed(prefix(197, 199))
    assert reconstructed(prefix(98, 99), 0.98)


# --- compression ---


class Words:
    """A tokenizer whose every token is "né ", four bytes in UTF-8."""

    def decode(self, ids, **_):
        return "né " * len(ids)


def test_compression_by_hand(tiny):
    vectors = {"e": np.zeros(32, np.float32), "m": np.zeros(32, np.float32)}
    text = result([True, True, False, True, True], nats=[np.nan, 1.0, 2.0, 3.0, 4.0], vectors=vectors)
    found = compression(dataclasses.replace(tiny, tokenizer=Words()), text)
    assert (found.tokens, found.exact_tokens) == (5, 4)
    assert found.text_bytes == 20
    assert found.id_bytes == 4  # 61 ids need 6 bits each, 30 bits in all
    assert (found.floats, found.vector_bytes, found.model_vector_bytes) == (64, 256, 256)
    assert (found.nats, found.exact_nats) == (10, 8)
    assert found.bits == pytest.approx(10 / math.log(2))
    assert found.tokens_per_float == 4 / 64
    assert found.nats_per_float == 8 / 64
    assert found.expansion == 256 / 20


def test_compression_without_tokenizer_in_bfloat16(tiny):
    half = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params))
    found = compression(half, prefix(8, 8))
    assert (found.text_bytes, found.expansion) == (None, None)
    assert (found.vector_bytes, found.model_vector_bytes) == (32, 16)


@pytest.mark.parametrize(("vocab_size", "expected"), [(64, 6), (65, 7), (128256, 17), (2, 1)])
def test_bits_of_a_token_id(vocab_size, expected):
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=vocab_size), tokenizer=None, dtype=jnp.float32)
    assert compression(model, prefix(8, 8)).id_bytes == expected


def test_a_shared_leaf_counts_for_each_of_its_texts(tiny):
    vectors = {"e": np.zeros(32, np.float32), "m": np.zeros(32, np.float32)}
    text = result([True] * 8, vectors=vectors)
    shared = compression(tiny, text, {"arrangement": "one-step", "share": "m", "group": 16})
    assert shared.floats == 32 + 2
    assert shared.vector_bytes == 4 * 34
    assert compression(tiny, text, {"arrangement": "one-step", "share": None, "group": 16}).floats == 64
    crammed = result([True] * 8, vectors={"mem": np.zeros((3, 32), np.float32)})
    assert compression(tiny, crammed, {"arrangement": "cramming", "vectors": 3}).floats == 96


# --- summaries ---


def test_summary_by_hand():
    texts = [
        result([True] * 4, steps=10, nats=[1, 1, 1, 1]),
        prefix(99, 100, steps=30, nats=[0.08] * 100),
        result([True, False], steps=80, nats=[np.nan, 6]),
    ]
    found = summary(texts)
    assert (found["texts"], found["solved"], found["reconstructed"]) == (3, 1, 2)
    assert found["accuracy_mean"] == pytest.approx((1 + 0.99 + 0.5) / 3)
    assert found["accuracy_median"] == 0.99
    assert (found["tokens"], found["c_tokens"]) == (106, 104)
    assert found["h_lm_nats_mean"] == pytest.approx(6)
    assert found["h_lm_nats_std"] == pytest.approx(math.sqrt(8 / 3))
    assert found["h_lm_bits_mean"] == pytest.approx(bits(6))
    assert found["h_lm_bits_std"] == pytest.approx(math.sqrt(8 / 3) / math.log(2))
    assert (found["steps_mean"], found["steps_median"], found["seconds"]) == (40, 30, 1.5)
    assert summary(texts, threshold=0.5)["reconstructed"] == 3


def test_summary_of_nothing():
    found = summary([])
    assert (found["texts"], found["solved"], found["seconds"]) == (0, 0, 0)
    assert found["accuracy_mean"] is found["h_lm_bits_std"] is found["steps_median"] is None


# --- capacity ---


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

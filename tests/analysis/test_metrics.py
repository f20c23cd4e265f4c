"""Metrics against brute force and against numbers worked out by hand."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_results import TEXT, prefix, result

from onestep_jax.analysis.metrics import compression, exact_horizon, horizon, reconstructed

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

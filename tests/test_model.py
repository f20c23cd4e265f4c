"""The decoder against what transformers computed (tests/golden), and its properties."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, relative
from llama_cases import CASES, GOLDEN
from safetensors.numpy import load_file

from onestep_jax.checkpoint import load_model
from onestep_jax.config import Rope
from onestep_jax.layers import rope_frequencies
from onestep_jax.model import Model, States, input_scale, parameter_counts


class Case(NamedTuple):
    """A golden checkpoint.

    Attributes:
      name: key of CASES.
      model: loaded in float32.
      apply, states: those of the model over its params, compiled once.
      stored: tensors of the weight files, by name.
      golden: what transformers computed, by name.
    """

    name: str
    model: Model
    apply: Callable[[Any], jax.Array]
    states: Callable[[Any], States]
    stored: dict[str, np.ndarray]
    golden: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    stored = {}
    for path in (GOLDEN / request.param).glob("*.safetensors"):
        stored |= load_file(path)
    with np.load(GOLDEN / f"{request.param}.npz") as arrays:
        golden = dict(arrays)
    model = load_model(GOLDEN / request.param, dtype="float32")
    apply, states = (partial(jax.jit(function), model.params) for function in (model.apply, model.states))
    return Case(request.param, model, apply, states, stored, golden)


def test_logits(case: Case):
    logits_TV = case.apply(case.golden["x_TD"])
    assert_close(logits_TV, case.golden["logits_TV"])


def test_hidden_states(case: Case):
    states = case.states(case.golden["x_TD"])
    for ours_TD, theirs_TD in zip(states.hidden_LTD, case.golden["hidden_LTD"], strict=True):
        assert_close(ours_TD, theirs_TD)


def test_input_gradient(case: Case):
    @jax.jit
    @jax.grad
    def gradient(x_TD: jax.Array) -> jax.Array:
        return jnp.sum(case.model.apply(case.model.params, x_TD) * case.golden["cotangent_TV"])

    assert_close(gradient(case.golden["x_TD"]), case.golden["gradient_TD"])


def test_later_inputs_change_no_earlier_row(case: Case):
    x_TD = case.golden["x_TD"]
    before_TV = np.asarray(case.apply(x_TD))
    for t in (0, 7, len(x_TD) - 2):
        changed_TD = x_TD.copy()
        changed_TD[t + 1 :] = 3.0 - 2.0 * x_TD[t + 1 :]
        after_TV = np.asarray(case.apply(changed_TD))
        np.testing.assert_array_equal(after_TV[: t + 1], before_TV[: t + 1])
        assert (after_TV[t + 1 :] != before_TV[t + 1 :]).any(axis=1).all()


def test_earlier_inputs_change_every_later_row(case: Case):
    changed_TD = case.golden["x_TD"].copy()
    changed_TD[0] += 1.0
    change_TV = case.apply(changed_TD) - case.apply(case.golden["x_TD"])
    assert (np.abs(change_TV) > 1e-4).any(axis=1).all()


def test_attention_rows_are_causal_and_sum_to_one(case: Case):
    weights_LHTS = np.asarray(case.states(case.golden["x_TD"]).attention_LHTS)
    c, T = case.model.config, len(case.golden["x_TD"])
    assert weights_LHTS.shape == (c.layers, c.heads, T, T)
    assert (weights_LHTS >= 0).all()
    np.testing.assert_allclose(weights_LHTS.sum(-1), 1.0, atol=1e-6)
    assert (np.triu(weights_LHTS, 1) == 0).all()


def test_embed_is_the_table(case: Case):
    tokens_T = np.arange(case.model.config.vocab_size)[::-1]
    x_TD = jax.jit(case.model.embed)(case.model.params, tokens_T)
    np.testing.assert_array_equal(x_TD, case.stored["model.embed_tokens.weight"][tokens_T])
    assert case.model.embed_width == x_TD.shape[1]


def test_bfloat16(case: Case):
    model = load_model(GOLDEN / case.name, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
    assert model.dtype == jnp.bfloat16
    logits_TV = jax.jit(model.apply)(model.params, case.golden["x_TD"].astype(jnp.bfloat16))
    assert logits_TV.dtype == jnp.bfloat16
    assert 1e-4 < relative(logits_TV, case.golden["logits_TV"]) < 3e-2


def test_many_texts_equal_one_at_a_time(case: Case):
    x_TD = case.golden["x_TD"]
    x_GTD = np.stack([x_TD, x_TD[::-1], 0.5 * x_TD])
    together_GTV = jax.jit(jax.vmap(case.model.apply, in_axes=(None, 0)))(case.model.params, x_GTD)
    for together_TV, one_TD in zip(together_GTV, x_GTD, strict=True):
        assert_close(together_TV, case.apply(one_TD))


def test_parameter_counts(case: Case):
    total = sum(tensor.size for tensor in case.stored.values())
    looked_up = 0 if CASES[case.name]["tie_word_embeddings"] else 97 * 32
    assert parameter_counts(case.model) == {"total": total, "touched": total - looked_up}


def test_input_scale(case: Case):
    assert input_scale(case.model) == pytest.approx(case.stored["model.embed_tokens.weight"].std(), rel=1e-5)


def test_llama3_case_has_kept_blended_and_stretched_wavelengths():
    model = load_model(GOLDEN / "rope_llama3", dtype="float32")
    rope, head_dim = model.config.rope, model.config.head_dim
    ratios = rope_frequencies(rope, head_dim) / rope_frequencies(Rope(theta=rope.theta), head_dim)
    kept, stretched = np.isclose(ratios, 1.0), np.isclose(ratios, 1 / rope.factor)
    blended = (ratios > 1.05 / rope.factor) & (ratios < 0.95)
    assert (kept.sum(), blended.sum(), stretched.sum()) == (1, 1, 6)

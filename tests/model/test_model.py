"""The decoder of every family against what transformers computed (tests/golden), and its properties."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, relative
from family_cases import GOLDEN, GOLDEN_FOLDER
from passes import Pass, forward_and_backward
from safetensors.numpy import load_file

from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.config import Layer, Rope
from onestep_jax.model.cost import parameter_counts
from onestep_jax.model.decoder import Model, input_scale
from onestep_jax.model.families import FAMILIES
from onestep_jax.model.rotary import rope_frequencies


class Case(NamedTuple):
    """A golden checkpoint.

    Attributes:
      name: key of GOLDEN.
      model: loaded in float32.
      run: input vectors → a forward and backward pass with the golden cotangent, compiled once.
      ours: that pass over the golden input vectors.
      stored: tensors of the weight files, by name.
      golden: what transformers computed, by name.
    """

    name: str
    model: Model
    run: Callable[[np.ndarray], Pass]
    ours: Pass
    stored: dict[str, np.ndarray]
    golden: dict[str, np.ndarray]

    @property
    def table(self) -> np.ndarray:
        """The stored embedding table."""
        c = self.model.config
        return self.stored[FAMILIES[c.family].weights(c)[0].name]

    @property
    def layers(self) -> list[Layer]:
        return [self.model.config.layer(i) for i in range(self.model.config.layers)]


@pytest.fixture(scope="module", params=GOLDEN)
def case(request: pytest.FixtureRequest) -> Case:
    stored: dict[str, np.ndarray] = {}
    for path in (GOLDEN_FOLDER / request.param).glob("*.safetensors"):
        stored |= load_file(path)
    with np.load(GOLDEN_FOLDER / f"{request.param}.npz") as arrays:
        golden = dict(arrays)
    model = load_model(GOLDEN_FOLDER / request.param, dtype="float32")
    compiled = jax.jit(partial(forward_and_backward, model))

    def run(x_TD: np.ndarray) -> Pass:
        return jax.tree.map(np.asarray, compiled(model.params, x_TD, golden["cotangent_TV"]))

    return Case(request.param, model, run, run(golden["x_TD"]), stored, golden)


def test_logits(case: Case):
    assert_close(case.ours.logits_TV, case.golden["logits_TV"])


def test_hidden_states(case: Case):
    hidden_LTD = list(case.ours.states.hidden_LTD)
    if case.model.config.embed_width is not None:  # transformers' last state is already projected to the input width
        hidden_LTD.pop()
    for ours_TD, theirs_TD in zip(hidden_LTD, case.golden["hidden_LTD"], strict=True):
        assert_close(ours_TD, theirs_TD)


def test_input_gradient(case: Case):
    assert_close(case.ours.gradient_TD, case.golden["gradient_TD"])


def test_later_inputs_change_no_earlier_row(case: Case):
    x_TD, before_TV = case.golden["x_TD"], case.ours.logits_TV
    for t in (0, 7, len(x_TD) - 2):
        changed_TD = x_TD.copy()
        changed_TD[t + 1 :] = 3.0 - 2.0 * x_TD[t + 1 :]
        after_TV = case.run(changed_TD).logits_TV
        np.testing.assert_array_equal(after_TV[: t + 1], before_TV[: t + 1])
        assert (after_TV[t + 1 :] != before_TV[t + 1 :]).any(axis=1).all()


def test_first_input_changes_every_row_within_reach_of_the_windows_and_no_other(case: Case):
    windows = [layer.window for layer in case.layers]
    reach = len(case.golden["x_TD"]) - 1 if None in windows else sum(window - 1 for window in windows)
    changed_TD = case.golden["x_TD"].copy()
    changed_TD[0] *= -1.0
    change_T = np.abs(case.run(changed_TD).logits_TV - case.ours.logits_TV).max(axis=1)
    assert (change_T[: reach + 1] > 1e-4).all()
    assert (change_T[reach + 1 :] == 0).all()


def test_attention_rows_sum_to_one_over_what_a_position_sees(case: Case):
    weights_LHTS = case.ours.states.attention_LHTS
    c, T = case.model.config, len(case.golden["x_TD"])
    assert weights_LHTS.shape == (c.layers, c.heads, T, T)
    np.testing.assert_allclose(weights_LHTS.sum(-1), 1.0, atol=1e-6)
    for layer, weights_HTS in zip(case.layers, weights_LHTS, strict=True):
        seen_TS = np.tri(T, dtype=bool) & ~np.tri(T, k=-(layer.window or T), dtype=bool)
        assert (weights_HTS[:, seen_TS] > 0).all()
        assert (weights_HTS[:, ~seen_TS] == 0).all()


def test_embed_is_the_scaled_table(case: Case):
    tokens_T = np.arange(case.model.config.vocab_size)[::-1]
    x_TD = jax.jit(case.model.embed)(case.model.params, tokens_T)
    np.testing.assert_array_equal(x_TD, case.table[tokens_T] * np.float32(case.model.config.embed_scale))
    assert case.model.embed_width == x_TD.shape[1]


def test_bfloat16(case: Case):
    model = load_model(GOLDEN_FOLDER / case.name, dtype="bfloat16")
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
        assert_close(together_TV, case.run(one_TD).logits_TV)


def test_parameter_counts(case: Case):
    total = sum(tensor.size for tensor in case.stored.values())
    looked_up = 0 if case.model.config.tied else case.table.size
    assert parameter_counts(case.model.config) == {"total": total, "touched": total - looked_up}


def test_input_scale(case: Case):
    assert input_scale(case.model) == pytest.approx(case.table.std() * case.model.config.embed_scale, rel=1e-5)


def test_goldens_have_tied_and_untied_heads_windows_and_scaled_embeddings():
    configs = [load_model(GOLDEN_FOLDER / name, tokenizer=False).config for name in GOLDEN]
    assert {config.family for config in configs} == FAMILIES.keys()
    assert {config.tied for config in configs} == {True, False}
    assert any(all(layer.window for layer in config.pattern) for config in configs)
    assert any(config.embed_scale != 1.0 for config in configs)


def test_llama3_case_has_kept_blended_and_stretched_wavelengths():
    config = load_model(GOLDEN_FOLDER / "llama3_rope", dtype="float32").config
    rope = config.layer(0).rope
    assert rope is not None
    ratios = rope_frequencies(rope, config.head_dim) / rope_frequencies(Rope(theta=rope.theta), config.head_dim)
    kept, stretched = np.isclose(ratios, 1.0), np.isclose(ratios, 1 / rope.factor)
    blended = (ratios > 1.05 / rope.factor) & (ratios < 0.95)
    assert (kept.sum(), blended.sum(), stretched.sum()) == (1, 1, 6)

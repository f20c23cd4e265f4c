"""A frozen prefix: kept keys and values give what the prefix as inputs gives, in every family; which tokens it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Cramming, Model, OneStep, UserError, load_model, text_nats
from onestep_jax.model.decoder import Params
from onestep_jax.model.token_losses import token_losses
from onestep_jax.prototokens.objective import TEXTS_AT_A_TIME, score_group
from onestep_jax.prototokens.prefixes import (
    Prefixes,
    bos_token,
    pasts_of,
    prefix_of,
    prefix_tokens,
    resolve_prefix,
    stack_prefixes,
)
from onestep_jax.prototokens.schemes import bare, from_description
from onestep_jax.prototokens.targets import settle_rows

GOLDEN = sorted(path.name for path in (Path(__file__).parent.parent / "golden").iterdir() if path.is_dir())
P, T = 5, 9


def close(one, other):
    return float(np.linalg.norm(one - other) / np.linalg.norm(other)) <= 1e-5


def losses(model: Model, params: Params, hidden_TD, tokens_T):
    return token_losses(model.network, params, hidden_TD, tokens_T)[0]


SOME = ("llama", "gpt2")  # rotary and learned positions


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        *(pytest.param(name, False, marks=() if name in SOME else pytest.mark.long) for name in GOLDEN),
        *(pytest.param(name, True, marks=pytest.mark.long) for name in ("llama", "gemma2", "olmo2", "opt_350m")),
    ],
)
def test_kept_keys_and_values_equal_the_prefix_as_inputs(name, remat):
    """Hidden states, losses and gradients; a prefix padded behind its own length gives the same."""
    model = dataclasses.replace(
        load_model(Path(__file__).parent.parent / "golden" / name, dtype="float32"), remat=remat
    )
    generator = np.random.default_rng(0)
    prefix_P, tokens_T = (generator.integers(model.config.vocab_size, size=count) for count in (P, T))
    x_TD = generator.normal(size=(T, model.embed_width)).astype(np.float32)

    def uncached(params, x_TD):
        hidden = model.hidden(params, jnp.concatenate([model.embed(params, prefix_P), x_TD]))[P:]
        return losses(model, params, hidden, tokens_T).sum(), hidden

    def cached(params, x_TD, padding=0):
        length = None if padding == 0 else jnp.int32(P)
        past = model.past(params, jnp.pad(jnp.asarray(prefix_P), (0, padding)), length)
        hidden = model.hidden(params, x_TD, past)
        return losses(model, params, hidden, tokens_T).sum(), hidden

    ways = [jax.jit(jax.value_and_grad(way, 1, has_aux=True)) for way in (uncached, cached)]
    padded = jax.jit(jax.value_and_grad(lambda params, x_TD: cached(params, x_TD, 3), 1, has_aux=True))
    (loss, hidden), gradient = ways[0](model.params, x_TD)
    for way in (ways[1], padded):
        (found_loss, found_hidden), found_gradient = way(model.params, x_TD)
        assert close(found_loss, loss)
        assert close(found_hidden, hidden)
        assert close(found_gradient, gradient)


@pytest.mark.long
@pytest.mark.parametrize("group", [3, TEXTS_AT_A_TIME + 2])
def test_texts_of_a_group_stand_behind_their_own_prefixes(tiny, group):
    """Also in micro-batches, where the backward pass computes activations again; one of the prefixes is empty."""
    generator = np.random.default_rng(1)
    scheme = OneStep(share="m", group=group)
    prefixes = [generator.integers(61, size=count % 4) for count in range(group)]
    tokens_GT, lengths_G = generator.integers(61, size=(group, 6)), np.full(group, 6)
    leaves = {"e": generator.normal(size=(group, 32)), "m": generator.normal(size=32)}

    def total(leaves, past, rows):
        given = (leaves, tokens_GT[rows], lengths_G[rows])
        return score_group(tiny.network, scheme, tiny.params, *given, past=past).nats_G.sum()

    stacked = stack_prefixes(prefixes, 3)
    together = jax.grad(lambda leaves: total(leaves, pasts_of(tiny.network, tiny.params, stacked), slice(None)))(leaves)
    shared = np.zeros(32)
    for g, prefix in enumerate(prefixes):
        past = tiny.past(tiny.params, jnp.asarray(prefix)) if len(prefix) else None
        own = {"e": leaves["e"][g : g + 1], "m": leaves["m"]}
        alone = jax.grad(lambda leaves, past=past, g=g: total(leaves, past, slice(g, g + 1)))(own)
        np.testing.assert_allclose(together["e"][g], alone["e"][0], rtol=1e-4, atol=1e-6)
        shared += np.asarray(alone["m"])
    np.testing.assert_allclose(together["m"], shared, rtol=1e-4, atol=1e-5)


def test_nats_are_given_the_prefix(tiny):
    """The terms of the text in the nats of prefix and text as one; without a BOS that one has no first term."""
    generator = np.random.default_rng(2)
    texts = [generator.integers(61, size=count).astype(np.int32) for count in (4, 7, 7)]
    prefixes = [generator.integers(61, size=count).astype(np.int32) for count in (3, 1, 0)]
    found = text_nats(tiny, texts, prefixes=prefixes)
    for text, prefix, nats in zip(texts, prefixes, found, strict=True):
        (whole,) = text_nats(tiny, [np.concatenate([prefix, text])])
        expected = whole.nats[-len(text) :] if len(prefix) else whole.nats
        np.testing.assert_allclose(nats.nats, expected, rtol=1e-5)
        assert nats.total == pytest.approx(float(expected.sum()), rel=1e-5)


class Words:
    """A tokenizer of three words; the special token in front is that of a string with `add_special_tokens`."""

    def __init__(self, bos=None, eos=None):
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, text, **_):
        return {"input_ids": [7, *map(int, text.split())]}


def test_which_tokens_a_prefix_is(tiny):
    for bos, eos, expected in ((3, 5, [3]), (None, 5, [5])):
        model = dataclasses.replace(tiny, tokenizer=Words(bos, eos))
        assert prefix_tokens(model, "bos").tolist() == expected
        assert prefix_tokens(model, "none").tolist() == prefix_tokens(model, "").tolist() == []
        assert prefix_tokens(model, "4 9").tolist() == [7, 4, 9]
        assert prefix_tokens(model, (1, 2)).tolist() == [1, 2]
    with pytest.raises(UserError, match="names neither a BOS nor an end-of-text token; give --prefix none"):
        prefix_tokens(dataclasses.replace(tiny, tokenizer=Words()), "bos")
    with pytest.raises(UserError, match="prefix: token id 61 is not in the model's vocabulary of 61"):
        prefix_tokens(tiny, (1, 61))
    with pytest.raises(UserError, match="'tiny' has no tokenizer: give a prefix as token ids"):
        prefix_tokens(tiny, "a text")


def test_without_a_tokenizer_config_json_names_the_token(tiny):
    assert bos_token(dataclasses.replace(tiny, described={"bos_token_id": 2, "eos_token_id": [4, 6]})) == 2
    assert bos_token(dataclasses.replace(tiny, described={"eos_token_id": [4, 6]})) == 4
    beyond = {"bos_token_id": 61}  # the table has no row for it
    assert bos_token(dataclasses.replace(tiny, described=beyond)) is None
    assert bos_token(dataclasses.replace(tiny, described={**beyond, "eos_token_id": 4})) == 4
    assert bos_token(dataclasses.replace(tiny, described={})) is None


@pytest.mark.parametrize("scheme", [OneStep(), Cramming(2)])
def test_a_preset_gives_the_prefix_that_a_scheme_leaves_open(tiny, scheme):
    model = dataclasses.replace(tiny, tokenizer=Words(bos=3))
    assert resolve_prefix(scheme, model, "bos").prefix == (3,)
    assert resolve_prefix(scheme, model, "none").describe() == scheme.describe()
    assert resolve_prefix(scheme, tiny, "bos").describe() == scheme.describe()  # which names no such token
    given = dataclasses.replace(scheme, prefix="none")
    assert prefix_of(resolve_prefix(given, model, "bos")).tolist() == []
    with pytest.raises(UserError, match="neither a BOS"):
        resolve_prefix(dataclasses.replace(scheme, prefix="bos"), dataclasses.replace(tiny, described={}))


def test_auto_is_the_bos_where_the_first_position_is_a_sink(tiny, monkeypatch):
    model = dataclasses.replace(tiny, tokenizer=Words(bos=3))
    for sink, expected in ((True, (3,)), (False, None)):
        monkeypatch.setattr("onestep_jax.prototokens.prefixes.has_sink", lambda _, sink=sink: sink)
        assert resolve_prefix(OneStep(), model, "auto").prefix == expected
        assert resolve_prefix(OneStep(prefix="none"), model, "auto").prefix == ()


def test_prefixes_of_the_texts_that_are_all_empty_are_none(tiny, monkeypatch):
    monkeypatch.setattr("onestep_jax.prototokens.prefixes.has_sink", lambda _: True)
    model = dataclasses.replace(tiny, tokenizer=Words(bos=3))
    options: dict[str, Any] = {"arrangement": "one-step", "prefix": "auto"}
    texts = [[4, 5], [6, 7]]
    assert prefix_of(settle_rows(model, texts, None, None, **options).scheme).tolist() == [3]
    for prefixes in (["none", "none"], [[], []]):
        rows = settle_rows(model, texts, None, None, prefixes=prefixes, **options)
        assert (prefix_of(rows.scheme).tolist(), rows.prefixes, rows.word) == ([], (), None)


def test_a_description_keeps_a_prefix_and_has_no_key_for_none():
    for scheme in (OneStep("halves", prefix=np.array([3, 4])), Cramming(2, prefix=[3, 4])):
        assert scheme.describe()["prefix"] == [3, 4]
        assert from_description(scheme.describe()) == scheme
        assert bare(scheme).prefix is None
    assert "prefix" not in OneStep(prefix=()).describe()
    assert from_description(OneStep().describe()).prefix == ()


def test_stacked_prefixes_are_padded(tiny):
    found = stack_prefixes([np.array([4, 5]), np.array([], int)], 3)
    assert isinstance(found, Prefixes)
    assert found.tokens_GP.tolist() == [[4, 5, 0], [0, 0, 0]]
    assert found.lengths_G.tolist() == [2, 0]
    assert stack_prefixes([np.array([], int)], 0) is None
    assert pasts_of(tiny.network, tiny.params, None) is None

"""Attention to `e` against plain forward passes and against attention that must be uniform; ablations by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Model, OneStep, Results, UserError, fit
from onestep_jax.analysis.attention import ABLATIONS, ablate, attention, next_texts
from onestep_jax.model.config import Layer, Rope

LENGTHS = (8, 5, 1, 8, 3)


@pytest.fixture(scope="module")
def results(tiny: Model, one_device, token_lists) -> Results:
    """Five texts of different lengths."""
    texts = [ids[:length] for ids, length in zip(token_lists, LENGTHS, strict=False)]
    return fit(tiny, texts, steps=300, scheme=OneStep(), placement=one_device, slots=8)


def windowed(tiny: Model) -> Model:
    """The tiny model with a window of three positions on its first block."""
    pattern = (Layer(Rope(), window=3), Layer(Rope()))
    return dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, pattern=pattern))


def indifferent(model: Model) -> Model:
    """A model whose queries are zero: attention is spread evenly over what a layer sees."""
    change = jax.tree_util.tree_map_with_path
    return dataclasses.replace(model, params=change(lambda path, x: 0 * x if path[-2].key == "q" else x, model.params))


def weights_of(model: Model, text) -> np.ndarray:
    """(L, H, T, T) attention weights of [e, m, …, m], built and run by itself."""
    x_TD = np.stack([text.vectors["e"], *[text.vectors["m"]] * (len(text.tokens) - 1)])
    return np.asarray(model.states(model.params, jnp.asarray(x_TD)).attention_LHTS)


@pytest.mark.parametrize("batch", [1, 4])
def test_against_each_text_by_itself(tiny: Model, results: Results, batch: int):
    found = attention(tiny, results, batch=batch)
    for i, text in enumerate(results):
        if len(text.tokens) == 1:
            assert np.isnan(np.stack(found.shares)[:, i]).all()
            continue
        weights = weights_of(tiny, text)[:, :, 1:]
        own = np.eye(len(text.tokens), dtype=bool)[1:]
        before = np.tri(len(text.tokens), k=-1, dtype=bool)[1:]
        before[:, 0] = False
        np.testing.assert_allclose(found.shares.e[i], weights[..., 0].mean(-1), rtol=1e-4)
        np.testing.assert_allclose(found.shares.itself[i], weights[..., own].mean(-1), rtol=1e-4)
        others = (weights * before[None, None]).sum(-1).mean(-1)
        np.testing.assert_allclose(found.shares.others[i], others, atol=1e-5)


def test_a_prefix_has_a_share_of_its_own(tiny: Model, results: Results):
    """The four shares sum to one, and what a sink in front draws is not counted as looking at other m."""
    prefix = np.array([1, 2, 3], np.int32)
    texts = tuple(dataclasses.replace(text, prefix=prefix) for text in results if len(text.tokens) > 1)
    found = attention(tiny, dataclasses.replace(results, texts=texts))
    embedded = np.asarray(tiny.embed(tiny.params, prefix), np.float32)
    for i, text in enumerate(texts):
        x_TD = np.concatenate([embedded, [text.vectors["e"]], [text.vectors["m"]] * (len(text.tokens) - 1)])
        weights = np.asarray(tiny.states(tiny.params, jnp.asarray(x_TD)).attention_LHTS)[:, :, 4:]
        np.testing.assert_allclose(found.shares.prefix[i], weights[..., :3].sum(-1).mean(-1), rtol=1e-4)
        np.testing.assert_allclose(found.shares.e[i], weights[..., 3].mean(-1), rtol=1e-4)
        before = np.tri(len(text.tokens), k=-1, dtype=bool)[1:, 1:]
        others = (weights[..., 4:] * before[None, None]).sum(-1).mean(-1)
        np.testing.assert_allclose(found.shares.others[i], others, atol=1e-5)
    for shares in (found.shares, found.uniform):
        np.testing.assert_allclose(np.sum(shares, axis=0), 1, atol=1e-5)
        assert shares.prefix.min() > 0
    np.testing.assert_allclose(found.uniform.prefix[0], np.full((2, 1), np.mean(3 / np.arange(5, 12))))
    narrow = attention(indifferent(windowed(tiny)), dataclasses.replace(results, texts=texts))
    for measured, even in zip(narrow.shares, narrow.uniform, strict=True):
        np.testing.assert_allclose(measured, np.broadcast_to(even, measured.shape), atol=1e-6)
    assert not attention(tiny, results).uniform.prefix[0].any()


def test_an_unguided_e_has_one_more_m(tiny: Model, results: Results):
    scheme = {"arrangement": "unguided-e", "share": None, "group": 1}
    found = attention(tiny, dataclasses.replace(results, scheme=scheme, texts=results.texts[:3]))
    for i, text in enumerate(results.texts[:3]):
        longer = dataclasses.replace(text, tokens=np.append(text.tokens, 0))
        np.testing.assert_allclose(found.shares.e[i], weights_of(tiny, longer)[:, :, 1:, 0].mean(-1), rtol=1e-4)
    np.testing.assert_array_equal(found.texts_T, [3, 3, 2, 2, 2, 2, 1, 1, 1])


def test_curve_is_the_mean_over_the_texts_that_reach_a_position(tiny: Model, results: Results):
    found = attention(tiny, results)
    np.testing.assert_array_equal(found.texts_T, [5, 4, 4, 3, 3, 2, 2, 2])
    for t in range(1, 8):
        weights = [weights_of(tiny, text)[:, :, t, 0] for text in results if len(text.tokens) > t]
        np.testing.assert_allclose(found.e_LHT[..., t], np.mean(weights, axis=0), rtol=1e-4, atol=1e-6)
    assert np.isnan(found.e_LHT[..., 0]).all()


@pytest.mark.parametrize("change", [lambda model: model, windowed], ids=["full", "windowed"])
def test_indifferent_queries_attend_uniformly(tiny: Model, results: Results, change):
    found = attention(indifferent(change(tiny)), results)
    for measured, even in zip(found.shares, found.uniform, strict=True):
        np.testing.assert_allclose(measured, np.broadcast_to(even, measured.shape), atol=1e-6)
    for head in range(4):
        np.testing.assert_allclose(found.e_LHT[:, head], found.uniform_LT, atol=1e-6)


def test_uniform_is_one_over_the_positions_seen(tiny: Model, results: Results):
    found = attention(tiny, results)
    np.testing.assert_allclose(found.uniform.e[0], np.full((2, 1), np.mean(1 / np.arange(2, 9))))
    np.testing.assert_allclose(found.uniform_LT[0, 1:], 1 / np.arange(2, 9))
    narrow = attention(windowed(tiny), results)
    np.testing.assert_allclose(narrow.uniform_LT[0, 1:], [1 / 2, 1 / 3, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(narrow.uniform_LT[1, 1:], 1 / np.arange(2, 9))


def test_trained_attention_is_not_uniform(tiny: Model, results: Results):
    found = attention(tiny, results)
    assert np.nanmax(np.abs(found.shares.e - found.uniform.e)) > 0.05


def accuracy(model: Model, e: np.ndarray, m: np.ndarray, tokens: np.ndarray) -> float:
    x_TD = jnp.asarray(np.stack([e, *[m] * (len(tokens) - 1)]), jnp.float32)
    return float(np.mean(np.asarray(jnp.argmax(model.apply(model.params, x_TD), axis=-1)) == tokens))


def test_ablations_by_hand(tiny: Model, results: Results):
    found = ablate(tiny, results)
    assert found.keys() == {"kept", *ABLATIONS}
    np.testing.assert_array_equal(found["kept"].own, results.accuracy)
    e, m, n = results.vectors["e"], results.vectors["m"], len(results)
    zero = np.zeros_like(e[0])
    by_kind = {
        "e=m": lambda i: (m[i], m[i]),
        "e=0": lambda i: (zero, m[i]),
        "e=mean": lambda i: (e.mean(0), m[i]),
        "e=other": lambda i: (e[(i + 1) % n], m[i]),
        "m=e": lambda i: (e[i], e[i]),
        "m=0": lambda i: (e[i], zero),
        "m=mean": lambda i: (e[i], m.mean(0)),
        "m=other": lambda i: (e[i], m[(i + 1) % n]),
    }
    for kind, vectors in by_kind.items():
        expected = [accuracy(tiny, *vectors(i), text.tokens) for i, text in enumerate(results)]
        np.testing.assert_allclose(found[kind].own, expected, err_msg=kind)
        if not kind.endswith("other"):
            assert np.isnan(found[kind].donor).all()
            continue
        for i in range(n):
            common = min(LENGTHS[i], LENGTHS[(i + 1) % n])
            assert found[kind].donor[i] == accuracy(tiny, *vectors(i), results[(i + 1) % n].tokens[:common])
    assert found["kept"].own.mean() > 2 * found["e=0"].own.mean()
    assert found["e=other"].own.mean() != found["m=other"].own.mean()


def test_next_texts_skip_copies(results: Results):
    texts = [dataclasses.replace(results[0], text_id=name) for name in ("a", "a-1", "b", "a-2")]
    assert [text.text_id for text in next_texts(texts)] == ["b", "b", "a-2", "b"]


def test_refusals(tiny: Model, results: Results):
    with pytest.raises(UserError, match="belong to model"):
        attention(dataclasses.replace(tiny, fingerprint="f" * 16), results)
    with pytest.raises(UserError, match="'halves'"):
        attention(tiny, dataclasses.replace(results, scheme={"arrangement": "halves"}))
    with pytest.raises(UserError, match="one position"):
        attention(tiny, dataclasses.replace(results, texts=(results[2],)))
    with pytest.raises(UserError, match="no fitted texts"):
        attention(tiny, dataclasses.replace(results, texts=()))
    with pytest.raises(UserError, match="did you mean 'e=other'"):
        ablate(tiny, results, kinds=("e=others",))
    with pytest.raises(UserError, match="two different"):
        ablate(tiny, dataclasses.replace(results, texts=(results[0],)), kinds=("m=other",))

"""Noise that vectors survive, and what comes out of them elsewhere."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import OneStep, UserError, fit
from onestep_jax.analysis import robustness
from onestep_jax.analysis.robustness import LADDER, Elsewhere, noise_radii, portability, survival
from onestep_jax.prototokens.reconstruction import decode


@pytest.fixture(scope="module")
def fitted(tiny, token_lists):
    """Three texts of which the last is not exact."""
    results = fit(tiny, token_lists[:3], scheme=OneStep(), margin=0.25, slots=4)
    spoilt = dataclasses.replace(results[2], vectors={name: -x for name, x in results[2].vectors.items()})
    assert results.solved == 3
    return dataclasses.replace(results, texts=(*results.texts[:2], spoilt))


def test_noise_is_that_of_the_identity(fitted):
    one, same, other = (robustness._noisy(fitted[0], sigma, draw) for sigma, draw in ((0.1, 0), (0.2, 0), (0.1, 1)))
    for name, vector in fitted[0].vectors.items():
        moved = one.vectors[name] - vector
        np.testing.assert_allclose(same.vectors[name] - vector, 2 * moved, rtol=1e-3, atol=1e-5)
        assert not np.allclose(other.vectors[name] - vector, moved)
    draws = np.concatenate(
        [(robustness._noisy(fitted[0], 0.1, draw).vectors["e"] - fitted[0].vectors["e"]) for draw in range(100)]
    )
    rms = np.sqrt(np.mean(fitted[0].vectors["e"] ** 2))
    assert draws.std() == pytest.approx(0.1 * rms, rel=0.05)


def test_without_noise_every_copy_is_the_text(tiny, fitted):
    np.testing.assert_array_equal(survival(tiny, fitted, np.zeros(3), draws=4), [1, 1, 0])


def test_the_radius_is_where_the_share_falls_below(tiny, fitted):
    told = []
    radii = noise_radii(tiny, fitted, draws=10, progress=lambda *counts: told.append(counts))
    assert told == [(3, 3)]
    assert np.isnan(radii[2])
    exact = dataclasses.replace(fitted, texts=fitted.texts[:2])
    rungs = np.searchsorted(LADDER, radii[:2])
    np.testing.assert_array_equal(LADDER[rungs], radii[:2])
    assert (survival(tiny, exact, LADDER[rungs], draws=10) >= 0.9).all()
    assert (survival(tiny, exact, LADDER[rungs + 1], draws=10) < 0.9).all()
    alone = noise_radii(tiny, dataclasses.replace(fitted, texts=fitted.texts[1:2]), draws=10)
    assert alone == radii[1:2]


@pytest.mark.parametrize(("bears", "radius"), [(LADDER[0] / 2, 0.0), (LADDER[0], LADDER[0]), (0.1, 0.0884), (9, 1.0)])
def test_the_ladder_is_searched_whole(tiny, fitted, monkeypatch, bears, radius):
    def share(model, results, sigmas, **_):
        return np.where(sigmas <= bears, 1.0, 0.0)

    monkeypatch.setattr(robustness, "survival", share)
    exact = dataclasses.replace(fitted, texts=fitted.texts[:2])
    np.testing.assert_allclose(noise_radii(tiny, exact), radius, rtol=1e-3)


def test_what_comes_out_elsewhere(tiny, fitted):
    here = portability(tiny, fitted, Elsewhere("float32", slots=1))
    right = [int(np.sum(one.tokens == text.tokens)) for one, text in zip(decode(tiny, fitted), fitted, strict=True)]
    assert (here.texts, here.exact, here.tokens, here.tokens_exact) == (3, 2, 24, sum(right))
    assert here.lost == [fitted[2].text_id]
    assert here.recorded == 3
    half = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params))
    low = portability(half, fitted, Elsewhere("bfloat16"))
    assert low.tokens_exact == sum(
        int(np.sum(one.tokens == text.tokens)) for one, text in zip(decode(half, fitted), fitted, strict=True)
    )


def test_no_texts(tiny, fitted):
    none = portability(tiny, dataclasses.replace(fitted, texts=()), Elsewhere("float32", backend="torch"))
    assert (none.texts, none.exact, none.tokens, none.lost) == (0, 0, 0, [])


@pytest.mark.parametrize(
    ("way", "told"),
    [
        (Elsewhere("float32", backend="jaxx"), "unknown backend 'jaxx'"),
        (Elsewhere("float32", slots=0), "slots = 0: expected at least 1"),
        (Elsewhere("float32", attention="flashy"), "unknown attention 'flashy'"),
        (Elsewhere("float32", attention="cudnn"), "it runs on a gpu, and this is a cpu"),
        (Elsewhere("float32", attention="cudnn", backend="torch"), "unknown attention of PyTorch 'cudnn'"),
    ],
)
def test_ways_that_are_none(tiny, fitted, way, told):
    with pytest.raises(UserError, match=told):
        portability(tiny, fitted, way)


def test_no_kernel_behind_a_prefix(tiny, fitted):
    texts = [dataclasses.replace(text, prefix=np.array([1], np.int32)) for text in fitted]
    with pytest.raises(UserError, match="attention cudnn cannot stand behind a prefix, which this run has"):
        portability(tiny, dataclasses.replace(fitted, texts=tuple(texts)), Elsewhere("float32", attention="cudnn"))


def test_without_torch_there_is_one_line(tiny, fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"the PyTorch reference needs torch .* or leave --backend torch away"):
        portability(tiny, fitted, Elsewhere("float32", backend="torch", attention="own"))

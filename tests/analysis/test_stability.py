"""Stability over seeds: vectors whose variance is known, exchange by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Model, OneStep, Results, UserError, fit
from onestep_jax.analysis.stability import exchange, solutions_by_text, stability
from onestep_jax.store.results import TextResult

BLANK = TextResult(
    index=0,
    text_id="",
    tokens=np.zeros(8, np.int32),
    predicted=np.zeros(8, np.int32),
    nats=np.zeros(8, np.float32),
    vectors={},
    accuracy=1.0,
    c_tokens=8,
    loss=0.1,
    steps=50,
    best_step=49,
    seconds=1.0,
    seed=0,
    status="solved",
    h_lm=0.0,
)


def made(e: np.ndarray, m: np.ndarray, accuracy: np.ndarray | None = None) -> Results:
    """Results with given vectors, each (texts, copies, D)."""
    texts = []
    for i in range(e.shape[0]):
        for k in range(e.shape[1]):
            reached = 1.0 if accuracy is None else accuracy[i, k]
            vectors = {"e": e[i, k].astype(np.float32), "m": m[i, k].astype(np.float32)}
            name = f"{i:016x}" + (f"-{k}" if k else "")
            text = dataclasses.replace(BLANK, index=len(texts), text_id=name, vectors=vectors, accuracy=reached)
            texts.append(text)
    return Results(tuple(texts), {"arrangement": "one-step", "share": None, "group": 1}, "f" * 16)


def drawn(texts: int, copies: int, width: int, between: float, seed: int) -> np.ndarray:
    """Vectors of unit variance within a text and of variance `between` of the texts' means."""
    rng = np.random.default_rng(seed)
    means = np.sqrt(between) * rng.standard_normal((texts, 1, width))
    return means + rng.standard_normal((texts, copies, width))


@pytest.fixture(scope="module")
def fitted(tiny: Model, one_device, token_lists) -> Results:
    """Three texts, solved from two seeds each."""
    texts = [ids[:5] for ids in token_lists[:3]]
    return fit(tiny, texts, copies=2, steps=400, scheme=OneStep(), placement=one_device, slots=8)


def test_variance_is_split_as_it_was_drawn():
    found = stability(made(drawn(60, 8, 50, 3.0, 0), drawn(60, 8, 50, 0.0, 1)))
    assert found["e"].icc == pytest.approx(3 / 4, abs=0.03)
    assert found["m"].icc == pytest.approx(0, abs=0.03)
    assert found["m"].share == pytest.approx(found["m"].share_chance, abs=0.02)
    assert found["e"].share > 0.7
    assert (found["e"].texts, found["e"].solutions) == (60, 480)


def test_sums_of_squares_by_hand():
    e = np.array([[[0.0], [2.0]], [[6.0], [8.0]]])
    found = stability(made(e, e))["e"]
    assert found.share == pytest.approx(36 / 40)
    assert found.icc == pytest.approx((36 - 2) / (36 + 2))
    assert found.share_chance == pytest.approx(1 / 3)


def test_unequal_numbers_of_copies():
    vectors = drawn(200, 4, 20, 1.0, 2)
    accuracy = np.where(np.random.default_rng(0).random((200, 4)) < 0.3, 0.5, 1.0)
    found = stability(made(vectors, vectors, accuracy))["e"]
    assert found.solutions < 600
    assert found.icc == pytest.approx(0.5, abs=0.05)


def test_distances_by_hand():
    e = np.array([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, -1.0]]])
    found = stability(made(e, e))["e"]
    np.testing.assert_allclose(sorted(found.within), [0, 2], atol=1e-6)
    np.testing.assert_allclose(found.between, [1, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(found.norms, [1, 2, 3, 1])
    assert found.auc == 0.5
    assert found.nearest == 0.5
    assert found.nearest_chance == pytest.approx(1 / 3)


def test_a_leaf_that_says_the_text_is_told_from_one_that_does_not():
    found = stability(made(drawn(12, 4, 40, 4.0, 0), drawn(12, 4, 40, 0.0, 1)))
    assert found["e"].auc > 0.99
    assert found["e"].nearest == 1
    assert found["m"].auc == pytest.approx(0.5, abs=0.08)
    assert found["m"].nearest == pytest.approx(found["m"].nearest_chance, abs=0.12)
    assert len(found["e"].within) == 12 * 6
    assert len(found["e"].between) == 48 * 47 // 2 - 12 * 6


def test_shared_leaf_has_no_variance():
    found = stability(made(drawn(3, 2, 4, 1.0, 0), np.ones((3, 2, 4))))["m"]
    assert np.isnan([found.icc, found.share]).all()
    np.testing.assert_allclose(found.within, 0, atol=1e-12)


def test_several_vectors_are_one():
    x = drawn(4, 3, 6, 1.0, 0)
    flat, folded = made(x, x), made(x.reshape(4, 3, 2, 3), x)
    assert stability(flat)["e"].icc == stability(folded)["e"].icc


def test_only_sufficient_solutions_count():
    x = drawn(3, 3, 4, 1.0, 0)
    results = made(x, x, np.array([[1, 1, 0.5], [1, 0.5, 1], [1, 0.5, 0.5]]))
    assert solutions_by_text(results, 0.99) == [[0, 1], [3, 5]]
    assert solutions_by_text(results, 0.5) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_exchange_by_hand(tiny: Model, fitted: Results):
    assert (fitted.accuracy == 1).all()
    found = exchange(tiny, fitted)
    assert set(zip(found.e, found.m, strict=True)) == {(a, b) for a in range(6) for b in range(6) if a // 2 == b // 2}
    for a, b, accuracy in zip(*found, strict=True):
        x_TD = jnp.stack([fitted[a].vectors["e"], *[fitted[b].vectors["m"]] * 4])
        predicted = np.asarray(jnp.argmax(tiny.apply(tiny.params, x_TD), axis=-1))
        assert accuracy == np.mean(predicted == fitted[a].tokens)
    assert found.kept == 1
    assert found.exchanged == pytest.approx(np.mean([x for a, b, x in zip(*found, strict=True) if a != b]))
    assert found.exchanged < 1


def test_real_solutions(fitted: Results):
    found = stability(fitted)
    assert found.keys() == {"e", "m"}
    for leaf in found.values():
        assert (leaf.texts, leaf.solutions, len(leaf.within), len(leaf.between)) == (3, 6, 3, 12)


def test_refusals(tiny: Model, fitted: Results):
    with pytest.raises(UserError, match=r"0 texts have two.*copies=R"):
        stability(dataclasses.replace(fitted, texts=fitted.texts[::2]))
    with pytest.raises(UserError, match="1 texts have two"):
        exchange(tiny, dataclasses.replace(fitted, texts=fitted.texts[:3]))
    with pytest.raises(UserError, match="belong to model"):
        exchange(dataclasses.replace(tiny, fingerprint="e" * 16), fitted)
    alone = [dataclasses.replace(text, vectors={"mem": text.vectors["e"][None]}) for text in fitted]
    with pytest.raises(UserError, match="the leaves are mem"):
        exchange(tiny, dataclasses.replace(fitted, texts=tuple(alone)))

"""Growing a text token by token: prices against a plain loop, free tokens, budgets, correlations."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onestep_jax import Model, OneStep, UserError
from onestep_jax.analysis.absorption import CONSTANT, Absorbed, absorb, correlations
from onestep_jax.fitting.optimizers import PRESETS, Optimizer, Schedule
from onestep_jax.model.likelihood import text_nats
from onestep_jax.prototokens.schemes import draw
from onestep_jax.tokens import id_words, text_ids

LENGTHS = (7, 4, 7, 1, 6)


@pytest.fixture(scope="module")
def texts(token_lists) -> list[list[int]]:
    return [ids[:length] for ids, length in zip(token_lists, LENGTHS, strict=False)]


def growing(model: Model, ids: list[int], steps: int, restart: bool, first: int = 1, seed: int = 0) -> list[int]:
    """Updates for each token by a plain loop over prefixes, [e, m, …, m] built by hand."""
    preset, optimizer = PRESETS["fast"], CONSTANT.build()
    words = jnp.asarray(id_words(text_ids([np.array(ids)])[0], seed))[None]
    assert (preset.start, preset.scale) == ("normal", 1)
    drawn = draw(OneStep(), words, model.embed_width, 1.0)
    leaves = {name: leaf[0] for name, leaf in drawn.items()}
    targets = jnp.array(ids)

    def logits(leaves):
        m_TD = jnp.broadcast_to(leaves["m"][None], (len(ids) - 1, model.embed_width))
        return model.apply(model.params, jnp.concatenate([leaves["e"][None], m_TD]))

    def loss(leaves, length):
        log_p = jax.nn.log_softmax(logits(leaves) / preset.temperature)
        return -jnp.sum(log_p[jnp.arange(len(ids)), targets] * (jnp.arange(len(ids)) < length)) / length

    gradient, forward = jax.jit(jax.grad(loss)), jax.jit(logits)
    state, prices = optimizer.init(leaves), [-1] * (first - 1)
    for length in range(first, len(ids) + 1):
        spent = 0
        while (np.argmax(forward(leaves), axis=-1) != targets)[:length].any():
            if spent == steps:
                return [*prices, spent] + [-1] * (len(ids) - length)
            updates, state = optimizer.update(gradient(leaves, length), state, leaves)
            leaves, spent = optax.apply_updates(leaves, updates), spent + 1
        prices.append(spent)
        state = optimizer.init(leaves) if restart and spent else state
    return prices


@pytest.mark.long
@pytest.mark.parametrize("restart", [False, True])
def test_prices_of_a_plain_loop(tiny: Model, texts, restart: bool):
    found = absorb(tiny, texts, steps=100, restart=restart, chunk=7)
    np.testing.assert_array_equal(found.lengths, LENGTHS)
    for i in (0, 1, 3):
        expected = growing(tiny, texts[i], 100, restart)
        # Two programs round differently, so a token may come right one evaluation earlier or later.
        np.testing.assert_allclose(found.evaluations[i, : LENGTHS[i]], expected, atol=1)
        assert (found.evaluations[i, LENGTHS[i] :] == -1).all()
        np.testing.assert_array_equal(
            found.solved[i, : LENGTHS[i]], (np.array(expected) >= 0) & (np.array(expected) < 100)
        )
        assert not found.solved[i, LENGTHS[i] :].any()


@pytest.mark.long
def test_first_prefix_and_budget(tiny: Model, texts):
    found = absorb(tiny, texts[:1], first=3, steps=4)
    np.testing.assert_array_equal(found.evaluations[0], growing(tiny, texts[0], 4, False, first=3))
    assert found.evaluations[0].tolist() == [-1, -1, 4, -1, -1, -1, -1]
    assert not found.solved.any()
    assert found.horizon.tolist() == [0]


@pytest.mark.long
def test_neither_batch_nor_chunk_nor_company_changes_a_price(tiny: Model, texts):
    together = absorb(tiny, texts, steps=60)
    for options in ({"batch": 2, "chunk": 1}, {"chunk": 1000, "batch": 3}):
        other = absorb(tiny, texts, steps=60, **options)
        np.testing.assert_array_equal(together.evaluations, other.evaluations)
        np.testing.assert_array_equal(together.solved, other.solved)
    alone = absorb(tiny, texts[1:2], steps=60)
    np.testing.assert_array_equal(together.evaluations[1, :4], alone.evaluations[0])
    assert (absorb(tiny, texts, steps=60, seed=1).evaluations != together.evaluations).any()


def test_last_cuts(tiny: Model, texts):
    found = absorb(tiny, texts, last=3, steps=60)
    assert found.evaluations.shape == (5, 3)
    np.testing.assert_array_equal(found.lengths, [3, 3, 3, 1, 3])
    np.testing.assert_array_equal(found.horizon[found.solved[:, 2]], 3)


def test_a_token_that_comes_of_itself_costs_nothing(tiny: Model):
    """Texts that the start vectors give already are absorbed without an update, all but their last token."""
    model = dataclasses.replace(tiny, params=jax.tree.map(jnp.zeros_like, tiny.params))
    found = absorb(model, [[0, 0, 0, 5, 0]], steps=3)
    assert found.evaluations.tolist() == [[0, 0, 0, 3, -1]]
    assert found.solved.tolist() == [[True, True, True, False, False]]
    assert found.horizon.tolist() == [3]


def test_nats_stand_at_their_tokens(tiny: Model, texts):
    found = absorb(tiny, texts, steps=1)
    expected = [one.nats for one in text_nats(tiny, texts)]
    for i, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found.nats[i, 1:length], expected[i])
        assert np.isnan(found.nats[i, [0, *range(length, 7)]]).all()
    with_bos = dataclasses.replace(tiny, tokenizer=SimpleNamespace(bos_token_id=60))
    found = absorb(with_bos, texts, steps=1)
    np.testing.assert_allclose(found.nats[1, :4], text_nats(with_bos, texts)[1].nats)


def test_schedules_and_other_optimisers(tiny: Model, texts):
    slow = Optimizer(
        "adamw", {"learning_rate": 0.01}, Schedule("exponential_decay", {"transition_steps": 5, "decay_rate": 0.5})
    )
    fast = absorb(tiny, texts, steps=60, optimizer=optax.adam(0.01))
    assert absorb(tiny, texts, steps=60, optimizer=slow).horizon.sum() < fast.horizon.sum()


def table(evaluations: list[list[int]], nats: list[list[float]]) -> Absorbed:
    prices = np.array(evaluations)
    return Absorbed(prices, prices >= 0, np.array(nats), np.full(len(prices), prices.shape[1]))


def test_correlations():
    nan = float("nan")
    rising = correlations(table([[9, 1, 2, 3, 4]], [[nan, 1.0, 2.0, 3.0, 4.0]]))
    assert rising.pooled == rising.within == rising.position == pytest.approx(1)
    assert np.isnan(rising.partial)  # nats rise with the position: nothing is left of them
    assert rising.tokens == 4
    shuffled = correlations(table([[9, 3, 1, 4, 2], [0, 7, 5, 8, 6]], [[nan, 3.0, 1.0, 4.0, 2.0]] * 2))
    assert shuffled.within == pytest.approx(1)
    assert shuffled.pooled < 0.9
    censored = correlations(table([[9, 1, 2, 50, -1]], [[nan, 1.0, 2.0, 3.0, 0.0]]))
    assert censored.tokens == 3
    assert censored.pooled == pytest.approx(1)
    later = correlations(table([[-1, 99, 1, 2, 3]], [[9.0, 9.0, 1.0, 2.0, 3.0]]))
    assert later.tokens == 3


def test_partial_takes_the_position_off():
    rng = np.random.default_rng(0)
    place = np.tile(np.arange(40.0), (30, 1))
    nats, prices = place + 5 * rng.standard_normal((2, 30, 40))
    found = correlations(table((100 + prices).astype(int).tolist(), nats.tolist()))
    assert found.pooled > 0.7
    assert abs(found.partial) < 0.1
    joint = rng.standard_normal((30, 40))
    found = correlations(table((100 + place + 30 * joint).astype(int).tolist(), joint.tolist()))
    assert found.partial > 0.9


def test_refusals(tiny: Model, texts):
    for name in ("steps", "chunk", "batch", "first", "last"):
        with pytest.raises(UserError, match=f"{name} = 0"):
            absorb(tiny, texts, **{name: 0})
    with pytest.raises(UserError, match="shortest text has 1 tokens"):
        absorb(tiny, texts, first=2)
    with pytest.raises(UserError, match="did you mean 'paper'"):
        absorb(tiny, texts, preset="papers")
    with pytest.raises(UserError, match="vocabulary of 61"):
        absorb(tiny, [[61]])
    with pytest.raises(UserError, match="context has room for 64"):
        absorb(tiny, [[1] * 65])
    assert absorb(tiny, [[1] * 65], last=2, steps=1).lengths.tolist() == [2]

"""The loss against its definition (Eq. 1), its memory, and the schemes that feed it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import OneStep, UserError
from onestep_jax.model import token_losses as token_losses_module
from onestep_jax.model.token_losses import SATURATED, argmax, token_losses, token_scores
from onestep_jax.prototokens import objective
from onestep_jax.prototokens.objective import group_loss, score_group, score_text
from onestep_jax.prototokens.schemes import bare, draw, from_description
from onestep_jax.tokens import id_words


def naive(model, params, h_TD, targets_T, temperature):
    log_p = jax.nn.log_softmax(model.head(params, h_TD).astype(jnp.float32) / temperature)
    return -jnp.take_along_axis(log_p, targets_T[:, None], axis=-1)[:, 0]


@pytest.mark.parametrize("limit", [2**25, 4 * 61 * 3])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_losses_and_gradient_equal_the_definition(tiny, monkeypatch, limit, temperature):
    monkeypatch.setattr(token_losses_module, "LOGITS_BYTES", limit)
    h_TD = jax.random.normal(jax.random.key(0), (10, 32))
    targets_T = jax.random.randint(jax.random.key(1), (10,), 0, 61)
    weights_T = jnp.linspace(0.5, 2.0, 10)

    def ours(h_TD):
        nats_T, predicted_T = token_losses(tiny, tiny.params, h_TD, targets_T, temperature)
        return jnp.sum(weights_T * nats_T), (nats_T, predicted_T)

    def theirs(h_TD):
        nats_T = naive(tiny, tiny.params, h_TD, targets_T, temperature)
        return jnp.sum(weights_T * nats_T), nats_T

    (_, (nats_T, predicted_T)), gradient = jax.value_and_grad(ours, has_aux=True)(h_TD)
    (_, expected_T), expected = jax.value_and_grad(theirs, has_aux=True)(h_TD)
    np.testing.assert_allclose(nats_T, expected_T, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected)
    np.testing.assert_array_equal(predicted_T, jnp.argmax(tiny.head(tiny.params, h_TD), axis=-1))


@pytest.mark.parametrize("limit", [2**25, 4 * 61 * 3])
@pytest.mark.parametrize(("temperature", "margin"), [(1.0, 0.0), (0.25, 1.5), (0.25, 5.0), (0.1, 1.0)])
def test_a_margin_is_taken_from_the_logit_of_the_target(tiny, monkeypatch, limit, temperature, margin):
    monkeypatch.setattr(token_losses_module, "LOGITS_BYTES", limit)
    h_TD = jax.random.normal(jax.random.key(0), (10, 32))
    targets_T = jax.random.randint(jax.random.key(1), (10,), 0, 61)
    targets_T = targets_T.at[:5].set(token_losses(tiny, tiny.params, h_TD, targets_T)[1][:5])  # right, and wrong ones
    weights_T = jnp.linspace(0.5, 2.0, 10)
    shift = max(0.0, margin - SATURATED * temperature)

    def ours(h_TD):
        scores = token_scores(tiny, tiny.params, h_TD, targets_T, temperature, margin)
        return jnp.sum(weights_T * scores.nats_T), scores

    def theirs(h_TD):
        logits_TV = tiny.head(tiny.params, h_TD) - shift * jax.nn.one_hot(targets_T, 61)
        log_p_TV = jax.nn.log_softmax(logits_TV.astype(jnp.float32) / temperature)
        nats_T = -jnp.take_along_axis(log_p_TV, targets_T[:, None], axis=-1)[:, 0]
        return jnp.sum(weights_T * nats_T), nats_T

    (_, scores), gradient = jax.value_and_grad(ours, has_aux=True)(h_TD)
    (_, expected_T), expected = jax.value_and_grad(theirs, has_aux=True)(h_TD)
    np.testing.assert_allclose(scores.nats_T, expected_T, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected)
    logits_TV = np.asarray(tiny.head(tiny.params, h_TD), np.float32)
    np.testing.assert_array_equal(scores.predicted_T, logits_TV.argmax(-1))
    leads_T = [row[t] - np.delete(row, t).max() for row, t in zip(logits_TV, targets_T, strict=True)]
    np.testing.assert_allclose(scores.leads_T, leads_T, rtol=1e-5, atol=1e-5)
    assert (np.array(scores.leads_T) >= 0).tolist() == (scores.predicted_T == targets_T).tolist()
    assert (np.array(scores.leads_T)[:5] > 0).all()
    assert token_scores(tiny, tiny.params, h_TD, targets_T, temperature).leads_T is None


def test_of_equal_logits_the_first_is_the_argmax():
    logits_TV = jax.random.randint(jax.random.key(0), (200, 12), 0, 4).astype(jnp.bfloat16)
    assert (jnp.sum(logits_TV == logits_TV.max(-1, keepdims=True), -1) > 1).mean() > 0.5
    np.testing.assert_array_equal(argmax(logits_TV), np.argmax(np.asarray(logits_TV), axis=-1))


def test_the_argmax_of_no_numbers_is_an_id():
    logits_TV = jnp.array([[0.0, jnp.nan, 1.0], [jnp.nan] * 3, [-jnp.inf] * 3, [jnp.inf, 0.0, jnp.inf]])
    ids_T = argmax(logits_TV)
    assert ids_T.dtype == jnp.int32
    assert ((ids_T >= 0) & (ids_T < 3)).all()
    np.testing.assert_array_equal(ids_T[2:], [0, 0])


def test_no_array_of_positions_by_vocabulary(tiny, monkeypatch):
    def largest(jaxpr):
        sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "size")]
        inner = []
        for eqn in jaxpr.eqns:
            for value in eqn.params.values():
                for sub in value if isinstance(value, (list, tuple)) else [value]:
                    sub = getattr(sub, "jaxpr", sub)
                    if hasattr(sub, "eqns"):
                        inner.append(largest(sub))
        return max([0, *sizes, *inner])

    def traced():
        def loss(h_TD):
            return token_losses(tiny, tiny.params, h_TD, jnp.zeros(48, jnp.int32))[0].sum()

        return jax.make_jaxpr(jax.grad(loss))(jnp.zeros((48, 32)))

    assert largest(traced().jaxpr) >= 48 * 61
    monkeypatch.setattr(token_losses_module, "LOGITS_BYTES", 4 * 61 * 8)
    assert largest(traced().jaxpr) < 48 * 61


def test_padding_changes_nothing(tiny):
    leaves = draw(OneStep(), jnp.asarray(id_words("0123456789abcdef", 0))[None], 32, 1.0)
    leaves = {name: leaf[0] for name, leaf in leaves.items()}
    tokens = jax.random.randint(jax.random.key(1), (6,), 0, 61)
    nats, hits, predicted, _ = score_text(tiny, OneStep(), tiny.params, leaves, tokens, jnp.int32(6))
    padded = score_text(tiny, OneStep(), tiny.params, leaves, jnp.pad(tokens, (0, 10)), jnp.int32(6))
    assert nats == pytest.approx(float(padded[0]), rel=1e-6)
    np.testing.assert_array_equal(hits, padded[1][:6])
    assert not padded[1][6:].any()
    np.testing.assert_array_equal(predicted, padded[2][:6])


def test_group_is_its_texts(tiny):
    scheme = OneStep(share="m", group=2)
    ids = jnp.stack([id_words("0123456789abcdef", 0), id_words("fedcba9876543210", 0)])
    leaves = draw(scheme, ids, 32, 1.0)
    assert leaves["e"].shape == (2, 32)
    assert leaves["m"].shape == (32,)
    tokens, lengths = jax.random.randint(jax.random.key(1), (2, 5), 0, 61), jnp.array([5, 3])
    score = score_group(tiny, scheme, tiny.params, leaves, tokens, lengths)
    for g in range(2):
        one = {"e": leaves["e"][g], "m": leaves["m"]}
        assert score.nats_G[g] == pytest.approx(
            float(score_text(tiny, scheme, tiny.params, one, tokens[g], lengths[g])[0])
        )
    assert group_loss(score.nats_G, lengths) == pytest.approx(float(score.nats_G.mean()))
    empty = score_group(tiny, scheme, tiny.params, leaves, tokens, jnp.array([5, 0]))
    assert group_loss(empty.nats_G, jnp.array([5, 0])) == pytest.approx(float(score.nats_G[0]), rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("share", [None, "e", "m"])
def test_micro_batches_change_nothing(tiny, monkeypatch, share):
    scheme = OneStep(share=share, group=5)
    leaves = draw(scheme, jnp.stack([id_words(f"{i:016x}", 0) for i in range(5)]), 32, 1.0)
    tokens, lengths = jax.random.randint(jax.random.key(1), (5, 6), 0, 61), jnp.array([6, 4, 6, 1, 0])

    def loss(leaves):
        score = score_group(tiny, scheme, tiny.params, leaves, tokens, lengths)
        return group_loss(score.nats_G, lengths), score

    (whole, score), gradient = jax.value_and_grad(loss, has_aux=True)(leaves)
    monkeypatch.setattr(objective, "TEXTS_AT_A_TIME", 2)
    assert "scan" in str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(leaves))
    (walked, again), other = jax.value_and_grad(loss, has_aux=True)(leaves)
    assert walked == pytest.approx(float(whole), rel=1e-6)
    np.testing.assert_array_equal(score.predicted_GT, again.predicted_GT)
    np.testing.assert_array_equal(score.hits_GT, again.hits_GT)
    for name in ("e", "m"):
        assert np.linalg.norm(gradient[name] - other[name]) <= 1e-5 * np.linalg.norm(gradient[name])


def test_start_vectors_hang_on_identity_alone():
    a, b = id_words("0123456789abcdef", 0), id_words("0123456789abcdef-1", 0)
    first = draw(OneStep(group=2), jnp.stack([a, b]), 16, 1.0)
    swapped = draw(OneStep(group=2), jnp.stack([b, a]), 16, 1.0)
    np.testing.assert_array_equal(first["e"], swapped["e"][::-1])
    everything = [first["e"][0], first["e"][1], first["m"][0]]
    everything += [draw(OneStep(), jnp.asarray(id_words("0123456789abcdef", 1))[None], 16, 1.0)["e"][0]]
    assert len({vector.tobytes() for vector in map(np.asarray, everything)}) == 4


def test_start_scale():
    leaf = draw(OneStep(), jnp.asarray(id_words("0123456789abcdef", 0))[None], 10_000, 0.25)["e"]
    assert np.std(leaf) == pytest.approx(0.25, rel=0.05)


def test_descriptions():
    scheme = OneStep(share="e", group=3)
    assert bare(from_description(scheme.describe())) == scheme
    with pytest.raises(UserError, match=r"unknown arrangement 'onestep'.*did you mean 'one-step'"):
        from_description({"arrangement": "onestep"})
    with pytest.raises(UserError, match=r"share='x'.* has e and m to share"):
        OneStep(share="x")
    with pytest.raises(UserError, match="at least 1"):
        OneStep(group=0)
    with pytest.raises(UserError, match=r"expected vectors for e and m, got \['e'\]"):
        OneStep(start={"e": np.zeros((1, 4))})

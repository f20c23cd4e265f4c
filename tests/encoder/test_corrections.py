"""Corrections: the loss and its gradients against ours of `fit`, against hand-written steps and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, relative

from onestep_jax import Design
from onestep_jax.encoder.corrections import correct, init_corrections, score, unit_rows
from onestep_jax.prototokens.objective import score_text

T, D = 5, 32
MATRIX = Design(length=T, corrections=3)
DIAGONAL = dataclasses.replace(MATRIX, step="diagonal")
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def tokens_T():
    return jax.random.randint(jax.random.key(1), (T,), 0, 61)


@pytest.fixture(scope="module")
def z_LD():
    return jax.random.normal(jax.random.key(2), (2, D))


@pytest.fixture(scope="module")
def steps_KS():
    """Weights of diagonal steps."""
    return 0.2 + 0.1 * jax.random.normal(jax.random.key(3), (3, 2 * D))


def total(little, design, steps, z_LD, tokens_T, **how):
    """Sum of the losses before the first correction and after each."""
    z_LD, (_, scored) = correct(
        little.network, design, little.params, {"steps": steps}, None, z_LD, tokens_T, TEMPERATURE, **how
    )
    last = score(little.network, design, little.params, None, z_LD, tokens_T, TEMPERATURE)
    return scored.nats.sum() + last.nats


# --- the loss ---


@pytest.mark.parametrize("prefix", [(), (7, 3, 9)])
@pytest.mark.parametrize("arrangement", ["one-step", pytest.param("unguided-e", marks=pytest.mark.long)])
def test_the_loss_is_that_of_a_fit(little, tokens_T, z_LD, prefix, arrangement):
    design = Design(length=T, arrangement=arrangement)
    past = little.past(little.params, jnp.asarray(prefix)) if prefix else None

    def ours(z_LD):
        scored = score(little.network, design, little.params, past, z_LD, tokens_T, TEMPERATURE)
        return scored.nats, scored.predicted_T

    def theirs(z_LD):
        leaves = {"e": z_LD[0], "m": z_LD[1]}
        scheme, length = design.scheme, jnp.int32(T)
        found = score_text(little.network, scheme, little.params, leaves, tokens_T, length, TEMPERATURE, past)
        return found.nats, found.predicted_T

    (nats, predicted_T), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(z_LD)
    (expected, expected_T), expected_gradient = jax.jit(jax.value_and_grad(theirs, has_aux=True))(z_LD)
    assert nats == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_array_equal(predicted_T, expected_T)
    assert_close(gradient, expected_gradient)


# --- steps ---


def test_zero_weights_change_nothing(little, tokens_T, z_LD):
    for design in (MATRIX, DIAGONAL):
        weights = init_corrections(little.network, design)
        found, (before_KLD, scored) = correct(little.network, design, little.params, weights, None, z_LD, tokens_T)
        np.testing.assert_array_equal(found, z_LD)
        np.testing.assert_array_equal(before_KLD, np.stack([z_LD] * 3))
        assert len(set(np.asarray(scored.nats).tolist())) == 1
    assert init_corrections(little.network, dataclasses.replace(MATRIX, corrections=0)) == {}


def test_steps_are_those_that_are_written_down(little, tokens_T, z_LD, steps_KS):
    """z ← z − w ∘ ĝ, with ĝ of root mean square 1 in e and in m; fewer steps are the first ones."""
    gradient = jax.jit(
        jax.grad(
            lambda z_LD: (
                score_text(
                    little.network,
                    MATRIX.scheme,
                    little.params,
                    {"e": z_LD[0], "m": z_LD[1]},
                    tokens_T,
                    jnp.int32(T),
                    TEMPERATURE,
                ).nats
            )
        )
    )
    way = [np.asarray(z_LD)]
    for weight in np.asarray(steps_KS):
        g_LD = np.asarray(gradient(way[-1]))
        unit_LD = g_LD / np.sqrt((g_LD**2).mean(axis=1, keepdims=True))
        way.append(way[-1] - weight.reshape(2, D) * unit_LD)
    given = (little.network, DIAGONAL, little.params, {"steps": steps_KS}, None, z_LD, tokens_T, TEMPERATURE)
    found, (before_KLD, scored) = correct(*given)
    assert relative(found, way[3]) < 1e-4
    assert relative(before_KLD, np.stack(way[:3])) < 1e-4
    assert scored.predicted_T.shape == (3, T)
    two, (before_KLD, _) = correct(*given, steps=2)
    np.testing.assert_allclose(two, found + (way[2] - way[3]), atol=1e-4)
    assert before_KLD.shape == (2, 2, D)
    none, (before_KLD, scored) = correct(*given, steps=0)
    np.testing.assert_array_equal(none, z_LD)
    assert (before_KLD.shape, scored.nats.shape, scored.predicted_T.shape) == ((0, 2, D), (0,), (0, T))


def test_a_diagonal_step_is_that_of_a_diagonal_matrix(little, tokens_T, z_LD, steps_KS):
    matrices = jax.vmap(jnp.diag)(steps_KS)
    ways = [
        correct(little.network, design, little.params, {"steps": steps}, None, z_LD, tokens_T)[0]
        for design, steps in ((DIAGONAL, steps_KS), (MATRIX, matrices))
    ]
    assert relative(ways[0], z_LD) > 0.1
    assert relative(ways[0], ways[1]) < 1e-4
    once = correct(
        little.network, DIAGONAL, little.params, {"steps": jnp.ones((3, 2 * D))}, None, z_LD, tokens_T, steps=1
    )[0]
    matrix = jax.random.normal(jax.random.key(5), (3, 2 * D, 2 * D))
    turned = correct(little.network, MATRIX, little.params, {"steps": matrix}, None, z_LD, tokens_T, steps=1)[0]
    expected = np.asarray(z_LD) - (np.asarray(matrix[0]) @ np.ravel(z_LD - once)).reshape(2, D)
    assert relative(turned, expected) < 1e-4


# --- derivatives ---


@pytest.fixture(scope="module")
def trained(little, tokens_T):
    """The sum of the losses and its gradient, in weights and beginning; of the first order where the last is True."""

    def loss(given, first_order):
        return total(little, DIAGONAL, *given, tokens_T, first_order=first_order)

    return jax.jit(jax.value_and_grad(loss), static_argnums=1)


@pytest.mark.long
def test_first_order_is_the_gradient_with_the_gradients_held_constant(little, trained, tokens_T, z_LD, steps_KS):
    def loss(z_LD):
        """Eq. 1, written out."""
        x_TD = jnp.concatenate([z_LD[:1], jnp.tile(z_LD[1:], (T - 1, 1))])
        log_p_TV = jax.nn.log_softmax(little.apply(little.params, x_TD) / TEMPERATURE)
        return -log_p_TV[jnp.arange(T), tokens_T].mean()

    def held(given):
        def step(z_LD, weight):
            nats, g_LD = jax.value_and_grad(loss)(z_LD)
            g_LD = jax.lax.stop_gradient(g_LD)
            unit_LD = g_LD / jnp.sqrt(jnp.mean(g_LD**2, axis=1, keepdims=True))
            return z_LD - weight.reshape(2, D) * unit_LD, nats

        z_LD, nats_K = jax.lax.scan(step, given[1], given[0])
        return nats_K.sum() + loss(z_LD)

    given = (steps_KS, z_LD)
    expected, gradients = jax.jit(jax.value_and_grad(held))(given)
    first, first_gradients = trained(given, True)
    second, second_gradients = trained(given, False)
    assert first == pytest.approx(float(expected), rel=1e-5)
    assert first == pytest.approx(float(second), rel=1e-6)
    for one, other, whole in zip(first_gradients, gradients, second_gradients, strict=True):
        assert relative(one, other) < 1e-3
        assert relative(one, whole) > 0.05


@pytest.mark.long
def test_the_whole_gradient_is_that_of_finite_differences(trained, z_LD, steps_KS):
    """In the weights and in where the corrections begin, along its own direction; that of the first order is not."""
    given = (0.2 * steps_KS, z_LD)
    whole, first = trained(given, False)[1], trained(given, True)[1]
    for part in (0, 1):
        direction = tuple(g / jnp.linalg.norm(g) if i == part else 0 * g for i, g in enumerate(whole))

        def at(size, direction=direction):
            return trained(jax.tree.map(lambda a, b: a + size * b, given, direction), False)[0]

        wide, narrow = ((at(h) - at(-h)) / (2 * h) for h in (0.04, 0.02))
        slope = float(4 * narrow - wide) / 3  # without the error of the third derivative
        told, truncated = (float(jnp.vdot(found[part], direction[part])) for found in (whole, first))
        assert told == pytest.approx(slope, rel=2e-3)
        assert abs(truncated - slope) > 0.005 * abs(slope)


def test_rows_of_one_size_have_finite_derivatives():
    rows = jnp.array([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [1e-9, 0.0, 0.0]])
    unit = unit_rows(rows)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(unit**2, axis=1)), [1, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(unit[0], rows[0] / np.sqrt(25 / 3), rtol=1e-6)
    jacobian = jax.jacrev(unit_rows)(rows)
    assert jnp.isfinite(jacobian).all()
    cotangent = jax.grad(lambda rows: jnp.sum(unit_rows(rows) ** 2))(rows)
    assert jnp.isfinite(cotangent).all()
    assert not cotangent[1].any()

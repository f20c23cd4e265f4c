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
TEMPERATURE = 0.7
MATRIX = Design(length=T, corrections=3, step="matrix", temperature=TEMPERATURE)
DIAGONAL = dataclasses.replace(MATRIX, step="diagonal")
NETWORK = dataclasses.replace(MATRIX, step="network")


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


def given_weights(design, steps):
    """Weights of an encoder whose steps are of one kind."""
    return {"steps": {design.step: steps}}


def total(little, design, steps, z_LD, tokens_T, **how):
    """Sum of the losses before the first correction and after each."""
    z_LD, (_, scored) = correct(
        little.network, design, little.params, given_weights(design, steps), None, z_LD, tokens_T, **how
    )
    last = score(little.network, design, little.params, None, z_LD, tokens_T)
    return scored.loss.sum() + last.loss


# --- the loss ---


@pytest.mark.parametrize("prefix", [(), (7, 3, 9)])
@pytest.mark.parametrize("arrangement", ["one-step", pytest.param("unguided-e", marks=pytest.mark.long)])
def test_the_loss_is_that_of_a_fit(little, tokens_T, z_LD, prefix, arrangement):
    design = dataclasses.replace(MATRIX, arrangement=arrangement)
    past = little.past(little.params, jnp.asarray(prefix)) if prefix else None

    def ours(z_LD):
        scored = score(little.network, design, little.params, past, z_LD, tokens_T)
        return scored.loss, (scored.nats, scored.predicted_T)

    def theirs(z_LD):
        leaves = {"e": z_LD[0], "m": z_LD[1]}
        scheme, length = design.scheme, jnp.int32(T)
        loss, nats = (
            score_text(little.network, scheme, little.params, leaves, tokens_T, length, temperature, past)
            for temperature in (TEMPERATURE, 1.0)
        )
        return loss.nats, (nats.nats, nats.predicted_T)

    (loss, (nats, predicted_T)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(z_LD)
    (expected, (expected_nats, expected_T)), expected_gradient = jax.jit(jax.value_and_grad(theirs, has_aux=True))(z_LD)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert nats == pytest.approx(float(expected_nats), rel=1e-5)
    assert abs(loss - nats) > 0.1
    np.testing.assert_array_equal(predicted_T, expected_T)
    assert_close(gradient, expected_gradient)


def test_the_loss_is_in_the_dtype_of_the_weights(half, tokens_T, z_LD):
    """As in the decode program; the gradient is float32. Operations one by one, as fused ones round elsewhere."""
    leaves = {"e": z_LD[0], "m": z_LD[1]}
    expected = score_text(half.network, MATRIX.scheme, half.params, leaves, tokens_T, jnp.int32(T))
    found = score(half.network, MATRIX, half.params, None, z_LD, tokens_T)
    assert found.nats == pytest.approx(float(expected.nats), rel=1e-6)
    np.testing.assert_array_equal(found.predicted_T, expected.predicted_T)
    gradient = jax.eval_shape(
        jax.grad(lambda z_LD: score(half.network, MATRIX, half.params, None, z_LD, tokens_T).loss), z_LD
    )
    assert (found.loss.dtype, gradient.dtype) == (jnp.float32, jnp.float32)


# --- steps ---


def test_zero_weights_change_nothing(little, tokens_T, z_LD):
    for design in (MATRIX, DIAGONAL, NETWORK):
        weights = init_corrections(little.network, design, jax.random.key(0)) | {"constant": jnp.zeros((2, D))}
        found, (before_KLD, scored) = correct(little.network, design, little.params, weights, None, z_LD, tokens_T)
        np.testing.assert_array_equal(found, z_LD)
        np.testing.assert_array_equal(before_KLD, np.stack([z_LD] * 3))
        assert len(set(np.asarray(scored.nats).tolist())) == 1
    assert init_corrections(little.network, dataclasses.replace(MATRIX, corrections=0), jax.random.key(0)) == {}


@pytest.fixture(scope="module")
def unit_gradient(little, tokens_T):
    """z (2, D) → the gradient of the loss of `fit`, e's and m's of root mean square 1."""

    def loss(z_LD):
        leaves = {"e": z_LD[0], "m": z_LD[1]}
        length = jnp.int32(T)
        return score_text(little.network, MATRIX.scheme, little.params, leaves, tokens_T, length, TEMPERATURE).nats

    gradient = jax.jit(jax.grad(loss))
    return lambda z_LD: rows_of_rms_1(np.asarray(gradient(z_LD)))


def rows_of_rms_1(z_LD):
    return z_LD / np.sqrt((z_LD**2).mean(axis=1, keepdims=True))


def test_steps_are_those_that_are_written_down(little, tokens_T, z_LD, steps_KS, unit_gradient):
    """z ← z − w ∘ ĝ, with ĝ of root mean square 1 in e and in m; fewer steps are the first ones."""
    way = [np.asarray(z_LD)]
    for weight in np.asarray(steps_KS):
        way.append(way[-1] - weight.reshape(2, D) * unit_gradient(way[-1]))
    given = (
        little.network,
        DIAGONAL,
        little.params,
        given_weights(DIAGONAL, steps_KS),
        None,
        z_LD,
        tokens_T,
    )
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
        correct(little.network, design, little.params, given_weights(design, steps), None, z_LD, tokens_T)[0]
        for design, steps in ((DIAGONAL, steps_KS), (MATRIX, matrices))
    ]
    assert relative(ways[0], z_LD) > 0.1
    assert relative(ways[0], ways[1]) < 1e-4
    matrix = jax.random.normal(jax.random.key(5), (3, 2 * D, 2 * D))
    once, turned = (
        correct(little.network, design, little.params, given_weights(design, steps), None, z_LD, tokens_T, steps=1)[0]
        for design, steps in ((DIAGONAL, jnp.ones((3, 2 * D))), (MATRIX, matrix))
    )
    expected = np.asarray(z_LD) - (np.asarray(matrix[0]) @ np.ravel(z_LD - once)).reshape(2, D)
    assert relative(turned, expected) < 1e-4


def test_a_network_has_the_terms_that_are_written_down(little, tokens_T, z_LD, unit_gradient):
    """z ← z − (s P ĝ + d ∘ ĝ + gelu(a ∘ (x A) + b) B), with x of this gradient, of the one before and of z − z₀."""
    rng = np.random.default_rng(0)
    weights = init_corrections(little.network, NETWORK, jax.random.key(0)) | {"constant": np.zeros((2, D))}
    weights = jax.tree.map(lambda leaf: (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(np.float32), weights)
    each, shared = weights["steps"], weights["network"]
    z, before = np.asarray(z_LD), np.zeros(2 * D, np.float32)
    for k in range(3):
        unit = unit_gradient(z).ravel()
        x = np.concatenate([unit, before, rows_of_rms_1(z - weights["constant"]).ravel()]) @ shared["in"]
        hidden = np.asarray(jax.nn.gelu(each["gain"][k] * x + each["bias"][k]))
        change = each["scale"][k] * (shared["matrix"] @ unit) + each["diagonal"][k] * unit + hidden @ shared["out"]
        z, before = z - change.reshape(2, D), unit
    found, _ = correct(little.network, NETWORK, little.params, weights, None, z_LD, tokens_T)
    assert relative(found, z_LD) > 0.1
    assert relative(found, z) < 1e-4


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


@pytest.mark.long
def test_rematerialised_corrections_have_the_same_gradient_in_less_memory(little, tokens_T, z_LD):
    design = dataclasses.replace(NETWORK, corrections=12)
    weights = init_corrections(little.network, design, jax.random.key(0)) | {"constant": jnp.zeros((2, D))}
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.05 * rng.normal(size=leaf.shape), jnp.float32), weights)

    def loss(weights, z_LD, remat):
        found = correct(little.network, design, little.params, weights, None, z_LD, tokens_T, remat=remat)
        return found[1][1].loss.sum()

    made = [jax.jit(jax.value_and_grad(loss), static_argnums=2).lower(weights, z_LD, remat) for remat in (False, True)]
    kept, again = (lowered.compile() for lowered in made)
    (value, gradient), (expected, expected_gradient) = again(weights, z_LD), kept(weights, z_LD)
    assert value == pytest.approx(float(expected), rel=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert_close(one, other)
    memory = [program.memory_analysis().temp_size_in_bytes for program in (again, kept)]
    assert memory[0] < 0.5 * memory[1], memory


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

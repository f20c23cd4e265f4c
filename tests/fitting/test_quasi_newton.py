"""L-BFGS without a line search: optax's steps where all is convex, and safe ones where it is not."""

import itertools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onestep_jax import Optimizer, UserError
from onestep_jax.fitting.lbfgs import CautiousLbfgsState, cautious_lbfgs

CURVES = jnp.array([1.0, 2.0, 5.0, 0.5, 3.0, 1.5])


def bowl(x):
    """Convex, with its least value 0 at 1."""
    return 0.5 * jnp.sum(CURVES * jnp.square(x["a"] - 1)) + 0.5 * jnp.square(x["b"] - 1).sum()


def saddle(x):
    return -0.5 * jnp.square(x["a"]).sum() - 0.25 * jnp.square(x["b"]).sum()


def start():
    return {"a": jnp.linspace(-1.0, 1.0, 6), "b": jnp.array([[0.3, -0.2]])}


def descend(optimizer, loss, x, steps):
    """Points, one a step, and the last state."""
    state, points = optimizer.init(x), [x]
    move = jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = move(jax.grad(loss)(x), state, x)
        x = optax.apply_updates(x, updates)
        points.append(x)
    return points, state


def test_convex_steps_are_those_of_optax():
    ours, _ = descend(cautious_lbfgs(0.5, memory_size=3, max_rms=10.0), bowl, start(), 8)
    theirs, _ = descend(optax.lbfgs(0.5, memory_size=3, linesearch=None), bowl, start(), 8)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_bowl_is_left_at_its_bottom():
    points, _ = descend(cautious_lbfgs(max_rms=10.0), bowl, start(), 25)
    chex.assert_trees_all_close(points[-1], jax.tree.map(jnp.ones_like, start()), atol=1e-5)


def test_no_step_is_longer_than_the_bound():
    points, _ = descend(cautious_lbfgs(max_rms=0.01), bowl, start(), 5)
    for before, after in itertools.pairwise(points):
        flat = np.concatenate([np.ravel(after[name] - before[name]) for name in "ab"])
        assert np.sqrt(np.mean(flat[flat != 0] ** 2)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("diagonal", [None, 0.9])
def test_components_without_a_gradient_change_no_step(diagonal):
    """Such are the vectors of empty places, in a group that is not full."""
    optimizer = cautious_lbfgs(1.0, memory_size=3, max_rms=0.02, diagonal=diagonal)
    points, _ = descend(optimizer, bowl, start(), 5)
    padded, _ = descend(optimizer, bowl, start() | {"empty": jnp.ones((7, 4))}, 5)
    for point, same in zip(points, padded, strict=True):
        chex.assert_trees_all_close(point, {name: same[name] for name in point}, rtol=1e-6)
    assert np.all(padded[-1]["empty"] == 1)


def test_without_any_gradient_nothing_moves():
    optimizer = cautious_lbfgs(1.0, diagonal=0.9)
    points, _ = descend(optimizer, lambda x: 0.0 * x["a"].sum(), start(), 2)
    chex.assert_trees_all_equal(points[-1], start())


def test_pairs_of_negative_curvature_are_left_out():
    points, state = descend(cautious_lbfgs(), saddle, start(), 6)
    assert not np.any(state.weights_M)
    assert not np.any(state.moves_MP)
    losses = [float(saddle(x)) for x in points]
    assert losses == sorted(losses, reverse=True)
    assert np.isfinite(losses[-1])


def test_pairs_are_kept_oldest_first():
    points, state = descend(cautious_lbfgs(memory_size=2, max_rms=10.0), bowl, start(), 5)
    assert isinstance(state, CautiousLbfgsState)
    assert int(state.steps) == 5
    moves = [np.ravel(points[i + 1]["a"] - points[i]["a"]) for i in (2, 3)]
    chex.assert_trees_all_close(state.moves_MP[:, :6], np.stack(moves), atol=1e-6)


@pytest.mark.parametrize("diagonal", [None, 0.9])
def test_steps_are_those_of_the_dense_matrix(diagonal):
    """H of BFGS written out (Nocedal and Wright, Eq. 7.16), from γ·I or γ·diag(d) at every step."""
    points, _ = descend(cautious_lbfgs(max_rms=10.0, diagonal=diagonal), bowl, start(), 6)
    x = [np.asarray(jax.flatten_util.ravel_pytree(point)[0], np.float64) for point in points]
    g = [np.asarray(jax.flatten_util.ravel_pytree(jax.grad(bowl)(point))[0], np.float64) for point in points]
    squares = np.zeros_like(g[0])
    for k in range(6):
        if diagonal is not None:
            squares = diagonal * squares + (1 - diagonal) * g[k] ** 2
        moving = squares > 0  # one component begins at its best value
        d = np.ones_like(squares)
        if diagonal is not None:
            d = (squares + 1e-3 * squares[moving].mean()) ** -0.5
            d /= d[moving].mean()
        pairs = [(x[i + 1] - x[i], g[i + 1] - g[i]) for i in range(k)]
        s, y = pairs[-1] if pairs else (0, 0)
        H = np.diag(d) * (s @ y / (y @ (d * y)) if pairs else 1 / max(1, np.linalg.norm(g[0])))
        for s, y in pairs:
            V = np.eye(len(s)) - np.outer(y, s) / (s @ y)
            H = V.T @ H @ V + np.outer(s, s) / (s @ y)
        np.testing.assert_allclose(x[k + 1] - x[k], -H @ g[k], rtol=1e-3, atol=1e-5)


def test_a_diagonal_evens_out_components_of_other_units():
    def steep(x):
        return bowl({"a": x["a"] * jnp.array([1.0, 1.0, 1.0, 30.0, 30.0, 30.0]), "b": x["b"]})

    plain, _ = descend(cautious_lbfgs(max_rms=10.0, memory_size=2), steep, start(), 15)
    evened, _ = descend(cautious_lbfgs(max_rms=10.0, memory_size=2, diagonal=0.9), steep, start(), 15)
    assert float(steep(evened[-1])) < 0.1 * float(steep(plain[-1]))


def test_texts_do_not_reach_each_other():
    optimizer = cautious_lbfgs(diagonal=0.99)
    both = jax.tree.map(lambda x: jnp.stack([x, 3 * x]), start())
    state = jax.vmap(optimizer.init)(both)
    for _ in range(4):
        updates, state = jax.vmap(optimizer.update)(jax.vmap(jax.grad(bowl))(both), state, both)
        both = optax.apply_updates(both, updates)
    alone, _ = descend(optimizer, bowl, start(), 4)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], both), alone[-1], rtol=1e-5)


def test_the_learning_rate_may_be_a_schedule():
    halved, _ = descend(cautious_lbfgs(lambda count: 1.0 / (1 + count), max_rms=10.0), bowl, start(), 2)
    whole, _ = descend(cautious_lbfgs(max_rms=10.0), bowl, start(), 2)
    chex.assert_trees_all_close(halved[1], whole[1])
    second = jax.tree.map(lambda a, b: a - b, halved[2], halved[1])
    chex.assert_trees_all_close(second, jax.tree.map(lambda a, b: 0.5 * (a - b), whole[2], whole[1]), rtol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="memory_size of optimizer cautious_lbfgs = 0: expected at least 1"):
        Optimizer("cautious_lbfgs", {"memory_size": 0}).build()
    with pytest.raises(UserError, match=r"diagonal of .* = 1\.0: expected .*at least 0 and below 1"):
        Optimizer("cautious_lbfgs", {"diagonal": 1.0}).build()
    optimizer = cautious_lbfgs()
    with pytest.raises(ValueError, match="params"):
        optimizer.update(start(), optimizer.init(start()))

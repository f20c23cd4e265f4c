"""Limited-memory BFGS for small, smooth, non-convex problems without a line search: one gradient evaluation an update.

`optax.lbfgs` is meant for a line search, which asks for more evaluations and, batched over slots, for as many as the
slowest slot needs. Without one it keeps pairs of negative curvature, after which its steps may lead uphill, and takes
steps of any length. Here such pairs are left out (the cautious update of Li and Fukushima, SIAM J. Optim. 11, 2001)
and a step is no longer than a bound.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


class CautiousLbfgsState(NamedTuple):
    """Where the last update was made and the last pairs, oldest first; P is the number of components, M of pairs.

    Attributes:
      steps: () int32, updates made.
      point_P, gradient_P: of the last update.
      moves_MP: differences of points (s); zero where there is no pair yet.
      turns_MP: differences of gradients (y).
      weights_M: 1 / (s · y); zero where there is no pair yet.
      scale: () the inverse Hessian before any pair is s · y / y · y of the newest one, times the identity.
    """

    steps: jax.Array
    point_P: jax.Array
    gradient_P: jax.Array
    moves_MP: jax.Array
    turns_MP: jax.Array
    weights_M: jax.Array
    scale: jax.Array


def cautious_lbfgs(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    memory_size: int = 40,
    max_rms: float = 0.08,
    curvature: float = 1e-3,
) -> optax.GradientTransformation:
    """L-BFGS with cautious pairs and bounded steps (Nocedal and Wright, Numerical Optimization, algorithm 7.4).

    Args:
      learning_rate: factor of the quasi-Newton step.
      memory_size: pairs kept (M).
      max_rms: largest root mean square of the components of an update, over all leaves; a longer one is shortened.
      curvature: least cosine between s and y of a pair that is kept.
    """
    if memory_size < 1:
        raise ValueError(f"memory_size = {memory_size}: expected at least 1")

    def init(params: optax.Params) -> CautiousLbfgsState:
        point_P = jnp.zeros_like(ravel_pytree(params)[0])
        pairs_MP = jnp.zeros((memory_size, *point_P.shape), point_P.dtype)
        weights_M = jnp.zeros(memory_size, point_P.dtype)
        return CautiousLbfgsState(
            jnp.int32(0), point_P, point_P, pairs_MP, pairs_MP, weights_M, jnp.ones((), point_P.dtype)
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, CautiousLbfgsState)
        if params is None:
            raise ValueError("cautious_lbfgs needs params: update(updates, state, params)")
        (gradient_P, restore), (point_P, _) = ravel_pytree(updates), ravel_pytree(params)
        state = _remember(state, point_P, gradient_P, curvature)
        direction_P = _precondition(state, gradient_P)
        rate: Any = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        step_P = -rate * direction_P
        rms = jnp.sqrt(jnp.mean(jnp.square(step_P)))
        step_P = step_P * jnp.minimum(1.0, max_rms / jnp.maximum(rms, jnp.finfo(rms.dtype).tiny))
        return restore(step_P), state._replace(steps=state.steps + 1)

    return optax.GradientTransformation(init, update)


def _remember(
    state: CautiousLbfgsState, point_P: jax.Array, gradient_P: jax.Array, curvature: float
) -> CautiousLbfgsState:
    """The state at this point, the newest pair in the place of the oldest if its curvature is positive enough."""
    move_P, turn_P = point_P - state.point_P, gradient_P - state.gradient_P
    product, square = jnp.vdot(move_P, turn_P), jnp.vdot(turn_P, turn_P)
    known = state.steps > 0
    kept = known & (product > curvature * jnp.sqrt(jnp.vdot(move_P, move_P) * square))

    def push(pairs: jax.Array, newest: jax.Array) -> jax.Array:
        return jnp.where(kept, jnp.concatenate([pairs[1:], newest[None]]), pairs)

    first = 1.0 / jnp.maximum(1.0, jnp.linalg.norm(gradient_P))  # as optax: a first step no longer than 1
    scale = jnp.where(kept, product / jnp.where(kept, square, 1.0), jnp.where(known, state.scale, first))
    return state._replace(
        point_P=point_P,
        gradient_P=gradient_P,
        moves_MP=push(state.moves_MP, move_P),
        turns_MP=push(state.turns_MP, turn_P),
        weights_M=push(state.weights_M, 1.0 / jnp.where(kept, product, 1.0)),
        scale=scale,
    )


def _precondition(state: CautiousLbfgsState, gradient_P: jax.Array) -> jax.Array:
    """The inverse Hessian that the pairs describe, times the gradient (the two-loop recursion)."""
    pairs = (state.moves_MP, state.turns_MP, state.weights_M)

    def backward(vector_P: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        move_P, turn_P, weight = pair
        share = weight * jnp.vdot(move_P, vector_P)
        return vector_P - share * turn_P, share

    def forward(vector_P: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        move_P, turn_P, weight, share = pair
        return vector_P + (share - weight * jnp.vdot(turn_P, vector_P)) * move_P, None

    vector_P, shares_M = jax.lax.scan(backward, gradient_P, pairs, reverse=True)
    return jax.lax.scan(forward, state.scale * vector_P, (*pairs, shares_M))[0]

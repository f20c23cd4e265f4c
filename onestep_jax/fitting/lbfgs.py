"""Limited-memory BFGS for small, smooth, non-convex problems without a line search: one gradient evaluation an update.

The loss of a text is a smooth function of a few hundred or thousand numbers without noise. `optax.lbfgs` is meant for a
line search, which asks for further evaluations and, batched over slots, for as many as the slowest slot needs. Without
one it keeps pairs of negative curvature, after which its steps may lead uphill, and its steps have any length. Here
such pairs are left out and a step is no longer than a bound. The initial inverse Hessian may be a diagonal that knows
how large the gradient of each component has been, as Adam does: the pairs are far fewer than the components.

Notation of Nocedal and Wright, Numerical Optimization (2nd edition, section 7.2): s = x_{k+1} − x_k is `move`,
y = ∇f_{k+1} − ∇f_k is `turn`, ρ = 1 / (s · y) is `weight`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


class CautiousLbfgsState(NamedTuple):
    """The point of the last update and the last pairs, oldest first; P is the number of components, M of pairs.

    Attributes:
      steps: () int32, updates made.
      point_P, gradient_P: where the last update was made.
      moves_MP: differences of points (s); zero where there is no pair yet.
      turns_MP: differences of gradients (y); zero where there is no pair yet.
      weights_M: 1 / (s · y), the ρ of a pair; zero where there is no pair yet, which leaves that pair out.
      scale: () γ of the initial inverse Hessian γ·I, or γ·diag(d).
      squares_P: decayed mean of squared gradients, from which `_diagonal` makes d; None for γ·I.
    """

    steps: jax.Array
    point_P: jax.Array
    gradient_P: jax.Array
    moves_MP: jax.Array
    turns_MP: jax.Array
    weights_M: jax.Array
    scale: jax.Array
    squares_P: Any = None


def cautious_lbfgs(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    memory_size: int = 40,
    max_rms: float = 0.08,
    curvature: float = 1e-3,
    diagonal: float | None = None,
) -> optax.GradientTransformation:
    """L-BFGS (Nocedal and Wright, algorithms 7.4 and 7.5) with cautious pairs and bounded steps.

    Args:
      learning_rate: factor of the quasi-Newton step.
      memory_size: number of pairs kept (M).
      max_rms: largest root mean square of the components of an update, over all leaves; a longer update is shortened.
      curvature: least cosine between s and y of a pair that is kept.
      diagonal: decay of a mean of squared gradients, whose inverse square root is the initial inverse Hessian up to a
        factor; Adam's β₂. None for the identity up to a factor.

    Raises:
      ValueError: for a memory size below one, or a decay that is not one.
    """
    if memory_size < 1:
        raise ValueError(f"memory_size = {memory_size}: expected at least 1")
    if diagonal is not None and not 0 <= diagonal < 1:
        raise ValueError(f"diagonal = {diagonal}: expected a decay, at least 0 and below 1")

    def init(params: optax.Params) -> CautiousLbfgsState:
        state = _without_pairs(ravel_pytree(params)[0], memory_size)
        return state if diagonal is None else state._replace(squares_P=state.point_P)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, CautiousLbfgsState)
        if params is None:
            raise ValueError("cautious_lbfgs needs params: update(updates, state, params)")
        (gradient_P, restore), (point_P, _) = ravel_pytree(updates), ravel_pytree(params)
        if diagonal is not None:
            assert state.squares_P is not None
            squares_P = diagonal * state.squares_P + (1 - diagonal) * jnp.square(gradient_P)
            state = state._replace(squares_P=squares_P)
        state = _remember(state, point_P, gradient_P, curvature)
        rate: Any = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        step_P = _bounded(-rate * _precondition(state, gradient_P), max_rms)
        return restore(step_P), state._replace(steps=state.steps + 1)

    return optax.GradientTransformation(init, update)


def _without_pairs(point_P: jax.Array, memory_size: int) -> CautiousLbfgsState:
    zeros_P, zeros_MP = jnp.zeros_like(point_P), jnp.zeros((memory_size, *point_P.shape), point_P.dtype)
    return CautiousLbfgsState(
        steps=jnp.int32(0),
        point_P=zeros_P,
        gradient_P=zeros_P,
        moves_MP=zeros_MP,
        turns_MP=zeros_MP,
        weights_M=jnp.zeros(memory_size, point_P.dtype),
        scale=jnp.ones((), point_P.dtype),
    )


def _bounded(step_P: jax.Array, max_rms: float) -> jax.Array:
    """The step, no longer than the bound, which stands in for a line search: nothing checks that the loss falls.

    The mean is over the components that move. In a group that is not full, those of the empty places never do.
    """
    rms = jnp.sqrt(_mean(jnp.square(step_P), _moving(step_P)))
    return step_P * jnp.minimum(1.0, max_rms / jnp.maximum(rms, jnp.finfo(rms.dtype).tiny))


def _remember(
    state: CautiousLbfgsState, point_P: jax.Array, gradient_P: jax.Array, curvature: float
) -> CautiousLbfgsState:
    """The state at this point; the newest pair takes the place of the oldest if its curvature is positive enough."""
    move_P, turn_P = point_P - state.point_P, gradient_P - state.gradient_P
    product, square = jnp.vdot(move_P, turn_P), jnp.vdot(turn_P, turn_P)
    weighted = square if state.squares_P is None else jnp.vdot(turn_P, _diagonal(state.squares_P) * turn_P)
    known = state.steps > 0
    # A line search by the Wolfe conditions would make s · y positive; without one it may be negative, where the loss is
    # not convex, and such a pair makes the inverse Hessian indefinite: steps lead uphill. The cautious update of Li and
    # Fukushima (SIAM J. Optim. 11, 2001) leaves pairs out whose s · y is small against |s|² and the gradient's norm.
    # Here it is compared with |s| |y|, a cosine, so that the least value holds for texts and models of any scale.
    kept = known & (product > curvature * jnp.sqrt(jnp.vdot(move_P, move_P) * square))

    def push(pairs: jax.Array, newest: jax.Array) -> jax.Array:
        return jnp.where(kept, jnp.concatenate([pairs[1:], newest[None]]), pairs)

    # γ = s · y / y · y of the newest pair (Eq. 7.20), and s · y / y · diag(d) y for a diagonal, so that the curvature
    # along y is that pair's either way. Before the first pair, as in optax, a step is no longer than 1.
    first = 1.0 / jnp.maximum(1.0, jnp.linalg.norm(gradient_P))
    scale = jnp.where(kept, product / jnp.where(kept, weighted, 1.0), jnp.where(known, state.scale, first))
    return state._replace(
        point_P=point_P,
        gradient_P=gradient_P,
        moves_MP=push(state.moves_MP, move_P),
        turns_MP=push(state.turns_MP, turn_P),
        weights_M=push(state.weights_M, 1.0 / jnp.where(kept, product, 1.0)),
        scale=scale,
    )


def _precondition(state: CautiousLbfgsState, gradient_P: jax.Array) -> jax.Array:
    """The inverse Hessian that the pairs describe, times the gradient: algorithm 7.4, the two-loop recursion.

    A place without a pair has ρ = 0, so both of its lines leave the vector as it is.
    """
    pairs = (state.moves_MP, state.turns_MP, state.weights_M)

    def backward(q_P: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        move_P, turn_P, weight = pair
        alpha = weight * jnp.vdot(move_P, q_P)  # α_i ← ρ_i s_i · q
        return q_P - alpha * turn_P, alpha  # q ← q − α_i y_i

    def forward(r_P: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        move_P, turn_P, weight, alpha = pair
        beta = weight * jnp.vdot(turn_P, r_P)  # β ← ρ_i y_i · r
        return r_P + (alpha - beta) * move_P, None  # r ← r + s_i (α_i − β)

    # First loop: from the newest pair to the oldest. Then r ← H⁰ q. Second loop: from the oldest to the newest.
    q_P, alphas_M = jax.lax.scan(backward, gradient_P, pairs, reverse=True)
    initial_P = state.scale if state.squares_P is None else state.scale * _diagonal(state.squares_P)
    return jax.lax.scan(forward, initial_P * q_P, (*pairs, alphas_M))[0]


def _diagonal(squares_P: jax.Array) -> jax.Array:
    """d, with mean 1: the inverse square roots of the squared gradients, of which no small one is taken for still.

    A factor of `squares_P`, such as Adam's correction of the first steps, falls out. Components without any gradient so
    far, such as those of empty places, are in neither mean.
    """
    moving_P = _moving(squares_P)
    floor = 1e-3 * _mean(squares_P, moving_P) + jnp.finfo(squares_P.dtype).tiny
    inverse_P = jax.lax.rsqrt(squares_P + floor)
    return inverse_P / _mean(inverse_P, moving_P)


def _moving(values_P: jax.Array) -> jax.Array:
    """Which components are not 0, (P,) bool; all where none is."""
    moving_P = values_P != 0
    return moving_P | ~jnp.any(moving_P)


def _mean(values_P: jax.Array, counted_P: jax.Array) -> jax.Array:
    """Mean over the components that count; where all do, the factor is exactly 1."""
    factor = counted_P.size / jnp.sum(counted_P, dtype=values_P.dtype)
    return jnp.mean(jnp.where(counted_P, values_P, 0.0)) * factor

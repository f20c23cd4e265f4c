"""Curves between two points in the space of solutions: geometry, and the training of one curve (Eq. 4 and 5).

A *point* is all leaves of a solution together, leaf → array. Everything here is written for one pair of solutions;
`connectivity.connect` vmaps it over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from onestep_jax.model.decoder import Array, Model, Params
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.schemes import Leaves, Scheme

NODES = 256  # of the quadrature of a curve's length


class Method(NamedTuple):
    """What a program is compiled for; see `connectivity.connect`."""

    model: Model
    scheme: Scheme
    optimizer: optax.GradientTransformation
    samples: int
    points: int
    temperature: float


class Problem(NamedTuple):
    """One pair of solutions of a text.

    Attributes:
      tokens_T: (T,) target ids, padded.
      length: () their number.
      first, second: leaf → array, the ends of the curve.
      words: (8,) uint32, identities of the ends, which the random numbers hang on.
    """

    tokens_T: Array
    length: Array
    first: Leaves
    second: Leaves
    words: Array


class State(NamedTuple):
    """Training of one curve.

    Attributes:
      control: leaf → array, the control point π.
      optimizer: state of Adam.
      step: () updates made.
      kept: the control point of the least loss so far.
      kept_loss: () its loss.
      kept_step: () updates made before it.
    """

    control: Leaves
    optimizer: Any
    step: Array
    kept: Leaves
    kept_loss: Array
    kept_step: Array


# --- geometry ---


def segment(first: Any, second: Any, tau: Any) -> Any:
    """Point (1 − τ) p1 + τ p2 of the straight line between two points."""
    return jax.tree.map(lambda p1, p2: (1 - tau) * p1 + tau * p2, first, second)


def bezier(first: Any, control: Any, second: Any, tau: Any) -> Any:
    """Point φ(τ) = (1 − τ)² p1 + 2τ(1 − τ) π + τ² p2 of a quadratic Bézier curve (Eq. 4)."""
    weights = (1 - tau) ** 2, 2 * tau * (1 - tau), tau**2
    return jax.tree.map(lambda p1, pi, p2: weights[0] * p1 + weights[1] * pi + weights[2] * p2, first, control, second)


def curve_length(first: Mapping[str, Any], control: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Arc length of a quadratic Bézier curve, all leaves concatenated, by quadrature in float64.

    The speed is |φ'(τ)| = 2 |(1 − τ) (π − p1) + τ (p2 − π)|.
    """
    p1, pi, p2 = (_flat(point) for point in (first, control, second))
    out, back = pi - p1, p2 - pi
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    tau = (nodes + 1) / 2
    squares = (1 - tau) ** 2 * (out @ out) + 2 * tau * (1 - tau) * (out @ back) + tau**2 * (back @ back)
    return float(weights @ np.sqrt(np.maximum(squares, 0)))


def line_length(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Distance of two points, all leaves concatenated, in float64."""
    return float(np.linalg.norm(_flat(second) - _flat(first)))


def _flat(point: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(point[name], np.float64)) for name in sorted(point)])


# --- training ---


def score(method: Method, params: Params, problem: Problem, point: Leaves, temperature: float) -> tuple[Array, Array]:
    """(nats per token, accuracy) at one point."""
    text = (problem.tokens_T, problem.length)
    nats, hits_T, _ = score_text(method.model, method.scheme, params, point, *text, temperature)
    return nats, jnp.sum(hits_T) / problem.length


def along(
    method: Method, params: Params, problem: Problem, control: Leaves | None, taus: Array, temperature: float
) -> tuple[Array, Array]:
    """(nats per token, accuracy) at each τ of the curve, or of the straight line; `samples` of them at a time."""

    def at(tau: Array) -> tuple[Array, Array]:
        ends = (problem.first, problem.second)
        point = segment(*ends, tau) if control is None else bezier(problem.first, control, problem.second, tau)
        return score(method, params, problem, point, temperature)

    return jax.lax.map(at, taus, batch_size=method.samples)


def middles_loss(method: Method, params: Params, problem: Problem, control: Leaves) -> Array:
    """Loss by which control points are chosen: the mean at the middles between the reported points."""
    parts = method.points - 1
    taus = (jnp.arange(parts) + 0.5) / parts
    return jnp.mean(along(method, params, problem, control, taus, method.temperature)[0])


def expected_loss(control: Leaves, method: Method, params: Params, problem: Problem, taus: Array) -> Array:
    """Estimate of the expected loss along the curve (Eq. 5), from some values of τ."""

    def at(tau: Array) -> Array:
        point = bezier(problem.first, control, problem.second, tau)
        return score(method, params, problem, point, method.temperature)[0]

    return jnp.mean(jax.vmap(at)(taus))


def start(method: Method, params: Params, problem: Problem) -> State:
    """The untrained curve: its control point is the middle of the straight line, so it is that line."""
    control = segment(problem.first, problem.second, 0.5)
    loss = middles_loss(method, params, problem, control)
    return State(control, method.optimizer.init(control), jnp.int32(0), control, loss, jnp.int32(0))


def train(method: Method, params: Params, problem: Problem, state: State, count: Array, seed: Array) -> State:
    """`count` updates of the control point, which is then kept if it is the best so far."""
    key = jax.random.key(seed)
    for word in problem.words:
        key = jax.random.fold_in(key, word)

    def update(_: Array, carry: tuple[Leaves, Any, Array]) -> tuple[Leaves, Any, Array]:
        control, adam, step = carry
        # One τ in each part leaves the expectation as it is and takes most of the noise.
        shift = jax.random.uniform(jax.random.fold_in(key, step), (method.samples,))
        taus = (jnp.arange(method.samples) + shift) / method.samples
        gradient = jax.grad(expected_loss)(control, method, params, problem, taus)
        change, adam = method.optimizer.update(gradient, adam, control)
        return optax.apply_updates(control, change), adam, step + 1  # pyright: ignore[reportReturnType]

    carry = (state.control, state.optimizer, state.step)
    control, adam, step = jax.lax.fori_loop(0, count, update, carry)
    loss = middles_loss(method, params, problem, control)
    now, kept = (control, loss, step), (state.kept, state.kept_loss, state.kept_step)
    best = jax.tree.map(lambda new, old: jnp.where(loss < state.kept_loss, new, old), now, kept)
    return State(control, adam, step, *best)


def look(method: Method, params: Params, problem: Problem, control: Leaves) -> tuple[Any, Any]:
    """(loss, accuracy) along the line and along the curve, as Eq. 1 has them."""
    taus = jnp.linspace(0.0, 1.0, method.points)
    line, curve = (along(method, params, problem, way, taus, 1.0) for way in (None, control))
    return line, curve

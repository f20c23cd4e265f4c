"""Bézier curves between two solutions of a text: geometry, and the training of one curve (Eq. 4 and 5).

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

from onestep_jax.model.decoder import Array, Model, Params, Past
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.schemes import Leaves, Scheme

NODES = 256  # of the Gauss–Legendre quadrature of a curve's length


class Method(NamedTuple):
    """The static part of a program; see the arguments of `connectivity.connect`."""

    model: Model
    scheme: Scheme
    optimizer: optax.GradientTransformation
    samples: int
    points: int
    temperature: float


class PaddedPair(NamedTuple):
    """Two solutions of one text, as a program takes them.

    Attributes:
      tokens_T: (T,) int32 target ids, padded.
      length: () int32, their number (N).
      first, second: leaf → array, the ends of the curve.
      words: (8,) uint32, identities of the ends; the random numbers follow from them.
      past: keys and values of the prefix that both stand behind, or None.
    """

    tokens_T: Array
    length: Array
    first: Leaves
    second: Leaves
    words: Array
    past: Past | None = None


class CurveState(NamedTuple):
    """Training of one curve.

    Attributes:
      control: leaf → array, the control point π.
      optimizer: its optimiser state.
      step: () int32, updates made.
      kept: the control point with the least loss so far.
      kept_loss: () float32, its loss, see `middles_loss`.
      kept_step: () int32, updates made before it.
    """

    control: Leaves
    optimizer: Any
    step: Array
    kept: Leaves
    kept_loss: Array
    kept_step: Array


# --- geometry ---


def segment(first: Any, second: Any, tau: Any) -> Any:
    """Point (1 − τ) p₁ + τ p₂ of the straight line between two points."""
    return jax.tree.map(lambda p1, p2: (1 - tau) * p1 + tau * p2, first, second)


def quadratic(first: Any, control: Any, second: Any, tau: Any) -> Any:
    """Point φ(τ) = (1 − τ)² p₁ + 2τ(1 − τ) π + τ² p₂ of a quadratic Bézier curve (Eq. 4)."""
    weights = (1 - tau) ** 2, 2 * tau * (1 - tau), tau**2
    return jax.tree.map(lambda p1, pi, p2: weights[0] * p1 + weights[1] * pi + weights[2] * p2, first, control, second)


def curve_length(first: Mapping[str, Any], control: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Arc length ∫₀¹ |φ'(τ)| dτ of a quadratic Bézier curve, all leaves concatenated, by quadrature in float64.

    The speed is |φ'(τ)| = 2 |(1 − τ) (π − p₁) + τ (p₂ − π)|.
    """
    p1, pi, p2 = (_flat(point) for point in (first, control, second))
    out, back = pi - p1, p2 - pi
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    tau = (nodes + 1) / 2  # from [−1, 1] to [0, 1]; the factor 1/2 of dτ cancels the 2 of the speed
    squares = (1 - tau) ** 2 * (out @ out) + 2 * tau * (1 - tau) * (out @ back) + tau**2 * (back @ back)
    return float(weights @ np.sqrt(np.maximum(squares, 0)))


def line_length(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Distance of two points, all leaves concatenated, in float64."""
    return float(np.linalg.norm(_flat(second) - _flat(first)))


def rms_distance(first: Leaves, second: Leaves) -> Array:
    """Root mean square of the differences of all numbers of two points."""
    squares = [jnp.square(p1 - p2) for p1, p2 in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)]
    return jnp.sqrt(sum(map(jnp.sum, squares), jnp.float32(0)) / sum(square.size for square in squares))


def _flat(point: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(point[name], np.float64)) for name in sorted(point)])


# --- training ---


def score(method: Method, params: Params, pair: PaddedPair, point: Leaves, temperature: float) -> tuple[Array, Array]:
    """(nats per token, accuracy) of the pair's text at one point."""
    found = score_text(
        method.model, method.scheme, params, point, pair.tokens_T, pair.length, temperature, past=pair.past
    )
    return found.nats, jnp.sum(found.hits_T) / pair.length


def along(
    method: Method, params: Params, pair: PaddedPair, control: Leaves | None, taus: Array, temperature: float
) -> tuple[Array, Array]:
    """(nats per token, accuracy) at each τ of the curve, or of the straight line; `samples` of them at a time."""

    def at(tau: Array) -> tuple[Array, Array]:
        line = control is None
        point = segment(pair.first, pair.second, tau) if line else quadratic(pair.first, control, pair.second, tau)
        return score(method, params, pair, point, temperature)

    return jax.lax.map(at, taus, batch_size=method.samples)


def middles_loss(method: Method, params: Params, pair: PaddedPair, control: Leaves) -> Array:
    """Loss by which control points are compared: the mean at the middles between the reported points."""
    parts = method.points - 1
    taus = (jnp.arange(parts) + 0.5) / parts
    return jnp.mean(along(method, params, pair, control, taus, method.temperature)[0])


def expected_loss(control: Leaves, method: Method, params: Params, pair: PaddedPair, taus: Array) -> Array:
    """Estimate of the expected loss along the curve (Eq. 5): the mean at some values of τ."""

    def at(tau: Array) -> Array:
        point = quadratic(pair.first, control, pair.second, tau)
        return score(method, params, pair, point, method.temperature)[0]

    return jnp.mean(jax.vmap(at)(taus))


def start(method: Method, params: Params, pair: PaddedPair) -> CurveState:
    """The untrained curve: its control point is the middle of the straight line, so the curve is that line."""
    control = segment(pair.first, pair.second, 0.5)
    return CurveState(
        control=control,
        optimizer=method.optimizer.init(control),
        step=jnp.int32(0),
        kept=control,
        kept_loss=middles_loss(method, params, pair, control),
        kept_step=jnp.int32(0),
    )


def train(method: Method, params: Params, pair: PaddedPair, state: CurveState, count: Array, seed: Array) -> CurveState:
    """Make `count` updates of the control point, and keep it if its loss is the least so far.

    An update is in units of the distance of the two ends: solutions of one optimiser lie four times as far apart as
    those of another, and the way that the control point has to go grows with this distance.
    """
    unit = rms_distance(pair.first, pair.second)
    key = jax.random.key(seed)
    for word in pair.words:
        key = jax.random.fold_in(key, word)

    def update(_: Array, carry: tuple[Leaves, Any, Array]) -> tuple[Leaves, Any, Array]:
        control, adam, step = carry
        # τ ~ U[0, 1], stratified: one τ in each of `samples` equal parts has the same expectation and less noise.
        shift = jax.random.uniform(jax.random.fold_in(key, step), (method.samples,))
        taus = (jnp.arange(method.samples) + shift) / method.samples
        gradient = jax.grad(expected_loss)(control, method, params, pair, taus)
        change, adam = method.optimizer.update(gradient, adam, control)
        change = jax.tree.map(lambda leaf: unit * leaf, change)
        return optax.apply_updates(control, change), adam, step + 1  # pyright: ignore[reportReturnType]

    control, adam, step = jax.lax.fori_loop(0, count, update, (state.control, state.optimizer, state.step))
    loss = middles_loss(method, params, pair, control)
    better = loss < state.kept_loss
    return CurveState(
        control=control,
        optimizer=adam,
        step=step,
        kept=jax.tree.map(lambda new, old: jnp.where(better, new, old), control, state.kept),
        kept_loss=jnp.where(better, loss, state.kept_loss),
        kept_step=jnp.where(better, step, state.kept_step),
    )


class Look(NamedTuple):
    """What lies along the straight line and along the curve, at each reported τ: (points,) each.

    Attributes:
      line_loss, curve_loss: nats per token (Eq. 1).
      line_accuracy, curve_accuracy: share of exact tokens (Eq. 2).
    """

    line_loss: Array
    line_accuracy: Array
    curve_loss: Array
    curve_accuracy: Array


def look(method: Method, params: Params, pair: PaddedPair, control: Leaves) -> Look:
    """Score the straight line and the curve at the reported points."""
    taus = jnp.linspace(0.0, 1.0, method.points)
    line_loss, line_accuracy = along(method, params, pair, None, taus, 1.0)
    curve_loss, curve_accuracy = along(method, params, pair, control, taus, 1.0)
    return Look(line_loss=line_loss, line_accuracy=line_accuracy, curve_loss=curve_loss, curve_accuracy=curve_accuracy)

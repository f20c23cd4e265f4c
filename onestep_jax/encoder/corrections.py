"""z → z: learned gradient steps through the frozen decoder, as a model that is trained (GradMem, arXiv:2603.13875).

Step k takes the gradient g of the loss (Eq. 1, at the temperature of the design) with respect to z and brings each
vector's to root mean square 1: ĝ_k.
Then z ← z − change, where the change is, by the design:

  "diagonal"   d_k ⊙ ĝ_k
  "matrix"     P_k ĝ_k
  "network"    s_k P ĝ_k + d_k ⊙ ĝ_k + gelu(a_k ⊙ (x_k A) + b_k) B, where x_k is ĝ_k, ĝ_(k-1) and z − z₀ in a row

The network is one for all steps, but for the vectors with an index k. The gradient before lets it see curvature, as
momentum does. A step costs one gradient evaluation, as a step of `fit` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from onestep_jax.encoder.design import Design, Weights
from onestep_jax.model.decoder import Array, Network, Params, Past, weights_dtype
from onestep_jax.model.token_losses import argmax

_HIDDEN = 1.5  # width of the network of a correction, in components of z
_LEAST = 1e-24  # mean square of a gradient; of less, the derivative of 1 / sqrt is beyond float32


class Scored(NamedTuple):
    """What the decoder makes of z.

    Attributes:
      loss: () mean over the tokens of −ln P under softmax(logits / temperature), whose gradient a correction takes.
      nats: () mean nats per token, at temperature 1 (Eq. 1); a figure, without a gradient.
      predicted_T: (T,) the argmax ids.
    """

    loss: Array
    nats: Array
    predicted_T: Array


def init_corrections(network: Network, design: Design, key: Array) -> Weights:
    """Weights of K corrections, which change nothing before they are trained.

    Returns:
      "steps": arrays with a leading axis K, S = L·D: "diagonal" (K, S), or "matrix" (K, S, S), or for a network
      "diagonal", "scale" (K, 1), "gain" and "bias" (K, H); and then "network": "matrix" (S, S), "in" (3 S, H) and
      "out" (H, S).
    """
    steps, size = design.corrections, len(design.leaf_names) * network.embed_width
    if not steps:
        return {}
    if design.step == "matrix":
        return {"steps": {"matrix": jnp.zeros((steps, size, size))}}
    each = {"diagonal": jnp.zeros((steps, size))}
    if design.step == "diagonal":
        return {"steps": each}
    hidden = int(_HIDDEN * size)
    each |= {"scale": jnp.ones((steps, 1)), "gain": jnp.ones((steps, hidden)), "bias": jnp.zeros((steps, hidden))}
    spread = 1 / math.sqrt(3 * size)
    shared = {
        "matrix": jnp.zeros((size, size)),
        "in": spread * jax.random.normal(key, (3 * size, hidden), jnp.float32),
        "out": jnp.zeros((hidden, size)),
    }
    return {"steps": each, "network": shared}


def _change(design: Design, weights: Weights, step: Weights, unit_S: Array, before_S: Array, moved_S: Array) -> Array:
    """What a correction subtracts from z.

    Args:
      design, weights: of the encoder.
      step: the weights of this correction.
      unit_S: the gradient, its rows of root mean square 1.
      before_S: that of the correction before, zero at the first one.
      moved_S: z less the constant, its rows of root mean square 1.
    """
    if design.step == "matrix":
        return step["matrix"] @ unit_S
    diagonal_S = step["diagonal"] * unit_S
    if design.step == "diagonal":
        return diagonal_S
    shared = weights["network"]
    x = jnp.concatenate([unit_S, before_S, moved_S]) @ shared["in"]
    hidden_H = jax.nn.gelu(step["gain"] * x + step["bias"])
    return step["scale"] * (shared["matrix"] @ unit_S) + diagonal_S + hidden_H @ shared["out"]


def score(
    network: Network,
    design: Design,
    frozen: Params,
    past: Past | None,
    z_LD: Array,
    tokens_T: Array,
) -> Scored:
    """Loss, nats and argmax ids of one text without padding.

    `prototokens.objective.score_text` has a backward pass of its own, which has no derivative. Here the gradient is
    differentiated once more, so the loss is written out.
    """
    scheme = design.scheme
    blank_TD = jnp.zeros((len(tokens_T), network.embed_width), z_LD.dtype)
    x_TD = scheme.inputs(design.leaves(z_LD), blank_TD, jnp.int32(len(tokens_T))).astype(weights_dtype(frozen))
    h_TD = network.hidden(frozen, x_TD, past)[scheme.reads(len(tokens_T))]
    logits_TV = network.head(frozen, h_TD).astype(jnp.float32)
    loss = _cross_entropy(logits_TV, tokens_T, design.temperature)
    nats = loss if design.temperature == 1 else _cross_entropy(logits_TV, tokens_T, 1.0)
    # Without a gradient of its own, or a training of the first order would compute second derivatives for a figure.
    return Scored(loss=loss, nats=jax.lax.stop_gradient(nats), predicted_T=argmax(logits_TV))


def _cross_entropy(logits_TV: Array, tokens_T: Array, temperature: float) -> Array:
    log_p_TV = jax.nn.log_softmax(logits_TV / temperature, axis=-1)
    return -jnp.take_along_axis(log_p_TV, tokens_T[:, None], axis=-1)[:, 0].mean()


def correction(
    network: Network,
    design: Design,
    frozen: Params,
    weights: Weights,
    past: Past | None,
    tokens_T: Array,
    first_order: bool = False,
) -> Callable[[tuple[Array, Array], Weights], tuple[tuple[Array, Array], tuple[Array, Scored]]]:
    """One correction of a text, for the arguments see `correct`.

    Returns:
      ((z_LD, the gradient before, with rows of root mean square 1, (S,)), weights of the step) → (both after it,
      (z_LD as it was, what the decoder makes of that)).
    """

    def loss(z_LD: Array) -> tuple[Array, Scored]:
        scored = score(network, design, frozen, past, z_LD, tokens_T)
        return scored.loss, scored

    def step(carry: tuple[Array, Array], weight: Weights) -> tuple[tuple[Array, Array], tuple[Array, Scored]]:
        z_LD, before_S = carry
        gradient_LD, scored = jax.grad(loss, has_aux=True)(z_LD)
        if first_order:
            gradient_LD = jax.lax.stop_gradient(gradient_LD)
            scored = scored._replace(loss=_with_gradient(scored.loss, gradient_LD, z_LD))
        unit_S = unit_rows(gradient_LD).reshape(-1)
        moved_S = unit_rows(z_LD - weights["constant"]).reshape(-1) if design.step == "network" else unit_S
        change_S = _change(design, weights, weight, unit_S, before_S, moved_S)
        return (z_LD - change_S.reshape(z_LD.shape), unit_S), (z_LD, scored)

    return step


def correct(
    network: Network,
    design: Design,
    frozen: Params,
    weights: Weights,
    past: Past | None,
    z_LD: Array,
    tokens_T: Array,
    steps: int | None = None,
    first_order: bool = False,
    remat: bool = False,
) -> tuple[Array, tuple[Array, Scored]]:
    """z after so many corrections, by default all of them.

    Args:
      network, design, frozen: the decoder.
      weights: of the encoder.
      past: of the prefix.
      z_LD: where they begin.
      tokens_T: the text, without padding.
      steps: at most those that were trained.
      first_order: take the gradients as constants when the encoder is differentiated.
      remat: keep z between corrections alone, and compute the rest again when the encoder is differentiated.

    Returns:
      (L, D), and z before each step with what the decoder made of it, their leaves (steps, …).
    """

    taken = design.corrections if steps is None else steps
    if not taken:
        none = Scored(jnp.zeros(0), jnp.zeros(0), jnp.zeros((0, len(tokens_T)), jnp.int32))
        return z_LD, (jnp.zeros((0, *z_LD.shape)), none)
    some = jax.tree.map(lambda leaf: leaf[:taken], weights["steps"])
    step = correction(network, design, frozen, weights, past, tokens_T, first_order)
    step = jax.checkpoint(step) if remat else step
    (z_LD, _), passed = jax.lax.scan(step, (z_LD, jnp.zeros(z_LD.size, z_LD.dtype)), some)
    return z_LD, passed


def _with_gradient(loss: Array, gradient_LD: Array, z_LD: Array) -> Array:
    """A loss whose derivative is the gradient that is at hand, so that a backward pass does not compute it again."""
    linear = jnp.sum(gradient_LD * (z_LD - jax.lax.stop_gradient(z_LD)))
    return jax.lax.stop_gradient(loss) + linear


def unit_rows(gradient_LD: Array) -> Array:
    """Each row brought to root mean square 1; a zero row stays zero, with a finite derivative."""
    squares_L1 = jnp.mean(jnp.square(gradient_LD), axis=-1, keepdims=True)
    return gradient_LD * jax.lax.rsqrt(jnp.maximum(squares_L1, _LEAST))

"""z → z: learned gradient steps through the frozen decoder, as a model that is trained (GradMem, arXiv:2603.13875).

Step k takes the gradient g of the loss (Eq. 1) with respect to z, brings each vector's to root mean square 1, and
subtracts it times learned weights: z ← z − P_k ĝ. A step costs one gradient evaluation, as a step of `fit` does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from onestep_jax.encoder.design import Design, Weights
from onestep_jax.model.decoder import Array, Network, Params, Past
from onestep_jax.model.token_losses import argmax

_LEAST = 1e-24  # mean square of a gradient; of less, the derivative of 1 / sqrt is beyond float32


class Scored(NamedTuple):
    """What the decoder makes of z.

    Attributes:
      nats: () mean nats per token under softmax(logits / temperature).
      predicted_T: (T,) the argmax ids.
    """

    nats: Array
    predicted_T: Array


def init_corrections(network: Network, design: Design) -> Weights:
    """ "steps": (K, L·D, L·D), or (K, L·D) where a step is diagonal; all zero, so that they change nothing."""
    size = len(design.leaf_names) * network.embed_width
    shape = (design.corrections, size, size) if design.step == "matrix" else (design.corrections, size)
    return {"steps": jnp.zeros(shape, jnp.float32)} if design.corrections else {}


def score(
    network: Network,
    design: Design,
    frozen: Params,
    past: Past | None,
    z_LD: Array,
    tokens_T: Array,
    temperature: float,
) -> Scored:
    """Loss and argmax ids of one text without padding.

    `prototokens.objective.score_text` has a backward pass of its own, which has no derivative. Here the gradient is
    differentiated once more, so the loss is written out.
    """
    scheme = design.scheme
    blank_TD = jnp.zeros((len(tokens_T), network.embed_width), z_LD.dtype)
    x_TD = scheme.inputs(design.leaves(z_LD), blank_TD, jnp.int32(len(tokens_T)))
    h_TD = network.hidden(frozen, x_TD, past)[scheme.reads(len(tokens_T))]
    logits_TV = network.head(frozen, h_TD).astype(jnp.float32)
    log_p_TV = jax.nn.log_softmax(logits_TV / temperature, axis=-1)
    nats_T = -jnp.take_along_axis(log_p_TV, tokens_T[:, None], axis=-1)[:, 0]
    return Scored(nats=nats_T.mean(), predicted_T=argmax(logits_TV))


def correct(
    network: Network,
    design: Design,
    frozen: Params,
    weights: Weights,
    past: Past | None,
    z_LD: Array,
    tokens_T: Array,
    temperature: float = 1.0,
    steps: int | None = None,
    first_order: bool = False,
) -> tuple[Array, tuple[Array, Scored]]:
    """z after so many corrections, by default all of them.

    Args:
      network, design, frozen: the decoder.
      weights: of the encoder.
      past: of the prefix.
      z_LD: where they begin.
      tokens_T: the text, without padding.
      temperature: of the loss.
      steps: at most those that were trained.
      first_order: take the gradients as constants when the encoder is differentiated.

    Returns:
      (L, D), and z before each step with what the decoder made of it, their leaves (steps, …).
    """

    def loss(z_LD: Array) -> tuple[Array, Scored]:
        scored = score(network, design, frozen, past, z_LD, tokens_T, temperature)
        return scored.nats, scored

    def step(z_LD: Array, weight: Array) -> tuple[Array, tuple[Array, Scored]]:
        gradient_LD, scored = jax.grad(loss, has_aux=True)(z_LD)
        if first_order:
            gradient_LD = jax.lax.stop_gradient(gradient_LD)
            scored = scored._replace(nats=_with_gradient(scored.nats, gradient_LD, z_LD))
        unit = unit_rows(gradient_LD).reshape(-1)
        change = weight @ unit if design.step == "matrix" else weight * unit
        return z_LD - change.reshape(z_LD.shape), (z_LD, scored)

    taken = design.corrections if steps is None else steps
    if not taken:
        none = Scored(jnp.zeros(0), jnp.zeros((0, len(tokens_T)), jnp.int32))
        return z_LD, (jnp.zeros((0, *z_LD.shape)), none)
    return jax.lax.scan(step, z_LD, weights["steps"][:taken])


def _with_gradient(nats: Array, gradient_LD: Array, z_LD: Array) -> Array:
    """A loss whose derivative is the gradient that is at hand, so that a backward pass does not compute it again."""
    linear = jnp.sum(gradient_LD * (z_LD - jax.lax.stop_gradient(z_LD)))
    return jax.lax.stop_gradient(nats) + linear


def unit_rows(gradient_LD: Array) -> Array:
    """Each row brought to root mean square 1; a zero row stays zero, with a finite derivative."""
    squares_L1 = jnp.mean(jnp.square(gradient_LD), axis=-1, keepdims=True)
    return gradient_LD * jax.lax.rsqrt(jnp.maximum(squares_L1, _LEAST))

"""Cross-entropy and argmax of each token from hidden states, in float32 and little memory.

No array is ever (positions, V): the logits of a chunk of positions exist only while its losses, and the gradient of
these with respect to the hidden states, are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from onestep_jax.model.decoder import Array, Network, Params

LOGITS_BYTES = 2**25  # float32 logits held at a time for one text: 2048 positions at V = 4096, 65 at V = 128256

SATURATED = 8.0  # temperatures; a greater shift makes texts hang from the start, a smaller one slows the last steps

Arrays: TypeAlias = tuple[Array, ...]


class TokenScores(NamedTuple):
    """What each token scores.

    Attributes:
      nats_T: (T,) float32, −log P of the target under softmax(logits / temperature).
      predicted_T: (T,) int32, the argmax ids.
      leads_T: (T,) float32, by how many logits the target leads the greatest other one, negative where it is behind;
        None unless it was asked for.
    """

    nats_T: Array
    predicted_T: Array
    leads_T: Array | None = None


class _Loss(NamedTuple):
    """Which loss: its temperature, and its margin as of `token_scores`."""

    temperature: float
    margin: float | None


def token_losses(
    network: Network, params: Params, h_TD: Array, targets_T: Array, temperature: float = 1.0
) -> tuple[Array, Array]:
    """Nats (T,) and argmax ids (T,) of `token_scores`, without a margin."""
    scores = token_scores(network, params, h_TD, targets_T, temperature)
    return scores.nats_T, scores.predicted_T


def token_scores(
    network: Network,
    params: Params,
    h_TD: Array,
    targets_T: Array,
    temperature: float = 1.0,
    margin: float | None = None,
) -> TokenScores:
    """Score each target under softmax(logits / temperature), from hidden states (T, D).

    With temperature 1 the nats are the terms of Eq. 1. A lower temperature leaves the argmax alone and takes the weight
    of the gradient off tokens that are already right, since their loss saturates sooner. Differentiable in `h_TD` only.
    Positions are taken in chunks, so that at most `LOGITS_BYTES` of logits exist at a time.

    The nats of a target t are log(1 + Σ_{j≠t} exp((z_j − z_t + δ) / temperature)). Without a margin δ is 0. They fall
    below 2⁻²⁴ of a nat, where float32 no longer tells 1 + x from 1, at a lead of 17 temperatures, and then push no
    further. With a margin ε, δ = max(0, ε − SATURATED · temperature), an additive margin as in arXiv:1801.05599: at a
    lead of ε a runner-up is still worth e⁻⁸ nats. A small margin leaves the loss as it is.

    Args:
      network, params: the frozen model.
      h_TD: hidden states.
      targets_T: ids of the targets.
      temperature: of the softmax.
      margin: ε ≥ 0, in logits at temperature 1; None to leave the leads out as well.
    """
    return _token_scores(network, _Loss(temperature, margin), params, h_TD, targets_T)


# The residual is not an input of the backward pass but already its result, dnats/dh. With a frozen head the nats of a
# position have no other gradient: (softmax(logits / temperature) − onehot(target)) / temperature, pulled back through
# the head; the cotangent only scales it. A margin is a constant in the target's logit, so that the softmax is that of
# the shifted logits and the rest the same. So the forward pass forms it while the logits of a chunk are at hand, and
# keeps (T, D); to keep the logits would take (T, V), to form them again another product with the head. For a trainable
# head this would be wrong: the residual holds nothing of the gradient of the weights. The leads have no gradient.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_scores(network: Network, loss: _Loss, params: Params, h_TD: Array, targets_T: Array) -> TokenScores:
    """Without a gradient, as in a decode: nothing is pulled back."""
    score = functools.partial(_scores, network, loss, params)
    return _over_chunks(score, network.config.vocab_size, h_TD, targets_T)


def _forward(network: Network, loss: _Loss, params: Params, h_TD: Array, targets_T: Array) -> tuple[TokenScores, Array]:
    score = functools.partial(_scores_and_gradient, network, loss, params)
    return _over_chunks(score, network.config.vocab_size, h_TD, targets_T)


def _backward(_network: Network, _loss: _Loss, gradient_TD: Array, cotangents: TokenScores) -> tuple[None, Array, None]:
    """Cotangents of (params, h_TD, targets_T); None stands for zero."""
    return None, (gradient_TD * cotangents.nats_T[:, None]).astype(gradient_TD.dtype), None


_token_scores.defvjp(_forward, _backward)


def _over_chunks(score: Callable[[Arrays], Any], vocab_size: int, *arrays: Array) -> Any:
    """`score` of arrays (T, …), a chunk of positions at a time, the last one padded."""
    T = len(arrays[0])
    chunk = max(1, min(T, LOGITS_BYTES // (4 * vocab_size)))
    if chunk == T:
        return score(arrays)
    padded = (jnp.pad(array, ((0, -T % chunk), *((0, 0) for _ in array.shape[1:]))) for array in arrays)
    out = jax.lax.map(score, tuple(array.reshape(-1, chunk, *array.shape[1:]) for array in padded))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:T], out)


def _scores(network: Network, loss: _Loss, params: Params, chunk: Arrays) -> TokenScores:
    h_TD, targets_T = chunk
    return _softmax_scores(network.head(params, h_TD), targets_T, loss)[0]


def _scores_and_gradient(network: Network, loss: _Loss, params: Params, chunk: Arrays) -> tuple[TokenScores, Array]:
    """The same, and dnats/dh of each position, (T, D)."""
    h_TD, targets_T = chunk
    logits_TV, pull_back = jax.vjp(functools.partial(network.head, params), h_TD)
    scores, p_TV = _softmax_scores(logits_TV, targets_T, loss)
    dnats_dlogits_TV = (p_TV - jax.nn.one_hot(targets_T, logits_TV.shape[-1])) / loss.temperature
    return scores, pull_back(dnats_dlogits_TV.astype(logits_TV.dtype))[0]


def _softmax_scores(logits_TV: Array, targets_T: Array, loss: _Loss) -> tuple[TokenScores, Array]:
    """Scores and softmax (T, V), from one pass for the greatest logits and one for the sum."""
    logits_TV = logits_TV.astype(jnp.float32)
    greatest_T1 = jnp.max(logits_TV, axis=-1, keepdims=True)
    predicted_T = _first_of(logits_TV, greatest_T1)
    target_T1 = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=-1)
    leads_T1 = None
    if loss.margin is not None:
        others_TV = jnp.where(_ids(logits_TV) == targets_T[:, None], -jnp.inf, logits_TV)
        other_T1 = jnp.max(others_TV, axis=-1, keepdims=True)
        leads_T1 = target_T1 - other_T1
        if (shift := max(0.0, loss.margin - SATURATED * loss.temperature)) > 0:
            target_T1 -= shift
            greatest_T1 = jnp.maximum(target_T1, other_T1)
            logits_TV = jnp.where(_ids(logits_TV) == targets_T[:, None], target_T1, logits_TV)
    weights_TV = jnp.exp((logits_TV - greatest_T1) / loss.temperature)
    total_T1 = jnp.sum(weights_TV, axis=-1, keepdims=True)
    nats_T1 = jnp.log(total_T1) - (target_T1 - greatest_T1) / loss.temperature
    leads_T = None if leads_T1 is None else leads_T1[:, 0]
    return TokenScores(nats_T1[:, 0], predicted_T, leads_T), weights_TV / total_T1


def argmax(logits_TV: Array) -> Array:
    """The least id of the greatest logit at each position, (T,) int32; any id where a logit is not a number."""
    return _first_of(logits_TV, jnp.max(logits_TV, axis=-1, keepdims=True))


def _first_of(logits_TV: Array, greatest_T1: Array) -> Array:
    """The least id with that logit at each position, (T,) int32.

    `jnp.argmax` reduces pairs of value and index, which XLA's CPU compiler does not vectorise. At V = 4096 two
    reductions of plain numbers take a sixth of its time. With them a step of the packaged model takes 1 to 5 % less
    processor time, and 12 % less with a vocabulary of 49,152.
    """
    last = logits_TV.shape[-1] - 1
    return jnp.min(jnp.where(logits_TV == greatest_T1, _ids(logits_TV), last), axis=-1)


def _ids(logits_TV: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits_TV.shape, logits_TV.ndim - 1)

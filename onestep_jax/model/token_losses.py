"""Cross-entropy and argmax of each token from hidden states, in float32 and little memory.

No array is ever (positions, V): the logits of a chunk of positions exist only while its losses, and the gradient of
these with respect to the hidden states, are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from onestep_jax.model.decoder import Array, Network, Params

LOGITS_BYTES = 2**25  # float32 logits held at a time for one text: 2048 positions at V = 4096, 65 at V = 128256

Arrays: TypeAlias = tuple[Array, ...]


def token_losses(
    network: Network, params: Params, h_TD: Array, targets_T: Array, temperature: float = 1.0
) -> tuple[Array, Array]:
    """Nats (T,) of each target under softmax(logits / temperature), and argmax ids (T,), from hidden states (T, D).

    With temperature 1 the nats are the terms of Eq. 1. A lower temperature leaves the argmax alone and takes the weight
    of the gradient off tokens that are already right, since their loss saturates sooner. Differentiable in `h_TD` only.
    Positions are taken in chunks, so that at most `LOGITS_BYTES` of logits exist at a time.
    """
    return _token_losses(network, temperature, params, h_TD, targets_T)


# The residual is not an input of the backward pass but already its result, dnats/dh. With a frozen head the nats of a
# position have no other gradient: (softmax(logits / temperature) − onehot(target)) / temperature, pulled back through
# the head; the cotangent only scales it. So the forward pass forms it while the logits of a chunk are at hand, and
# keeps (T, D); to keep the logits would take (T, V), to form them again another product with the head. For a trainable
# head this would be wrong: the residual holds nothing of the gradient of the weights.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_losses(network: Network, temperature: float, params: Params, h_TD: Array, targets_T: Array) -> Arrays:
    """Without a gradient, as in a decode: nothing is pulled back."""
    score = functools.partial(_nats_and_argmax, network, temperature, params)
    return _over_chunks(score, network.config.vocab_size, h_TD, targets_T)


def _forward(
    network: Network, temperature: float, params: Params, h_TD: Array, targets_T: Array
) -> tuple[Arrays, Array]:
    score = functools.partial(_nats_argmax_and_gradient, network, temperature, params)
    nats_T, predicted_T, gradient_TD = _over_chunks(score, network.config.vocab_size, h_TD, targets_T)
    return (nats_T, predicted_T), gradient_TD


def _backward(
    _network: Network, _temperature: float, gradient_TD: Array, cotangents: Arrays
) -> tuple[None, Array, None]:
    """Cotangents of (params, h_TD, targets_T); None stands for zero."""
    nats_T, _ = cotangents
    return None, (gradient_TD * nats_T[:, None]).astype(gradient_TD.dtype), None


_token_losses.defvjp(_forward, _backward)


def _over_chunks(score: Callable[[Arrays], Arrays], vocab_size: int, *arrays: Array) -> Arrays:
    """`score` of arrays (T, …), a chunk of positions at a time, the last one padded."""
    T = len(arrays[0])
    chunk = max(1, min(T, LOGITS_BYTES // (4 * vocab_size)))
    if chunk == T:
        return score(arrays)
    padded = (jnp.pad(array, ((0, -T % chunk), *((0, 0) for _ in array.shape[1:]))) for array in arrays)
    out = jax.lax.map(score, tuple(array.reshape(-1, chunk, *array.shape[1:]) for array in padded))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:T], out)


def _nats_and_argmax(network: Network, temperature: float, params: Params, chunk: Arrays) -> Arrays:
    h_TD, targets_T = chunk
    return _softmax_losses(network.head(params, h_TD), targets_T, temperature)[:2]


def _nats_argmax_and_gradient(network: Network, temperature: float, params: Params, chunk: Arrays) -> Arrays:
    """The same, and dnats/dh of each position, (T, D)."""
    h_TD, targets_T = chunk
    logits_TV, pull_back = jax.vjp(functools.partial(network.head, params), h_TD)
    nats_T, predicted_T, p_TV = _softmax_losses(logits_TV, targets_T, temperature)
    dnats_dlogits_TV = (p_TV - jax.nn.one_hot(targets_T, logits_TV.shape[-1])) / temperature
    return nats_T, predicted_T, pull_back(dnats_dlogits_TV.astype(logits_TV.dtype))[0]


def _softmax_losses(logits_TV: Array, targets_T: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Nats (T,), argmax ids (T,) and softmax (T, V), from one pass for the greatest logit and one for the sum."""
    logits_TV = logits_TV.astype(jnp.float32)
    greatest_T1 = jnp.max(logits_TV, axis=-1, keepdims=True)
    weights_TV = jnp.exp((logits_TV - greatest_T1) / temperature)
    total_T1 = jnp.sum(weights_TV, axis=-1, keepdims=True)
    target_T1 = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=-1)
    nats_T1 = jnp.log(total_T1) - (target_T1 - greatest_T1) / temperature
    return nats_T1[:, 0], _first_of(logits_TV, greatest_T1), weights_TV / total_T1


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
    ids_TV = jax.lax.broadcasted_iota(jnp.int32, logits_TV.shape, logits_TV.ndim - 1)
    return jnp.min(jnp.where(logits_TV == greatest_T1, ids_TV, last), axis=-1)

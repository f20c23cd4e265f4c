"""Cross-entropy and argmax of each token from hidden states, in float32 and little memory.

The head is frozen, so the gradient with respect to the hidden states can be formed while the logits of a few positions
are at hand: the forward pass keeps dLoss/dh, (positions, D), and no array is ever (positions, V).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from onestep_jax.model.decoder import Array, Network, Params

LOGITS_BYTES = 2**25  # float32 logits held at a time for one text: 2048 positions at V = 4096, 65 at V = 128256


def token_losses(
    network: Network, params: Params, h_TD: Array, targets_T: Array, temperature: float = 1.0
) -> tuple[Array, Array]:
    """Nats (T,) of each target under softmax(logits / temperature), and argmax ids (T,), from hidden states (T, D).

    A temperature below 1 leaves the argmax alone and takes the weight of the gradient off tokens that are already
    right: their loss saturates sooner. Differentiable in `h_TD` only. Positions are taken in chunks, so that at most
    `LOGITS_BYTES` of logits exist at a time.
    """
    T = targets_T.shape[0]
    chunk = max(1, min(T, LOGITS_BYTES // (4 * network.config.vocab_size)))
    pad = -T % chunk

    def by_chunks(array: Array) -> Array:
        padded = jnp.pad(array, ((0, pad), *((0, 0) for _ in array.shape[1:])))
        return padded.reshape(-1, chunk, *array.shape[1:])

    def over_chunks(one, *arrays):
        if chunk == T:
            return one(arrays)
        out = jax.lax.map(one, tuple(by_chunks(array) for array in arrays))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:T], out)

    def weighed(logits_TV: Array, targets: Array) -> tuple[Array, Array, Array]:
        """Nats, argmax ids and softmax of a chunk."""
        logits_TV = logits_TV.astype(jnp.float32)
        greatest_T1 = jnp.max(logits_TV, axis=-1, keepdims=True)
        weights_TV = jnp.exp((logits_TV - greatest_T1) / temperature)
        total_T1 = jnp.sum(weights_TV, axis=-1, keepdims=True)
        chosen_T1 = jnp.take_along_axis(logits_TV, targets[:, None], axis=-1)
        nats_T1 = jnp.log(total_T1) - (chosen_T1 - greatest_T1) / temperature
        return nats_T1[:, 0], _first_of(logits_TV, greatest_T1), weights_TV / total_T1

    @jax.custom_vjp
    def run(params: Params, h_TD: Array, targets_T: Array):
        return over_chunks(lambda xs: weighed(network.head(params, xs[0]), xs[1])[:2], h_TD, targets_T)

    def forward(params: Params, h_TD: Array, targets_T: Array):
        def one(xs):
            h, targets = xs
            logits, pull = jax.vjp(lambda h: network.head(params, h), h)
            nats, predicted, p_TV = weighed(logits, targets)
            wrong = (p_TV - jax.nn.one_hot(targets, logits.shape[-1])) / temperature
            return nats, predicted, pull(wrong.astype(logits.dtype))[0]

        nats, predicted, dh_TD = over_chunks(one, h_TD, targets_T)
        return (nats, predicted), dh_TD

    def backward(dh_TD: Array, cotangents):
        return None, (dh_TD * cotangents[0][:, None]).astype(dh_TD.dtype), None

    run.defvjp(forward, backward)
    return run(params, h_TD, targets_T)


def argmax(logits_TV: Array) -> Array:
    """The least id of the greatest logit at each position, (T,) int32; any id where a logit is not a number."""
    return _first_of(logits_TV, jnp.max(logits_TV, axis=-1, keepdims=True))


def _first_of(logits_TV: Array, greatest_T1: Array) -> Array:
    """The least id with that logit at each position, (T,) int32.

    `jnp.argmax` reduces pairs of value and index, which XLA's CPU compiler does not vectorise; to reduce plain numbers
    twice takes a fifth of its time there, and beside a softmax, which wants the greatest as well, less.
    """
    last = logits_TV.shape[-1] - 1
    ids_TV = jax.lax.broadcasted_iota(jnp.int32, logits_TV.shape, logits_TV.ndim - 1)
    return jnp.min(jnp.where(logits_TV == greatest_T1, ids_TV, last), axis=-1)

"""Cross-entropy and hits of a text under given proto-tokens (Eq. 1 and Eq. 2), in float32 and little memory.

The head is frozen, so the gradient with respect to the hidden states can be formed while the logits of a few positions
are at hand: the forward pass keeps dLoss/dh, (positions, D), and no array is ever (positions, V).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from onestep_jax.model import Network, Params, weights_dtype
from onestep_jax.partition import TEXTS, texts_are_spread
from onestep_jax.schemes import Array, Leaves, Scheme, axes

TEXTS_AT_A_TIME = 16  # of one group, in a forward and backward pass
LOGITS_BYTES = 2**25  # float32 logits held at a time for one text: 2048 positions at V = 4096, 65 at V = 128256


class Score(NamedTuple):
    """What a group of texts scores.

    Attributes:
      nats_G: (G,) mean nats per token under softmax(logits / temperature).
      hits_GT: (G, T) whether a token is the argmax; False beyond the end of a text.
      predicted_GT: (G, T) the argmax token ids.
    """

    nats_G: Array
    hits_GT: Array
    predicted_GT: Array


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


def score_text(
    network: Network,
    scheme: Scheme,
    params: Params,
    leaves: Leaves,
    tokens_T: Array,
    length: Array,
    temperature: float = 1.0,
) -> tuple[Array, Array, Array]:
    """(mean nats, hits (T,), argmax (T,)) of one text of `length` tokens, padded to T."""
    T = tokens_T.shape[0]
    # A scheme that is not teacher-forced never sees the text.
    text_TD = network.embed(params, tokens_T) if scheme.teacher_forced else jnp.zeros((T, network.embed_width))
    x_TD = scheme.inputs(leaves, text_TD, length).astype(weights_dtype(params))
    h_TD = network.hidden(params, x_TD)[scheme.reads(T)]
    nats_T, predicted_T = token_losses(network, params, h_TD, tokens_T, temperature)
    real_T = jnp.arange(T) < length
    mean_nats = jnp.sum(jnp.where(real_T, nats_T, 0.0)) / jnp.maximum(length, 1)
    return mean_nats, real_T & (predicted_T == tokens_T), predicted_T


def score_group(
    network: Network,
    scheme: Scheme,
    params: Params,
    leaves: Leaves,
    tokens_GT: Array,
    lengths_G: Array,
    temperature: float = 1.0,
) -> Score:
    """`score_text` over the texts of a group, shared leaves going to each of them.

    A group of more than `TEXTS_AT_A_TIME` is walked in micro-batches; the gradient of a shared leaf is their sum,
    and what the backward pass needs of a micro-batch is computed again instead of kept. Where the texts of a group are
    spread over devices, each walks its own, and the gradient of a shared leaf is summed over the devices.
    """
    own = {name: leaf for name, leaf in leaves.items() if axes(scheme)[name] == 0}
    shared = {name: leaf for name, leaf in leaves.items() if name not in own}

    def over(params: Params, shared: Leaves, texts: tuple[Leaves, Array, Array]) -> tuple[Array, Array, Array]:
        def one(text: tuple[Leaves, Array, Array]) -> tuple[Array, Array, Array]:
            own, tokens_T, length = text
            return score_text(network, scheme, params, {**own, **shared}, tokens_T, length, temperature)

        if len(texts[1]) == 1:  # an axis of one would make XLA's reductions on a CPU several times slower
            return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], texts)))
        if len(texts[1]) <= TEXTS_AT_A_TIME:
            return jax.vmap(one)(texts)
        return jax.lax.map(jax.checkpoint(one), texts, batch_size=TEXTS_AT_A_TIME)

    if texts_are_spread():
        whole, split = PartitionSpec(), PartitionSpec(TEXTS)
        specs = {"in_specs": (whole, whole, split), "out_specs": split}
        over = jax.shard_map(over, **specs, axis_names={TEXTS}, check_vma=False)
    return Score(*over(params, shared, (own, tokens_GT, lengths_G)))


def group_loss(nats_G: Array, lengths_G: Array) -> Array:
    """Mean over the texts of a group of their mean nats per token; places without a text (length 0) do not count."""
    return jnp.sum(nats_G) / jnp.maximum(jnp.sum(lengths_G > 0), 1)


def accuracies(hits_GT: Array, lengths_G: Array) -> Array:
    """C_tokens / N of each text (Eq. 2), (G,) float32; 1 for an empty place, which asks for nothing."""
    counted = jnp.sum(hits_GT, axis=-1) / jnp.maximum(lengths_G, 1)
    return jnp.where(lengths_G > 0, counted, 1.0).astype(jnp.float32)

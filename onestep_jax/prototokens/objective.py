"""What a text, and a group of texts, scores under given proto-tokens: loss (Eq. 1) and exact tokens (Eq. 2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from onestep_jax.devices.weight_split import TEXTS, texts_are_spread
from onestep_jax.model.decoder import Network, Params, weights_dtype
from onestep_jax.model.token_losses import token_losses
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme, axes

TEXTS_AT_A_TIME = 16  # of one group, in a forward and backward pass


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

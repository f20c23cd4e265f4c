"""What a text, and a group of texts, scores under given proto-tokens: loss (Eq. 1) and exact tokens (Eq. 2)."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from onestep_jax.devices.weight_split import TEXTS, texts_are_spread
from onestep_jax.model.decoder import Network, Params, Past, weights_dtype
from onestep_jax.model.token_losses import token_scores
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme, axes

_Texts: TypeAlias = tuple[Leaves, Past | None, Array, Array]

TEXTS_AT_A_TIME = 16  # texts of one group in a forward and backward pass


class TextScore(NamedTuple):
    """What one text scores.

    Attributes:
      nats: () mean nats per token under softmax(logits / temperature); Eq. 1, per token, at temperature 1.
      hits_T: (T,) whether a token is the argmax; False beyond the end of the text.
      predicted_T: (T,) the argmax token ids.
      leads_T: (T,) logits by which a token leads the runner-up, infinite beyond the end of the text; None unless asked
        for.
    """

    nats: Array
    hits_T: Array
    predicted_T: Array
    leads_T: Array | None = None


class Score(NamedTuple):
    """What a group of texts scores.

    Attributes:
      nats_G: (G,) mean nats per token under softmax(logits / temperature).
      hits_GT: (G, T) whether a token is the argmax; False beyond the end of a text.
      predicted_GT: (G, T) the argmax token ids.
      leads_GT: (G, T) logits by which a token leads the runner-up, infinite beyond the end of a text; None unless asked
        for.
    """

    nats_G: Array
    hits_GT: Array
    predicted_GT: Array
    leads_GT: Array | None = None


def score_text(
    network: Network,
    scheme: Scheme,
    params: Params,
    leaves: Leaves,
    tokens_T: Array,
    length: Array,
    temperature: float = 1.0,
    past: Past | None = None,
    masks: Any = None,
    margin: float | None = None,
) -> TextScore:
    """Score one text of `length` tokens, padded to T, under given leaves, behind a prefix if there is one.

    `temperature` and `margin` are those of the loss, see `token_losses.token_scores`. `masks` hide positions from
    others, see `Network.hidden`.
    """
    T = tokens_T.shape[0]
    # A scheme that is not teacher-forced never sees the text.
    text_TD = network.embed(params, tokens_T) if scheme.teacher_forced else jnp.zeros((T, network.embed_width))
    x_TD = scheme.inputs(leaves, text_TD, length).astype(weights_dtype(params))
    # Eq. 1 has no shift: with [e, m, …, m] the output at input i, which has seen inputs 1 … i, predicts token i.
    # `reads` names that output for every scheme.
    h_TD = network.hidden(params, x_TD, past, masks=masks)[scheme.reads(T)]
    nats_T, predicted_T, leads_T = token_scores(network, params, h_TD, tokens_T, temperature, margin)
    # Padding follows the text, so under the causal mask it reaches no real position; its own losses are left out here.
    real_T = jnp.arange(T) < length
    mean_nats = jnp.sum(jnp.where(real_T, nats_T, 0.0)) / jnp.maximum(length, 1)
    leads_T = None if leads_T is None else jnp.where(real_T, leads_T, jnp.inf)
    hits_T = real_T & (predicted_T == tokens_T)
    return TextScore(nats=mean_nats, hits_T=hits_T, predicted_T=predicted_T, leads_T=leads_T)


def score_group(
    network: Network,
    scheme: Scheme,
    params: Params,
    leaves: Leaves,
    tokens_GT: Array,
    lengths_G: Array,
    temperature: float = 1.0,
    past: Past | None = None,
    margin: float | None = None,
) -> Score:
    """Score the texts of a group; shared leaves go to each of them, and so does a `past` that has no lengths.

    A `past` with lengths (G,) holds the prefix of each text, its arrays leading with G.

    A group of more than `TEXTS_AT_A_TIME` is taken in micro-batches; the gradient of a shared leaf is their sum, and
    the backward pass computes the activations of a micro-batch again instead of keeping them. Where the texts of a
    group are spread over devices, each device takes its own texts, and the gradient of a shared leaf is summed over the
    devices.
    """
    own = {name: leaf for name, leaf in leaves.items() if axes(scheme)[name] == 0}
    shared = {name: leaf for name, leaf in leaves.items() if name not in own}
    common, own_past = (past, None) if past is None or past.length is None else (None, past)

    def score_texts(params: Params, shared: Leaves, common: Past | None, texts: _Texts) -> TextScore:
        def one(text: _Texts) -> TextScore:
            own, own_past, tokens_T, length = text
            leaves, past = {**own, **shared}, own_past or common
            return score_text(network, scheme, params, leaves, tokens_T, length, temperature, past, margin=margin)

        if len(texts[2]) == 1:  # an axis of one would make XLA's reductions on a CPU several times slower
            return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], texts)))
        if len(texts[2]) <= TEXTS_AT_A_TIME:
            return jax.vmap(one)(texts)
        return jax.lax.map(jax.checkpoint(one), texts, batch_size=TEXTS_AT_A_TIME)

    if texts_are_spread():
        # Mapped by hand, so that a device walks micro-batches of its own texts. The transpose of handing a shared leaf
        # to every device is a sum over the devices: the one exchange of a step.
        whole, split = PartitionSpec(), PartitionSpec(TEXTS)
        score_texts = jax.shard_map(
            score_texts, in_specs=(whole, whole, whole, split), out_specs=split, axis_names={TEXTS}, check_vma=False
        )
    scores = score_texts(params, shared, common, (own, own_past, tokens_GT, lengths_G))
    return Score(nats_G=scores.nats, hits_GT=scores.hits_T, predicted_GT=scores.predicted_T, leads_GT=scores.leads_T)


def group_loss(nats_G: Array, lengths_G: Array) -> Array:
    """Mean over the texts of a group of their mean nats per token; places without a text (length 0) do not count."""
    return jnp.sum(nats_G) / jnp.maximum(jnp.sum(lengths_G > 0), 1)


def accuracies(hits_GT: Array, lengths_G: Array) -> Array:
    """C_tokens / N of each text (Eq. 2), (G,) float32; 1 for an empty place, so that it does not hold its group up."""
    counted = jnp.sum(hits_GT, axis=-1) / jnp.maximum(lengths_G, 1)
    return jnp.where(lengths_G > 0, counted, 1.0).astype(jnp.float32)


def group_accuracy(accuracy_G: Array, lengths_G: Array) -> Array:
    """Mean over the texts of a group of their accuracies; places without a text do not count."""
    real_G = lengths_G > 0
    return jnp.sum(jnp.where(real_G, accuracy_G, 0.0)) / jnp.maximum(jnp.sum(real_G), 1)

"""How many nats a text holds under the model, run autoregressively: H_LM (Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Array, Model, Network, Params
from onestep_jax.model.token_losses import token_losses
from onestep_jax.tokens import buckets, check_tokens

BATCH = 8


class TextNats(NamedTuple):
    """A text under the model.

    Attributes:
      nats: float32, −ln P(t_i | what comes before it) of each token: all N of them after a BOS, else those from the
        second on, (N − 1,).
      total: H_LM (Eq. 3), their sum.
    """

    nats: np.ndarray
    total: float


def beginning(model: Model) -> int | None:
    """Id of the token that stands before a text: the tokenizer's BOS, or None if it has none.

    Eq. 3 does not say what the first token is predicted from. With a BOS it is predicted from that; without one, its
    term is left out of H_LM.
    """
    return None if model.tokenizer is None else model.tokenizer.bos_token_id


def text_nats(model: Model, tokens: Sequence[Any], *, batch: int = BATCH) -> list[TextNats]:
    """H_LM (Eq. 3) of each text, per token and total, in nats.

    Args:
      model: the frozen model.
      tokens: token ids of each text, without special tokens.
      batch: texts in a forward pass.

    Raises:
      UserError: for a text that is empty, too long, or holds an id that the model does not have.
    """
    texts = check_tokens(tokens, model.config.vocab_size, model.config.context)
    bos = beginning(model)
    inputs = [np.array([*([] if bos is None else [bos]), *ids[:-1]], np.int32) for ids in texts]
    targets = [ids if bos is not None else ids[1:] for ids in texts]
    padded = np.array(buckets([len(ids) for ids in inputs], model.config.boundary), int)
    found: dict[int, TextNats] = {}
    for positions in np.unique(padded):
        members = np.flatnonzero(padded == positions)
        for first in range(0, len(members), batch):
            rows = np.resize(members[first : first + batch], min(batch, len(members)))
            given, wanted = (np.zeros((len(rows), positions), np.int32) for _ in range(2))
            for place, i in enumerate(rows):
                given[place, : len(inputs[i])], wanted[place, : len(targets[i])] = inputs[i], targets[i]
            nats = np.asarray(_nats(model.config, model.params, given, wanted)) if positions else given
            for place, i in enumerate(rows):
                own = nats[place, : len(targets[i])].astype(np.float32)
                found[int(i)] = TextNats(own, float(own.sum(dtype=np.float64)))
    return [found[i] for i in range(len(texts))]


@partial(jax.jit, static_argnums=0)
def _nats(config: ModelConfig, params: Params, given_GT: Array, wanted_GT: Array) -> Array:
    """Nats of each wanted token after the given ones, (G, T); meaningless at padding."""
    model = Network(config)

    def one(given_T: Array, wanted_T: Array) -> Array:
        hidden_TD = model.hidden(params, model.embed(params, given_T))
        return token_losses(model, params, hidden_TD, wanted_T)[0]

    return jax.vmap(one)(given_GT, wanted_GT)

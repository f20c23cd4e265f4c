"""Information of a text in nats under the model, run autoregressively: H_LM (Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import MOST_TEXTS, ROOM, UserError, check_kind
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Array, Model, Network, Params
from onestep_jax.model.token_losses import token_losses
from onestep_jax.tokens import batches, check_prefixes, check_tokens

BATCH = 8


class TextNats(NamedTuple):
    """A text under the model.

    Attributes:
      nats: float32, −ln P(t_i | t_<i) of each token: (N,) with a prefix or a BOS before the text; without either the
        first token has no term, (N − 1,).
      total: their sum, H_LM (Eq. 3).
    """

    nats: np.ndarray
    total: float


def beginning(model: Model) -> int | None:
    """Id of the token that stands before a text: the tokenizer's BOS, or None if the model has none.

    Eq. 3 does not say what the first token is predicted from. Here it is predicted from the BOS; without a BOS its term
    is left out of H_LM.
    """
    bos = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return bos if bos is not None and bos < model.config.vocab_size else None  # a tokenizer may have more ids


def first_term(model: Model, prefix_rows: int) -> str:
    """In words, what the first token is predicted from, where the longest prefix has so many tokens."""
    without = "left out" if beginning(model) is None else "given BOS"
    return "given the prefix" if prefix_rows else without


@pinned
def text_nats(
    model: Model,
    tokens: Sequence[Any],
    *,
    prefixes: Sequence[Any] | None = None,
    batch: int = BATCH,
    room: int = 0,
) -> list[TextNats]:
    """Measure H_LM (Eq. 3) of each text, per token and in total, in nats.

    Args:
      model: the frozen model.
      tokens: token ids of each text, without special tokens.
      prefixes: token ids that stand before each text and have no term of their own; a text with an empty one, or all
        without prefixes, stand behind the BOS, see `beginning`.
      batch: texts in a forward pass at most.
      room: tokens of the longest text of other calls that shall use the same compiled programs; 0 for none.

    Raises:
      UserError: for a text that is empty, too long with its prefix, or holds an id that the model does not have; for
        such an id in a prefix, or another number of prefixes than of texts.
    """
    check_kind("what load_model returns", Model, model=model)
    MOST_TEXTS.check("batch", batch)
    ROOM.check("room", room)
    texts = check_tokens(tokens, model.config.vocab_size, model.config.context)
    before = _before(model, prefixes, len(texts))
    inputs = [np.concatenate([prefix, ids[:-1]]) for prefix, ids in zip(before, texts, strict=True)]
    _check_room(model.config, before, texts, inputs)
    targets = [
        np.concatenate([np.zeros(max(0, len(prefix) - 1), np.int32), ids if len(prefix) else ids[1:]])
        for prefix, ids in zip(before, texts, strict=True)
    ]
    found: dict[int, TextNats] = {}
    if room:
        room = min(model.config.context, room + max((len(prefix) for prefix in before), default=0) - 1)
    for chosen in batches([len(ids) for ids in inputs], batch, boundary=model.config.boundary, room=room):
        given_GT, wanted_GT = chosen.pad(inputs), chosen.pad(targets)
        nats_GT = np.asarray(_nats(model.config, model.params, given_GT, wanted_GT))
        for i, nats_T in zip(chosen.texts, nats_GT, strict=False):
            own = nats_T[max(0, len(before[i]) - 1) : len(targets[i])].astype(np.float32)
            found[i] = TextNats(nats=own, total=float(own.sum(dtype=np.float64)))
    return [found[i] for i in range(len(texts))]


def _before(model: Model, prefixes: Sequence[Any] | None, count: int) -> list[np.ndarray]:
    """The tokens that stand before each of so many texts: its prefix, or else the BOS, or none."""
    bos = beginning(model)
    alone = np.array([] if bos is None else [bos], np.int32)
    given = [alone] * count if prefixes is None else check_prefixes(prefixes, count, model.config.vocab_size)
    return [prefix if len(prefix) else alone for prefix in given]


def _check_room(
    config: ModelConfig, before: Sequence[np.ndarray], texts: Sequence[np.ndarray], inputs: Sequence[np.ndarray]
) -> None:
    """Refuse texts that do not fit into the context behind what stands before them."""
    for i, (prefix, ids, given) in enumerate(zip(before, texts, inputs, strict=True)):
        if len(given) > config.context:
            got = f"{len(prefix)} tokens before it and {len(ids)} of its own, of which the last is no input"
            raise UserError(f"text {i}: {got}; the model's context has room for {config.context}; give fewer of them")


@partial(jax.jit, static_argnums=0)
def _nats(config: ModelConfig, params: Params, given_GT: Array, wanted_GT: Array) -> Array:
    """Nats of each wanted token after the given ones, (G, T); padded positions have no meaning."""
    model = Network(config)

    def one(given_T: Array, wanted_T: Array) -> Array:
        hidden_TD = model.hidden(params, model.embed(params, given_T))
        return token_losses(model, params, hidden_TD, wanted_T)[0]

    return jax.vmap(one)(given_GT, wanted_GT)

"""Autoregressive generation with a KV cache, from token ids or from input vectors, in one compiled loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Array, Decoder, Model, Network, Params
from onestep_jax.model.token_losses import argmax
from onestep_jax.tokens import buckets, check_tokens

BATCH = 16


class Generated(NamedTuple):
    """What follows one prompt.

    Attributes:
      tokens: (≤ count,) int32, the new ids, without the stop token.
      stopped: whether a stop token ended it.
    """

    tokens: np.ndarray
    stopped: bool


class _Loop(NamedTuple):
    """State of the loop over new tokens.

    Attributes:
      step: () tokens generated so far.
      tokens_GN: (G, count) the new ids, zero beyond `step`.
      last_G: (G,) the newest ids.
      done_G: (G,) whether a stop token has come.
      cache: block → attention → "k", "v": (G, K, S, C).
    """

    step: Array
    tokens_GN: Array
    last_G: Array
    done_G: Array
    cache: Any


def generate(
    model: Model,
    prompts: Sequence[Any],
    *,
    count: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Iterable[int] | None = None,
    batch: int = BATCH,
) -> list[Generated]:
    """Continue each prompt by up to `count` tokens.

    A text's tokens depend on its prompt, its place in `prompts` and the seed, not on the batch it shares.

    Args:
      model: the frozen model.
      prompts: strings (tokenised as the tokenizer does by itself, special tokens included), lists of token ids, or
        input vectors, arrays (T, D) of floats.
      count: how many tokens at most.
      temperature: 0 for the likeliest token each time (greedy), else of the softmax that tokens are drawn from.
      seed: of the drawing.
      stop: ids that end a text; None for the model's own, () for none.
      batch: texts at a time.

    Raises:
      UserError: for a prompt that is empty, of a wrong shape, or with `count` beyond the model's context.
    """
    if count < 1 or batch < 1:
        raise UserError(f"count = {count}, batch = {batch}: expected at least 1")
    if not temperature >= 0:
        raise UserError(f"temperature = {temperature}: expected at least 0")
    inputs = [_input_vectors(model, i, prompt) for i, prompt in enumerate(prompts)]
    lengths = [len(x_TD) for x_TD in inputs]
    _check_room(model.config, lengths, count)
    stops = np.asarray(sorted(model.stop_tokens if stop is None else set(stop)), np.int32)
    padded = np.array(buckets(lengths, model.config.boundary), int)
    found: dict[int, Generated] = {}
    for positions in np.unique(padded):
        members = np.flatnonzero(padded == positions)
        width = min(batch, len(members))
        for first in range(0, len(members), batch):
            rows = np.resize(members[first : first + batch], width)
            x_GTD = np.stack([np.pad(inputs[i], ((0, positions - lengths[i]), (0, 0))) for i in rows])
            lengths_G, texts_G = np.array([lengths[i] for i in rows], np.int32), rows.astype(np.uint32)
            key = jax.random.key(seed)
            settings = (model.config, count, temperature > 0)
            tokens_GN, done_G = _continue(*settings, model.params, x_GTD, lengths_G, texts_G, key, temperature, stops)
            for i, tokens, done in zip(rows, np.asarray(tokens_GN), np.asarray(done_G), strict=True):
                ends = np.flatnonzero(np.isin(tokens, stops)) if done else [count]
                found[int(i)] = Generated(tokens[: ends[0]], bool(done))
    return [found[i] for i in range(len(prompts))]


def _input_vectors(model: Model, i: int, prompt: Any) -> np.ndarray:
    """(T, D) input vectors of a prompt, in the dtype of the weights."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise UserError(f"model {model.source!r} has no tokenizer: give token ids or input vectors, no strings")
        prompt = model.tokenizer(prompt)["input_ids"]
    array = np.asarray(prompt)
    if array.ndim == 2:
        if array.shape[1] != model.embed_width or not len(array):
            expected = f"(positions, {model.embed_width})"
            raise UserError(f"prompt {i}: input vectors of shape {array.shape}; expected {expected}")
        return array.astype(model.dtype)
    try:
        (ids,) = check_tokens([array], model.config.vocab_size, model.config.context)
    except UserError as error:
        raise UserError(f"prompt {i}: {str(error).removeprefix('text 0: ')}") from error
    return np.asarray(_embed(model.config, model.params, np.pad(ids, (0, -len(ids) % 8))))[: len(ids)]


def _check_room(config: ModelConfig, lengths: Sequence[int], count: int) -> None:
    """Refuse prompts whose continuation does not fit."""
    for i, length in enumerate(lengths):
        if length + count > config.context:
            need = f"{length} positions and {count} new tokens"
            raise UserError(f"prompt {i}: {need} are beyond the model's context of {config.context}")
        if config.boundary is not None and length <= config.boundary < length + count:
            reason = "rotary positions change there, and a KV cache cannot follow"
            cure = "generate fewer tokens, or give a longer prompt"
            raise UserError(f"prompt {i}: {length} + {count} tokens cross position {config.boundary}; {reason}; {cure}")


@partial(jax.jit, static_argnums=0)
def _embed(config: ModelConfig, params: Params, tokens_T: Array) -> Array:
    return Network(config).embed(params, tokens_T)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _continue(
    config: ModelConfig,
    count: int,
    drawn: bool,
    params: Params,
    x_GTD: Array,
    lengths_G: Array,
    texts_G: Array,
    key: Array,
    temperature: Array,
    stops: Array,
) -> tuple[Array, Array]:
    """New ids (G, count) and whether a stop token is among them (G,), from padded input vectors.

    Padding follows a prompt. Its keys and values come to lie where those of the new tokens go, and each is overwritten
    before a position that could see it is reached.
    """
    model, T = Network(config), x_GTD.shape[1]
    # The longest cache that a text of this batch may need; on one side of a change of rotary positions as a whole.
    room = T + count if config.boundary is None or config.boundary < T else min(T + count, config.boundary)

    def forward(cache: Any, x_TD: Array, start: Array | int) -> tuple[Array, Any]:
        variables = {"params": params, "cache": cache}
        hidden, changed = Decoder(config).apply(variables, x_TD, start, method="hidden", mutable=["cache"])
        return hidden, changed["cache"]  # pyright: ignore[reportReturnType]

    def choose(h_D: Array, text: Array, position: Array) -> Array:
        logits_V = model.head(params, h_D[None])[0].astype(jnp.float32)
        if not drawn:
            return argmax(logits_V)
        own = jax.random.fold_in(jax.random.fold_in(key, text), position)
        return jax.random.categorical(own, logits_V / temperature).astype(jnp.int32)

    def first(x_TD: Array, length: Array, text: Array) -> tuple[Array, Any]:
        hidden_TD, cache = forward(empty_cache(config, room, x_TD.dtype), x_TD, 0)
        return choose(hidden_TD[length - 1], text, length), cache

    def following(cache: Any, last: Array, position: Array, text: Array) -> tuple[Array, Any]:
        hidden_TD, cache = forward(cache, model.embed(params, last[None]), position)
        return choose(hidden_TD[0], text, position + 1), cache

    def advance(loop: _Loop) -> _Loop:
        position_G = lengths_G + loop.step - 1
        last_G, cache = jax.vmap(following)(loop.cache, loop.last_G, position_G, texts_G)
        tokens_GN = loop.tokens_GN.at[:, loop.step].set(last_G)
        return _Loop(loop.step + 1, tokens_GN, last_G, loop.done_G | jnp.isin(last_G, stops), cache)

    last_G, cache = jax.vmap(first)(x_GTD, lengths_G, texts_G)
    tokens_GN = jnp.zeros((len(texts_G), count), jnp.int32).at[:, 0].set(last_G)
    loop = _Loop(jnp.int32(1), tokens_GN, last_G, jnp.isin(last_G, stops), cache)
    loop = jax.lax.while_loop(lambda loop: (loop.step < count) & ~loop.done_G.all(), advance, loop)
    return loop.tokens_GN, loop.done_G


def empty_cache(config: ModelConfig, positions: int, dtype: Any) -> Any:
    """Zero keys and values of every block for one text: block → attention → "k", "v", each (K, positions, C)."""
    zeros = jnp.zeros((config.kv_heads, positions, config.head_dim), dtype)
    return {f"block_{i}": {"attention": {"k": zeros, "v": zeros}} for i in range(config.layers)}

"""Autoregressive generation with a KV cache, from token ids or from input vectors, in one compiled loop."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import COUNT, MOST_TEXTS, SEED, TOKEN, UserError, check_kind, check_list
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Array, Decoder, Model, Network, Params, empty_cache
from onestep_jax.model.token_losses import argmax
from onestep_jax.tokens import batches, check_tokens

BATCH = 16


class Generated(NamedTuple):
    """What follows one prompt.

    Attributes:
      tokens: (≤ count,) int32, the new ids, without the stop token.
      stopped: whether a stop token ended it.
    """

    tokens: np.ndarray
    stopped: bool


class _Draw(NamedTuple):
    """How tokens are drawn.

    Attributes:
      key: of all random numbers of a call.
      temperature: () of the softmax.
    """

    key: Array
    temperature: Array | float


class _Loop(NamedTuple):
    """State of the loop over new tokens.

    Attributes:
      step: () int32, tokens generated so far.
      tokens_GN: (G, count) int32, the new ids, zero beyond `step`.
      last_G: (G,) int32, the newest ids.
      done_G: (G,) whether a stop token has come.
      cache: as of `decoder.empty_cache`, each array with the leading axis G.
    """

    step: Array
    tokens_GN: Array
    last_G: Array
    done_G: Array
    cache: Any


@pinned
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

    The new tokens depend on the prompt, its place in `prompts` and the seed, not on the other prompts of a batch.

    Args:
      model: the frozen model.
      prompts: strings (tokenised with the tokenizer's special tokens), lists of token ids, or input vectors, arrays
        (T, D) of floats.
      count: how many tokens at most.
      temperature: of the softmax that tokens are drawn from; 0 takes the likeliest token each time (greedy).
      seed: of the drawing.
      stop: ids that end a text; None for the model's own, () for none.
      batch: prompts in a forward pass at most.

    Raises:
      UserError: for a prompt that is empty, has a wrong shape, or leaves no room for `count` tokens in the model's
        context, and for a number or an id that is none.
    """
    check_kind("what load_model returns", Model, model=model)
    prompts = check_list("a list of prompts", "prompts", prompts)
    COUNT.check("count", count)
    MOST_TEXTS.check("batch", batch)
    check_kind("a number", numbers.Real, temperature=temperature)
    SEED.check("seed", seed)
    if not temperature >= 0:
        raise UserError(f"temperature = {temperature}: expected at least 0")
    inputs = [_input_vectors(model, i, prompt) for i, prompt in enumerate(prompts)]
    lengths = [len(x_TD) for x_TD in inputs]
    _check_room(model.config, lengths, count)
    stops = _stop_ids(model, stop)
    draw = _Draw(jax.random.key(seed), temperature) if temperature > 0 else None
    found: dict[int, Generated] = {}
    for chosen in batches(lengths, batch, boundary=model.config.boundary):
        x_GTD, texts_G = chosen.pad(inputs), chosen.rows.astype(np.uint32)
        tokens_GN, done_G = _continue(model.config, count, model.params, x_GTD, chosen.lengths, texts_G, draw, stops)
        for i, tokens, done in zip(chosen.texts, np.asarray(tokens_GN), np.asarray(done_G), strict=False):
            ends = np.flatnonzero(np.isin(tokens, stops)) if done else [count]
            found[i] = Generated(tokens=tokens[: ends[0]], stopped=bool(done))
    return [found[i] for i in range(len(prompts))]


def _stop_ids(model: Model, stop: Iterable[int] | None) -> np.ndarray:
    """The ids that end a text, int32 in order: those given, or the model's own as far as its vocabulary has them."""
    if stop is None:
        return np.asarray(sorted(one for one in model.stop_tokens if 0 <= one < model.config.vocab_size), np.int32)
    listed = check_list("a list of token ids", "stop", stop)
    for one in listed:
        TOKEN.check("stop token", one)
    return np.asarray(sorted({int(one) for one in listed}), np.int32)


def _input_vectors(model: Model, i: int, prompt: Any) -> np.ndarray:
    """(T, D) input vectors of a prompt, in the dtype of the weights."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise UserError(f"model {model.source!r} has no tokenizer: give token ids or input vectors")
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
    """Refuse prompts whose continuation does not fit into the context."""
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


@partial(jax.jit, static_argnums=(0, 1))
def _continue(
    config: ModelConfig,
    count: int,
    params: Params,
    x_GTD: Array,
    lengths_G: Array,
    texts_G: Array,
    draw: _Draw | None,
    stops: Array,
) -> tuple[Array, Array]:
    """New ids (G, count) and whether a stop token is among them (G,), from padded input vectors.

    Padding follows a prompt, and the keys and values of the new tokens are written over its keys and values. A padded
    position is overwritten before any query can attend to it.
    """
    T = x_GTD.shape[1]
    # The longest cache that a text of this batch may need. Where rotary positions change, it stays on one side.
    room = T + count if config.boundary is None or config.boundary < T else min(T + count, config.boundary)

    def first(x_TD: Array, length: Array, text: Array) -> tuple[Array, Any]:
        hidden_TD, cache = _forward(config, params, empty_cache(config, params, room, x_TD.dtype), x_TD, 0)
        return _choose(config, params, hidden_TD[length - 1], draw, text, length), cache

    def following(cache: Any, last: Array, position: Array, text: Array) -> tuple[Array, Any]:
        hidden_TD, cache = _forward(config, params, cache, Network(config).embed(params, last[None]), position)
        return _choose(config, params, hidden_TD[0], draw, text, position + 1), cache

    def advance(loop: _Loop) -> _Loop:
        position_G = lengths_G + loop.step - 1
        last_G, cache = jax.vmap(following)(loop.cache, loop.last_G, position_G, texts_G)
        tokens_GN = loop.tokens_GN.at[:, loop.step].set(last_G)
        done_G = loop.done_G | jnp.isin(last_G, stops)
        return _Loop(step=loop.step + 1, tokens_GN=tokens_GN, last_G=last_G, done_G=done_G, cache=cache)

    last_G, cache = jax.vmap(first)(x_GTD, lengths_G, texts_G)
    tokens_GN = jnp.zeros((len(texts_G), count), jnp.int32).at[:, 0].set(last_G)
    done_G = jnp.isin(last_G, stops)
    loop = _Loop(step=jnp.int32(1), tokens_GN=tokens_GN, last_G=last_G, done_G=done_G, cache=cache)
    loop = jax.lax.while_loop(lambda loop: (loop.step < count) & ~loop.done_G.all(), advance, loop)
    return loop.tokens_GN, loop.done_G


def _forward(config: ModelConfig, params: Params, cache: Any, x_TD: Array, start: Array | int) -> tuple[Array, Any]:
    """Hidden states (T, D) of input vectors at the positions from `start` on, and the cache with theirs added."""
    variables = {"params": params, "cache": cache}
    hidden_TD, changed = Decoder(config).apply(variables, x_TD, start, method="hidden", mutable=["cache"])
    return hidden_TD, changed["cache"]  # pyright: ignore[reportReturnType]


def _choose(config: ModelConfig, params: Params, h_D: Array, draw: _Draw | None, text: Array, position: Array) -> Array:
    """The next token id, (), after a hidden state: the likeliest, or one drawn by the text and the position."""
    logits_V = Network(config).head(params, h_D[None])[0].astype(jnp.float32)
    if draw is None:
        return argmax(logits_V)
    key = jax.random.fold_in(jax.random.fold_in(draw.key, text), position)
    return jax.random.categorical(key, logits_V / draw.temperature).astype(jnp.int32)

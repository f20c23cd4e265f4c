"""Getting texts out: one forward pass over [e, m, …, m] against token by token from [mem] with a KV cache (Figure 4).

A timed call takes trained vectors as host arrays and returns token ids as host arrays, so it includes both transfers
and waiting for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.bench.models import subject
from onestep_jax.bench.timing import Clock, interleaved, record, spread, within_context
from onestep_jax.model.decoder import Array, Model, Network, Params, Past, weights_dtype
from onestep_jax.model.generation import generate
from onestep_jax.model.token_losses import argmax
from onestep_jax.prototokens.prefixes import Prefixes, pasts_of, prefix_rows, stack_prefixes
from onestep_jax.prototokens.schemes import Leaves, OneStep

Emit: TypeAlias = Callable[[Sequence[Mapping[str, np.ndarray]]], np.ndarray]  # leaves of B texts → token ids (B, N)


def one_pass(model: Model, length: int, texts: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """`length` tokens of each text from its `e` and `m`: one compiled program, argmax at every position.

    A text may have a "prefix", the ids of the tokens that its vectors stand behind.
    """
    leaves = {name: np.stack([text[name] for text in texts]) for name in "em"}
    prefixes = [text.get("prefix", np.zeros(0, np.int32)) for text in texts]
    stacked = stack_prefixes(prefixes, prefix_rows(prefixes))
    return np.asarray(_one_pass(model.network, length, model.params, leaves, stacked))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_pass(network: Network, length: int, params: Params, leaves_B: Leaves, prefixes: Prefixes | None) -> Array:
    def one(leaves: Leaves, past: Past | None) -> Array:
        no_text_TD = jnp.zeros((length, network.embed_width))
        x_TD = OneStep().inputs(leaves, no_text_TD, jnp.int32(length)).astype(weights_dtype(params))
        return argmax(network.head(params, network.hidden(params, x_TD, past)))

    return jax.vmap(one)(leaves_B, pasts_of(network, params, prefixes))


def autoregressive(model: Model, length: int, texts: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """`length` tokens of each text by greedy generation from its `mem`: one compiled loop, no work on the host."""
    prompts = [text["mem"] for text in texts]
    made = generate(model, prompts, count=length, stop=(), batch=len(texts))
    return np.stack([generated.tokens for generated in made])


EMITTERS = {"one pass": one_pass, "autoregressive": autoregressive}


def bench_decode(
    source: str = "default",
    *,
    lengths: Sequence[int] = (16, 32, 64, 128, 256),
    batches: Sequence[int] = (1, 16),
    repeats: int = 10,
    dtype: str | None = None,
    limit: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time both ways of getting texts out, from random vectors, since the time does not depend on the tokens.

    Args:
      source: see `models.subject`.
      lengths: tokens of a text.
      batches: texts at a time.
      repeats: timed calls of each way.
      dtype: of the weights.
      limit: seconds after which no further case begins.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per length and batch.
    """
    clock, model = Clock(limit), subject(source, dtype)
    lengths = within_context(model, lengths, say)
    draw, rows, every = np.random.default_rng(0), [], {}
    for length in lengths:
        for batch in batches:
            if rows and clock.leaves_out(f"{length} tokens, {batch} texts at a time", say):
                continue
            vectors = draw.standard_normal((batch, model.embed_width), np.float32)
            seconds = _measure(model, length, vectors, repeats)
            row = _row(length, batch, seconds)
            rows.append(row)
            every[f"{length}-{batch}"] = seconds
            say(f"{length} tokens, {batch} texts at a time: one pass ×{row['ratio']:.3g}")
    settings = {"model": source, "repeats": repeats, "dtype": str(model.dtype)}
    return record("decode", settings, rows, seconds=every)


def _measure(model: Model, length: int, vectors_BD: np.ndarray, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, way → repeats."""
    texts = [{"e": vector, "m": -vector, "mem": vector[None]} for vector in vectors_BD]
    return interleaved({way: functools.partial(emit, model, length, texts) for way, emit in EMITTERS.items()}, repeats)


def _row(length: int, batch: int, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"length": length, "batch": batch}
    for way, found in seconds.items():
        row |= spread(f"{way} ms", found, 1e3)
        row[f"{way} tokens/s"] = 1e3 * batch * length / row[f"{way} ms median"]
    row["ratio"] = row["one pass tokens/s"] / row["autoregressive tokens/s"]
    return row

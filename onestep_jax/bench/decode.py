"""Getting texts out: one forward pass over [e, m, …, m] against token by token from [mem] with a KV cache (Figure 4).

What is timed: from the trained vectors, arrays of the host, to token ids, arrays of the host, so with the transfer of
both and waiting for the device.
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
from onestep_jax.model.decoder import Array, Model, Network, Params, weights_dtype
from onestep_jax.model.generation import generate
from onestep_jax.model.token_losses import argmax
from onestep_jax.prototokens.schemes import Leaves, OneStep

Emit: TypeAlias = Callable[[Sequence[Mapping[str, np.ndarray]]], np.ndarray]  # leaves of texts → (texts, N) token ids


def one_pass(model: Model, length: int, texts: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """`length` tokens of each text from its `e` and `m`: one compiled program, the argmax at every position."""
    leaves = {name: np.stack([text[name] for text in texts]) for name in "em"}
    return np.asarray(_one_pass(model.network, length, model.params, leaves))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_pass(network: Network, length: int, params: Params, leaves_B: Leaves) -> Array:
    def one(leaves: Leaves) -> Array:
        no_text_TD = jnp.zeros((length, network.embed_width))
        x_TD = OneStep().inputs(leaves, no_text_TD, jnp.int32(length)).astype(weights_dtype(params))
        return argmax(network.apply(params, x_TD))

    return jax.vmap(one)(leaves_B)


def autoregressive(model: Model, length: int, texts: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """`length` tokens of each text by greedy generation from its `mem`: one compiled loop, nothing on the host."""
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
    """Time both ways of getting texts out, from random vectors: the time does not depend on what comes out.

    Args:
      source: see `models.subject`.
      lengths: tokens of a text.
      batches: texts at a time.
      repeats: timed calls of each way.
      dtype: of the weights.
      limit: seconds after which no further case begins.
      say: receives a line for the user.

    Returns:
      See `timing.record`; a row a length and batch.
    """
    clock, model = Clock(limit), subject(source, dtype)
    lengths = within_context(model, lengths, say)
    draw, rows, every = np.random.default_rng(0), [], {}
    for length in lengths:
        for batch in batches:
            if rows and clock.leaves_out(f"{length} tokens, {batch} texts at a time", say):
                continue
            vectors = draw.standard_normal((batch, model.embed_width), np.float32)
            texts = [{"e": vector, "m": -vector, "mem": vector[None]} for vector in vectors]
            calls = {way: functools.partial(emit, model, length, texts) for way, emit in EMITTERS.items()}
            seconds = interleaved(calls, repeats)
            row: dict[str, Any] = {"length": length, "batch": batch}
            for way, found in seconds.items():
                row |= spread(f"{way} ms", found, 1e3)
                row[f"{way} tokens/s"] = 1e3 * batch * length / row[f"{way} ms median"]
            row["ratio"] = row["one pass tokens/s"] / row["autoregressive tokens/s"]
            rows.append(row)
            every[f"{length}-{batch}"] = seconds
            say(f"{length} tokens, {batch} texts at a time: one pass ×{row['ratio']:.3g}")
    settings = {"model": source, "repeats": repeats, "dtype": str(model.dtype)}
    return record("decode", settings, rows, seconds=every)

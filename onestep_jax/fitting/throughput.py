"""How many texts at a time an accelerator needs to be busy: one block of the model, timed on more and more of them."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.model.cost import abstract_params
from onestep_jax.model.decoder import Network, Params

ENOUGH = 0.95  # share of the best measured rate at which a device counts as busy
MOST_TOKENS = 2**17  # at a time; more are not timed
REPEATS = 3


def busy_texts(network: Network, dtype: Any, positions: int, most: int, device: Any) -> int:
    """The least number of texts at a time, a power of two, with which a device is as fast as with more of them.

    Compiles and times a block for 1, 2, 4, … texts, once in a process for each block and number of positions. Positions
    are rounded up to a power of two, so that fits of many lengths share a measurement. Two neighbouring numbers may
    have nearly the same rate; then another measurement may choose the other one.

    Args:
      network: the model's functions; the first of its blocks is timed, forward and back to its input.
      dtype: of the weights.
      positions: of a text (T).
      most: texts that fit into the device's memory.
      device: where the block is timed.
    """
    positions = 1 << (positions - 1).bit_length()
    one = dataclasses.replace(network, config=dataclasses.replace(network.config, layers=1))
    rates: dict[int, float] = {}
    texts = 1
    while texts <= most and (texts == 1 or texts * positions <= MOST_TOKENS):
        rates[texts] = texts / seconds_of_block(one, dtype, positions, texts, device)
        texts *= 2
    best = max(rates.values())
    return min(texts for texts, rate in rates.items() if rate >= ENOUGH * best)


@functools.cache
def seconds_of_block(network: Network, dtype: Any, positions: int, texts: int, device: Any) -> float:
    """Seconds of a forward and backward pass over texts of random vectors, the fastest of `REPEATS`."""
    with jax.default_device(device):
        params = _random_block(network, dtype)
        x_GTD = jax.random.normal(jax.random.key(0), (texts, positions, network.embed_width), dtype)
        gradient = jax.jit(jax.vmap(jax.grad(functools.partial(_total, network), 1), (None, 0)))
        gradient(params, x_GTD).block_until_ready()
        found = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            gradient(params, x_GTD).block_until_ready()
            found.append(time.perf_counter() - began)
    return min(found)


def _total(network: Network, params: Params, x_TD: jax.Array) -> jax.Array:
    return network.hidden(params, x_TD).astype(jnp.float32).sum()


def _random_block(network: Network, dtype: Any) -> Params:
    """Random weights of all but the embedding table and the output head."""
    shapes: dict[str, Any] = flatten_dict(abstract_params(network.config, dtype), sep="/")
    found = {}
    for i, (path, leaf) in enumerate(sorted(shapes.items())):
        if not path.startswith(("embed/", "head/")):
            found[path] = 0.02 * jax.random.normal(jax.random.key(i), leaf.shape, dtype)
    return unflatten_dict(found, sep="/")

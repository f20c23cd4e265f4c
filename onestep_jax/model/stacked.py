"""Layers in a stack: weights of layers of one kind as one array, for a decoder that scans over them.

A program over L separate layers holds the code of L layers, and compiling takes longer with each. A scan over a stack
holds the code of one period of the model's pattern: of one layer for most families, of sliding and full attention in
turn for Gemma. Both layouts of the params have the same numbers:

    by layer     "block_0" … "block_{L-1}"
    stacked      "stack" → "block_0" … "block_{p-1}", each array with a leading axis of R layers: block r·p + j is
                 row r of "stack/block_j"; and "block_{R·p}" … "block_{L-1}", where the pattern does not divide L

What else is kept by layer (adapters, masks, files) stays so and is stacked on its way into a program.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from onestep_jax.devices.weight_split import STACK
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.layers import Array, Block, DotGeneral


def period(config: ModelConfig) -> int:
    """p, the least number of layers after which their kinds repeat; L where they do not repeat twice."""
    kinds = [config.layer(i) for i in range(config.layers)]
    repeats = (p for p in range(1, config.layers // 2 + 1) if kinds[p:] == kinds[:-p])
    return next(repeats, config.layers)


def rows(config: ModelConfig) -> int:
    """R, the layers in each array of a stack; 1 where there is nothing to stack."""
    return config.layers // period(config)


def stacked_layers(config: ModelConfig) -> int:
    """R·p, the layers that are in stacks; 0 where there is nothing to stack."""
    return rows(config) * period(config) if rows(config) > 1 else 0


def is_stacked(params: Mapping[str, Any]) -> bool:
    """Whether params, or a cache, have their layers in a stack."""
    return STACK in params


def place_of(config: ModelConfig, path: str) -> tuple[str, int | None]:
    """The path of a weight in the stacked layout, and its row there; None for one that is in no stack.

    Args:
      config: the architecture.
      path: by layer, such as "block_7/attention/q/kernel".
    """
    first, _, rest = path.partition("/")
    p = period(config)
    if not first.startswith("block_") or (i := int(first.removeprefix("block_"))) >= stacked_layers(config):
        return path, None
    return f"{STACK}/block_{i % p}/{rest}", i // p


def weight_of(config: ModelConfig, weights: Mapping[str, Array], path: str) -> Array:
    """One weight, whichever the layout; that of a stack becomes an array of its own.

    Args:
      config: the architecture.
      weights: path in the layout → weight.
      path: by layer.
    """
    if path in weights:
        return weights[path]
    where, row = place_of(config, path)
    assert row is not None, path
    return weights[where][row]


@functools.cache
def row_writer(sharding: Sharding | None) -> Callable[[Array, Array, int], Array]:
    """A program that writes a weight into a row of a stack in the stack's own memory, of which it takes possession."""

    def write(stack: Array, weight: Array, row: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(stack, weight, row, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def stack_layers(config: ModelConfig, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Stack a tree that has all layers ("block_i" → …) and perhaps other entries, which stay as they are."""
    p, R = period(config), rows(config)
    if not stacked_layers(config):
        return dict(tree)
    kept = {name: part for name, part in tree.items() if name not in {f"block_{i}" for i in range(R * p)}}
    columns = {f"block_{j}": [tree[f"block_{r * p + j}"] for r in range(R)] for j in range(p)}
    return kept | {STACK: {name: jax.tree.map(lambda *x: jnp.stack(x), *column) for name, column in columns.items()}}


def by_layer(config: ModelConfig, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same tree by layer, whichever its layout; the layers of a stack become arrays of their own."""
    if not is_stacked(tree):
        return dict(tree)
    p, R = period(config), rows(config)
    found = {name: part for name, part in tree.items() if name != STACK}
    for r, j in itertools.product(range(R), range(p)):
        found[f"block_{r * p + j}"] = jax.tree.map(lambda array, r=r: array[r], tree[STACK][f"block_{j}"])
    return found


class _Period(nn.Module):
    """The layers after which their kinds repeat: the body of the scan."""

    config: ModelConfig
    dot_general: DotGeneral
    remat: bool
    attention: str

    def setup(self) -> None:
        # A scan keeps the passes of its body apart by itself, without the barriers that remat sets against merging.
        c, block = self.config, nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.blocks = [
            block(c, c.layer(i), dot_general=self.dot_general, kernel=self.attention, name=f"block_{i}")
            for i in range(period(c))
        ]

    def __call__(self, x_TD: Array, start: Array | int) -> tuple[Array, None]:
        for block in self.blocks:
            self.sow("intermediates", "hidden", x_TD)
            x_TD = block(x_TD, start)
        return x_TD, None


def scan_layers(config: ModelConfig, dot_general: DotGeneral, remat: bool, attention: str) -> nn.Module:
    """A stack as one module, x_TD, start → (x_TD, None); each collection has the layers along its first axis."""
    collections = ("params", "cache", "adapters", "masks", "intermediates")
    scanned = nn.scan(
        _Period,
        variable_axes=dict.fromkeys(collections, 0),
        split_rngs={},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=rows(config),
    )
    return scanned(config, dot_general, remat, attention, name=STACK)

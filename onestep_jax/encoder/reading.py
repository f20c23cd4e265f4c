"""text → z: the reader, blocks of the decoder that see the text and then query vectors, and a linear map to e and m.

z_LD holds the vectors of one text in rows: e and m, or e alone. Everything is written for one text and vmapped.
"""

from __future__ import annotations

import math
from typing import cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.devices.weight_split import STACK
from onestep_jax.encoder.design import Design, Weights
from onestep_jax.errors import UserError
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Array, Network, Params
from onestep_jax.model.stacked import by_layer

QUERIES = 2
# Standard deviation of what the map adds to the constant at first, where components of the constant are N(0, 1).
_FIRST_SPREAD = 0.3


def init_reader(network: Network, design: Design, frozen: Params, key: Array) -> Weights:
    """Weights of a reader before training.

    Returns:
      "constant": (L, D), where every text begins, N(0, 1) as `fast` draws its start vectors; and but for the reader
      "none" also "query": (2, D), input vectors behind the text, of the scale of embeddings; "channels": (W, C), unless
      the map takes whole states, of C = W; "pool": (rows, C, L·D); and "blocks": the copied weights, or the adapters.
    """
    count, width = len(design.leaf_names), network.embed_width
    keys = jax.random.split(key, 5)
    weights: Weights = {"constant": jax.random.normal(keys[0], (count, width), jnp.float32)}
    if design.reader == "none":
        return weights
    rows = QUERIES + (design.length if design.pooling == "positions" else 0)
    scale = jnp.std(frozen["embed"]["embedding"].astype(jnp.float32)) * network.config.embed_scale
    weights["query"] = scale * jax.random.normal(keys[1], (QUERIES, width), jnp.float32)
    taken = design.channels or network.config.width
    if design.channels:
        spread = 1 / math.sqrt(network.config.width)
        weights["channels"] = spread * jax.random.normal(keys[4], (network.config.width, taken), jnp.float32)
    spread = _FIRST_SPREAD / math.sqrt(rows * taken)
    weights["pool"] = spread * jax.random.normal(keys[2], (rows, taken, count * width), jnp.float32)
    layers = by_layer(network.config, frozen)
    weights["blocks"] = _copied(layers) if design.reader == "copy" else _adapters(layers, design.rank, keys[3])
    return weights


def check_room(config: ModelConfig, design: Design, length: int) -> None:
    """Refuse texts of a length that leaves no room in the context for the prefix and what stands behind the text.

    Raises:
      UserError: for such a length.
    """
    queries = 0 if design.reader == "none" else QUERIES
    positions = length + len(design.prefix) + max(queries, design.scheme.extra)
    if positions > config.context:
        told = f"length {length} needs {positions} positions"
        raise UserError(f"{told}, beyond the model's context of {config.context}; give a smaller one")


def _trained_part(frozen: Params) -> Params:
    """The blocks of a decoder and its final norm; embeddings and projections are shared with the frozen one."""
    return {name: part for name, part in frozen.items() if name.startswith("block_") or name == "norm"}


def _copied(frozen: Params) -> Weights:
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), _trained_part(frozen))


def _adapters(frozen: Params, rank: int, key: Array) -> Weights:
    """For each matrix of the blocks "down" (rank, in) and "up" (out, rank); up is zero, so that they change nothing."""
    made, leaves = {}, cast(dict[tuple[str, ...], Array], flatten_dict(_trained_part(frozen)))
    for path, leaf in sorted(leaves.items()):  # whatever the order in which a checkpoint has them
        if path[-1] == "kernel":
            key, own = jax.random.split(key)
            down = jax.random.normal(own, (rank, leaf.shape[1]), jnp.float32) / math.sqrt(leaf.shape[1])
            made[(*path[:-1], "down")] = down
            made[(*path[:-1], "up")] = jnp.zeros((leaf.shape[0], rank), jnp.float32)
    return unflatten_dict(made)


def read(network: Network, design: Design, frozen: Params, weights: Weights, tokens_T: Array) -> Array:
    """z (L, D) of one text without padding, at most `design.length` tokens of which have weights of their own."""
    constant_LD = weights["constant"]
    if design.reader == "none":
        return constant_LD
    read_T = jnp.concatenate([jnp.asarray(design.prefix, tokens_T.dtype), tokens_T])
    query_QD = weights["query"]
    x_TD = jnp.concatenate([network.embed(frozen, read_T).astype(query_QD.dtype), query_QD])
    if design.reader == "copy":
        others = {name: part for name, part in frozen.items() if name != STACK}
        h_TD = network.hidden({**others, **weights["blocks"]}, x_TD)
    else:
        h_TD = network.hidden(frozen, x_TD, adapters=weights["blocks"])
    h_TD = h_TD[len(design.prefix) :].astype(jnp.float32)
    if design.channels:
        h_TD = h_TD @ weights["channels"]
    pool = weights["pool"]
    z = jnp.einsum("rd,rdz->z", h_TD[-QUERIES:], pool[:QUERIES])
    if design.pooling == "positions":
        known = min(len(tokens_T), design.length)
        z = z + jnp.einsum("rd,rdz->z", h_TD[:known], pool[QUERIES : QUERIES + known])
    return constant_LD + z.reshape(constant_LD.shape)

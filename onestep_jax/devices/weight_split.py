"""How one model is split over the devices of a mesh: its weights, and what flows between them.

One table of module names serves all families, since their params have the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

STACK = "stack"  # first key of the weights that lead with an axis of layers, see `model/stacked.py`
TEXTS, MODEL = "texts", "model"  # axes of a mesh: over the first texts are spread, over the second weights are split

# Megatron-LM (arXiv:1909.08053, section 3): of two matrices with a function of each feature, or of each head, between
# them, the first is split by output and the second by input. Until the end of the pair a device needs no other; there
# the parts of the sum over features are added: one sum over the devices after attention and one after the feed-forward.
# The backward pass adds the parts of the gradient of each pair's input in the same way.
_BY_OUTPUT = {"embed", "head", "q", "k", "v", "gate", "up"}
_BY_INPUT = {"o", "down"}
# Attention is split by key/value head, together with the query heads that share it: a head's softmax is never cut.
_OF_HEADS = {"q", "k", "v", "o"}


def weight_sharding(mesh: Mesh, path: str, shape: tuple[int, ...], kv_heads: int) -> NamedSharding:
    """How the weight at `path` ("block_0/attention/q/kernel") is split; whole on every device where it cannot be.

    Args:
      mesh: has an axis "model"; along other axes the weight is copied.
      path: keys of the params, joined by "/"; "stack" first where layers are stacked.
      shape: of the whole weight.
      kv_heads: key/value heads of the model (K).
    """
    keys = path.split("/")
    module, leaf = keys[-2:]
    layers = 1 if keys[0] == STACK else 0  # axes before those of the weight of one layer
    # Kernels are (out, in) and tables (vocabulary, width). The bias behind a sum is added once, so it stays whole.
    axis = 0 if module in _BY_OUTPUT else 1 if module in _BY_INPUT and leaf == "kernel" else None
    if axis is None or _pieces(module, shape[layers + axis], kv_heads) % mesh.shape[MODEL]:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*(None,) * (layers + axis), MODEL))


def _pieces(module: str, features: int, kv_heads: int) -> int:
    """The number of parts of a projection's features that must not be cut."""
    return kv_heads if module in _OF_HEADS else features


def params_shardings(mesh: Mesh, params: Any, kv_heads: int) -> Any:
    """`weight_sharding` of every weight, as a tree like `params`."""

    def one(path: Any, weight: Any) -> NamedSharding:
        return weight_sharding(mesh, "/".join(key.key for key in path), weight.shape, kv_heads)

    return jax.tree_util.tree_map_with_path(one, params)


def settle(y: jax.Array, module: str | None, kv_heads: int) -> jax.Array:
    """Tell XLA that the output of a projection stays where its weights put it, so that no weight is ever gathered.

    Features of weights split by output stay split. Sums over weights split by input are whole on every device. Without
    a mesh whose axis "model" is split, `y` is returned as it is.

    Args:
      y: (…, features).
      module: name of the projection.
      kv_heads: key/value heads of the model (K).
    """
    count = _devices_of(MODEL)
    if count == 1 or module not in _BY_OUTPUT | _BY_INPUT:
        return y
    split = module in _BY_OUTPUT and _pieces(module, y.shape[-1], kv_heads) % count == 0
    free = (PartitionSpec.UNCONSTRAINED,) * (y.ndim - 1)
    return jax.lax.with_sharding_constraint(y, PartitionSpec(*free, MODEL if split else None))


def by_heads(attend: Callable[..., jax.Array], kv_heads: int) -> Callable[..., jax.Array]:
    """Let each device run `attend` on its own heads: XLA cannot split what is one fused kernel.

    Args:
      attend: function of queries (H, T, C), keys and values (K, T, C), to (H, T, C).
      kv_heads: key/value heads of the model (K); if the devices do not divide it, each device works on all heads.
    """
    free = {axis for axis, kind in _kinds().items() if kind == AxisType.Auto}
    if not free:
        return attend
    split = PartitionSpec(MODEL if kv_heads % _devices_of(MODEL) == 0 else None)
    return jax.shard_map(attend, in_specs=split, out_specs=split, axis_names=free, check_vma=False)


def texts_are_spread() -> bool:
    """Whether the program is compiled for a mesh over which the texts of a group are spread."""
    return _devices_of(TEXTS) > 1


def _devices_of(axis: str) -> int:
    """Number of devices along an axis that XLA splits over, of the mesh of this program; 1 without such an axis."""
    return jax.sharding.get_abstract_mesh().shape[axis] if _kinds().get(axis) == AxisType.Auto else 1


def _kinds() -> dict[str, AxisType]:
    """Axis → its type (split by XLA, or mapped by hand), of the mesh that the program is compiled for."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))

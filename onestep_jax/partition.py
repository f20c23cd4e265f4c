"""How the weights of one model are split over the devices of a mesh."""

from __future__ import annotations

from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "model"  # the mesh axis over which weights are split

# Projections into heads, features and tokens are split by output, those back to the residual by input: one sum over the
# devices after attention and one after the feed-forward (Megatron-LM, arXiv:1909.08053, section 3).
_BY_OUTPUT = {"embed", "head", "q", "k", "v", "gate", "up"}
_BY_INPUT = {"o", "down"}


def weight_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where the weight at `path` ("block_0/attention/q/kernel") lies; whole on every device where it cannot be split.

    Args:
      mesh: has an axis "model"; other axes hold copies.
      path: keys of the params, joined by "/".
      shape: of the whole weight.
    """
    *_, module, leaf = path.split("/")
    axis = 0 if module in _BY_OUTPUT else 1 if module in _BY_INPUT and leaf == "kernel" else None
    if axis is None or shape[axis] % mesh.shape[AXIS]:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, AXIS))

"""Where the work runs: weights replicated, slots split over the local devices with `pmap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Pmap:
    """`pmap` over local devices; arrays of the engine lead with (device, slot).

    Texts are independent, so the compiled program has no collectives and processes of a job need no lockstep.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        self.devices = list(devices or jax.local_devices())
        self._mesh = Mesh(np.array(self.devices), ("device",))

    def replicate(self, params: Any) -> Any:
        """A copy of `params` on each device, made once; `pmap` then moves nothing at a call."""
        return jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def spread(self, tree: Any) -> Any:
        """Host arrays (device, slot, …) onto the devices."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec("device")))

    def map(self, function: Callable[..., Any], donate: int | None = None) -> Callable[..., Any]:
        """`function(params, *arrays)` on every device: params replicated, every other argument split."""

        def call(params: Any, *arrays: Any) -> Any:
            if len(arrays) not in compiled:
                compiled[len(arrays)] = jax.pmap(
                    function,
                    in_axes=(None, *(0 for _ in arrays)),
                    devices=self.devices,
                    donate_argnums=() if donate is None else (donate,),
                )
            return compiled[len(arrays)](params, *arrays)

        compiled: dict[int, Callable[..., Any]] = {}
        return call

    def row(self, tree: Any, slot: int, slots_per_device: int) -> Any:
        """The arrays of one slot, still on its device; copy to the host with `jax.device_get`."""
        device, place = divmod(slot, slots_per_device)
        local = jax.tree.map(lambda array: array.addressable_shards[device].data, tree)
        return _take(local, place)


@jax.jit
def _take(tree: Any, place: int) -> Any:
    return jax.tree.map(lambda array: array[0, place], tree)

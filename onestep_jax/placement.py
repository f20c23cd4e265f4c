"""Where the work runs: weights replicated, slots split over the local devices with `pmap`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PROGRAMS = 64  # kept in memory; those used least recently go first


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

    def map(self, function: Callable[..., Any], *static: Hashable, donate: int | None = None) -> Callable[..., Any]:
        """(params, *arrays) → `function(*static, params, *arrays)` on every device: params replicated, arrays split.

        Compiled programs are kept by function, static values and devices, so that what is asked for again, by another
        engine or another fit, is there. `donate` is the place of the argument whose memory may be written over.
        """
        found: dict[int, Callable[..., Any]] = {}  # so that a call does not hash a whole configuration

        def call(params: Any, *arrays: Any) -> Any:
            count = len(arrays)
            if count not in found:
                found[count] = _program(function, static, count, tuple(self.devices), donate)
            return found[count](params, *arrays)

        return call

    def row(self, tree: Any, slot: int, slots_per_device: int) -> Any:
        """The arrays of one slot, still on its device; copy to the host with `jax.device_get`."""
        device, place = divmod(slot, slots_per_device)
        local = jax.tree.map(lambda array: array.addressable_shards[device].data, tree)
        return _take(local, place)


@functools.lru_cache(maxsize=PROGRAMS)
def _program(
    function: Callable[..., Any],
    static: tuple[Hashable, ...],
    arrays: int,
    devices: tuple[Any, ...],
    donate: int | None,
) -> Callable[..., Any]:
    return jax.pmap(
        functools.partial(function, *static),
        in_axes=(None, *(0 for _ in range(arrays))),
        devices=devices,
        donate_argnums=() if donate is None else (donate,),
    )


def forget_programs() -> None:
    """Let the compiled programs that are kept in memory go."""
    _program.cache_clear()
    jax.clear_caches()


@jax.jit
def _take(tree: Any, place: int) -> Any:
    return jax.tree.map(lambda array: array[0, place], tree)

"""Where the work runs: over which devices slots, weights and the texts of a group are split.

    Pmap      slots over devices, a copy of the weights on each                     the default
    Mesh      slots over rows of a mesh, the weights over the devices of a row      a model too large for one device
    Together  the texts of each group over the devices                              few groups with many texts

All three run the same pure functions of `slots` and give the same vectors, up to the order of float32 sums. In the
first two the compiled program of a row knows nothing of the other rows: independent texts need no collectives.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from onestep_jax.devices.weight_split import MODEL, TEXTS, params_shardings
from onestep_jax.errors import UserError

PROGRAMS = 64  # kept in memory; those used least recently go first

Program: TypeAlias = Callable[..., Any]


class Wanted(NamedTuple):
    """What a program is made of.

    Attributes:
      function: (*static, params, *arrays) → arrays, of one row.
      static: hashable values.
      arrays: how many follow the params.
      donate: place of the argument whose memory may be written over.
    """

    function: Callable[..., Any]
    static: tuple[Hashable, ...]
    arrays: int
    donate: int | None

    @property
    def run(self) -> Callable[..., Any]:
        return functools.partial(self.function, *self.static)

    @property
    def donated(self) -> tuple[int, ...]:
        return () if self.donate is None else (self.donate,)


class Placement(abc.ABC):
    """Devices as a mesh ("texts", "model"); arrays of the engine lead with (row, slot).

    Attributes:
      devices: all of them.
      mesh: (rows of devices, devices of a row).
      rows: how many parts the engine's slots come in.
    """

    def __init__(self, devices: Sequence[Any] | None = None, model_axis: int = 1):
        self.devices = list(devices or jax.local_devices())
        if model_axis < 1 or len(self.devices) % model_axis:
            raise UserError(f"model axis = {model_axis}: expected a divisor of the {len(self.devices)} devices")
        self.mesh = jax.sharding.Mesh(np.array(self.devices).reshape(-1, model_axis), (TEXTS, MODEL))
        self.rows = len(self.devices) // model_axis

    @property
    def lockstep(self) -> bool:
        """Whether processes of a job run one program together, so that all of them must do the same."""
        return len({device.process_index for device in self.devices}) > 1

    def agree(self, choice: int) -> int:
        """The largest of the numbers that the processes in lockstep chose."""
        if not self.lockstep:
            return choice
        from jax.experimental import multihost_utils

        return int(multihost_utils.process_allgather(np.int32(choice)).max())

    def place(self, params: Any, kv_heads: int) -> Any:
        """Frozen weights where the programs expect them, made once; a call then moves nothing."""
        return jax.device_put(params, params_shardings(self.mesh, params, kv_heads))

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where an array of the engine lies, (row, slot, …)."""
        del shape
        return NamedSharding(self.mesh, PartitionSpec(TEXTS))

    def spread(self, tree: Any) -> Any:
        """Host arrays (row, slot, …) onto the devices."""
        return jax.device_put(tree, jax.tree.map(lambda array: self.sharding(np.shape(array)), tree))

    def fetch(self, tree: Any) -> Any:
        """Arrays of the engine as host arrays."""
        return jax.device_get(tree)

    def map(self, function: Callable[..., Any], *static: Hashable, donate: int | None = None) -> Program:
        """(params, *arrays) → `function(*static, params, *arrays)` of every row, arrays without their leading axis.

        Compiled programs are kept by function, static values and devices, so that what is asked for again, by another
        engine or another fit, is there. `donate` is the place of the argument whose memory may be written over.
        """
        found: dict[int, Any] = {}  # so that a call does not hash a whole configuration

        def call(params: Any, *arrays: Any) -> Any:
            count = len(arrays)
            if count not in found:
                found[count] = self.program(Wanted(function, static, count, donate))
            with self.context():
                return found[count](params, *arrays)

        return call

    def lower(self, function: Callable[..., Any], *arguments: Any, static: tuple[Hashable, ...], donate: int) -> Any:
        """The program of `map` for shapes with `sharding`s, lowered and not compiled."""
        with self.context():
            return self.program(Wanted(function, static, len(arguments) - 1, donate)).lower(*arguments)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """What programs are traced and called in."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def program(self, wanted: Wanted) -> Any:
        """What `map` calls and keeps."""


class Pmap(Placement):
    """`pmap` over local devices."""

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """As `pmap` leaves what it gives: arrays that lie elsewhere by name would have programs compiled twice."""
        del shape
        return NamedSharding(jax.sharding.Mesh(np.array(self.devices), (TEXTS,)), PartitionSpec(TEXTS))

    def program(self, wanted: Wanted) -> Any:
        return _pmapped(wanted, tuple(self.devices))


class Mesh(Placement):
    """`jit` over a mesh: rows are independent, the devices of a row hold the weights together (Megatron's split)."""

    def program(self, wanted: Wanted) -> Any:
        return _row_by_row(wanted, self.mesh)


class Together(Placement):
    """`jit` over a mesh whose rows take a share each of the texts of a group; gradients of shared leaves are summed.

    Args:
      group: texts of a group; the rows must divide it.
      devices: as of `Placement`.
      model_axis: devices of a row, over which the weights are split.
    """

    def __init__(self, group: int, devices: Sequence[Any] | None = None, model_axis: int = 1):
        super().__init__(devices, model_axis)
        if group % self.rows:
            raise UserError(f"group = {group}: expected a multiple of the {self.rows} rows of devices that share it")
        self.group, self.rows = group, 1

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Split along the first axis that is as long as a group, behind row and slot; else on every device.

        Which arrays go over the texts only decides where they lie: the program computes the same with any choice.
        """
        return _over_texts(self.mesh, self.group, shape)

    def fetch(self, tree: Any) -> Any:
        return jax.device_get(_whole(self.mesh)(tree))

    def program(self, wanted: Wanted) -> Any:
        return _as_one(wanted, self.mesh, self.group)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return jax.set_mesh(self.mesh)


@functools.lru_cache(maxsize=PROGRAMS)
def _pmapped(wanted: Wanted, devices: tuple[Any, ...]) -> Any:
    axes = (None, *(0 for _ in range(wanted.arrays)))
    return jax.pmap(wanted.run, TEXTS, in_axes=axes, devices=devices, donate_argnums=wanted.donated)


@functools.lru_cache(maxsize=PROGRAMS)
def _row_by_row(wanted: Wanted, mesh: jax.sharding.Mesh) -> Any:
    def of_a_row(params: Any, *rows: Any) -> Any:
        out = wanted.run(params, *(jax.tree.map(lambda array: array[0], row) for row in rows))
        return jax.tree.map(lambda array: array[None], out)

    # Only the rows are apart; what happens on the devices of a row is left to the weights' sharding.
    specs = {"in_specs": (PartitionSpec(), *(PartitionSpec(TEXTS),) * wanted.arrays), "out_specs": PartitionSpec(TEXTS)}
    apart = jax.shard_map(of_a_row, mesh=mesh, **specs, axis_names={TEXTS}, check_vma=False)
    return jax.jit(apart, donate_argnums=wanted.donated)


@functools.lru_cache(maxsize=PROGRAMS)
def _as_one(wanted: Wanted, mesh: jax.sharding.Mesh, group: int) -> Any:
    def of_all(params: Any, *arrays: Any) -> Any:
        def placed(array: Any) -> Any:
            return jax.lax.with_sharding_constraint(array[None], _over_texts(mesh, group, (1, *array.shape)))

        out = wanted.run(params, *(jax.tree.map(lambda array: array[0], one) for one in arrays))
        return jax.tree.map(placed, out)

    return jax.jit(of_all, donate_argnums=wanted.donated)


def _over_texts(mesh: jax.sharding.Mesh, group: int, shape: tuple[int, ...]) -> NamedSharding:
    split = next((axis for axis, size in enumerate(shape) if axis >= 2 and size == group), None)
    return NamedSharding(mesh, PartitionSpec() if split is None else PartitionSpec(*(None,) * split, TEXTS))


def forget_programs() -> None:
    """Let the compiled programs that are kept in memory go."""
    for kept in (_pmapped, _row_by_row, _as_one):
        kept.cache_clear()
    jax.clear_caches()


@functools.lru_cache
def _whole(mesh: jax.sharding.Mesh) -> Program:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))

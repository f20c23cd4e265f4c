"""Where the work runs: over which devices slots, weights and the texts of a group are split.

    Pmap      slots over devices, a copy of the weights on each                     the default
    Mesh      slots over rows of a mesh, the weights over the devices of a row      a model too large for one device
    Together  the texts of each group over the devices                              few groups with many texts

All three run the same functions of `fitting/programs.py` and give the same vectors, up to the order of float32 sums.

Every array of the engine leads with (row, slot). A row is one device, or the devices that hold the weights together;
the leading axis is split over the rows, one entry each, so a device sees the same shapes however many rows there are.
In `Pmap` and `Mesh` a row's program knows nothing of the other rows: independent texts need no collectives.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from onestep_jax.devices.weight_split import MODEL, TEXTS, params_shardings
from onestep_jax.errors import UserError, one_line

PROGRAMS = 64  # compiled ones kept in memory; the least recently used is freed first

Program: TypeAlias = Callable[..., Any]


def local_devices() -> list[Any]:
    """The devices of this process; JAX starts where it has not yet.

    Raises:
      UserError: if it cannot.
    """
    try:
        return jax.local_devices()
    except Exception as error:  # of JAX and its plugins; a missing CUDA comes as an AssertionError without a word
        asked = os.environ.get("JAX_PLATFORMS")
        reason = f"JAX_PLATFORMS={asked}: {one_line(error)}" if asked else one_line(error)
        cure = "unset JAX_PLATFORMS to take what is there, set it to cpu, or install JAX for that device"
        raise UserError(f"JAX cannot start its devices ({reason}); {cure}") from error


class Wanted(NamedTuple):
    """What a program is made of; equal values share one compiled program.

    Attributes:
      function: (*static, params, *arrays) → arrays, of one row.
      static: hashable values, bound before compiling.
      arrays: number of arrays that follow the params.
      donate: index of the argument whose memory the program may overwrite, None for none.
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

    Args:
      devices: all local ones by default.
      model_axis: devices of a row, over which the weights are split.

    Attributes:
      devices: all devices of the placement.
      mesh: (rows of devices, devices of a row).
      rows: length of the leading axis of the engine's arrays.

    Raises:
      UserError: if the devices cannot be divided into rows of `model_axis`.
    """

    def __init__(self, devices: Sequence[Any] | None = None, model_axis: int = 1):
        self.devices = list(devices or local_devices())
        if model_axis < 1 or len(self.devices) % model_axis:
            raise UserError(f"model axis = {model_axis}: expected a divisor of the {len(self.devices)} devices")
        self.mesh = jax.sharding.Mesh(np.array(self.devices).reshape(-1, model_axis), (TEXTS, MODEL))
        self.rows = len(self.devices) // model_axis

    @property
    def lockstep(self) -> bool:
        """Whether the processes of a job run one program together, so that all of them must decide alike."""
        return len({device.process_index for device in self.devices}) > 1

    def least(self, number: int) -> int:
        """The least of the numbers that the processes in lockstep give; the number itself outside lockstep."""
        return min(self._of_all_processes(number))

    def greatest(self, number: int) -> int:
        """The greatest of the numbers that the processes in lockstep give; the number itself outside lockstep."""
        return max(self._of_all_processes(number))

    def _of_all_processes(self, number: int) -> list[int]:
        if not self.lockstep:
            return [number]
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(np.int32(number)).tolist()

    def place(self, params: Any, kv_heads: int) -> Any:
        """Put the frozen weights where the programs expect them; later calls of a program then move no weight.

        Args:
          params: the weights, on the host or on any device.
          kv_heads: key/value heads of the model (K); the split never cuts a head, see `weight_split`.

        Returns:
          The same tree, on the devices of this placement.
        """
        return jax.device_put(params, params_shardings(self.mesh, params, kv_heads))

    @property
    def whole(self) -> NamedSharding:
        """How an array that all programs read is laid out: whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """How an array of the engine, (row, slot, …), is laid out over the devices."""
        del shape
        return NamedSharding(self.mesh, PartitionSpec(TEXTS))

    def spread(self, tree: Any) -> Any:
        """Move host arrays (row, slot, …) onto the devices."""
        return jax.device_put(tree, jax.tree.map(lambda array: self.sharding(np.shape(array)), tree))

    def fetch(self, tree: Any) -> Any:
        """Wait for arrays of the engine and copy them to the host."""
        return jax.device_get(tree)

    def map(self, function: Callable[..., Any], *static: Hashable, donate: int | None = None) -> Program:
        """Make a program that runs `function(*static, params, *arrays)` on every row, without the arrays' leading axis.

        Compiled programs are kept by function, static values and devices: another engine or another fit that asks for
        the same program compiles nothing.

        Args:
          function: as in `Wanted`.
          static: hashable values.
          donate: index of the argument, counted from the params, whose memory the program may overwrite.

        Returns:
          A function of (params, *arrays).
        """
        found: dict[int, Any] = {}  # programs by number of arrays, so that a call does not hash a whole configuration

        def call(params: Any, *arrays: Any) -> Any:
            count = len(arrays)
            if count not in found:
                found[count] = self.program(Wanted(function, static, count, donate))
            with self.context():
                return found[count](params, *arrays)

        return call

    def lower(self, function: Callable[..., Any], *arguments: Any, static: tuple[Hashable, ...], donate: int) -> Any:
        """Lower the program of `map` for shapes that carry `sharding`s, without compiling it."""
        with self.context():
            return self.program(Wanted(function, static, len(arguments) - 1, donate)).lower(*arguments)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which programs are traced and called."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def program(self, wanted: Wanted) -> Any:
        """The jitted function that `map` calls and keeps."""


class Pmap(Placement):
    """`pmap` over local devices."""

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """The sharding that the outputs of `pmap` carry.

        Inputs must carry an equal one: an array on the same devices under another mesh compiles the program again.
        """
        del shape
        return NamedSharding(jax.sharding.Mesh(np.array(self.devices), (TEXTS,)), PartitionSpec(TEXTS))

    def program(self, wanted: Wanted) -> Any:
        return _pmapped(wanted, tuple(self.devices))


class Mesh(Placement):
    """`jit` over a mesh: rows are independent, the devices of a row hold the weights together (Megatron's split)."""

    def program(self, wanted: Wanted) -> Any:
        return _row_by_row(wanted, self.mesh)


class Together(Placement):
    """`jit` over a mesh: each row of devices takes a share of every group's texts.

    The gradients of shared leaves are summed over the rows. To the engine it is one row, whose slots hold whole groups.

    Args:
      group: texts of a group; the number of rows must divide it.
      devices: as of `Placement`.
      model_axis: as of `Placement`.

    Raises:
      UserError: if the devices cannot be divided so.
    """

    def __init__(self, group: int, devices: Sequence[Any] | None = None, model_axis: int = 1):
        super().__init__(devices, model_axis)
        if group % self.rows:
            raise UserError(f"group = {group}: expected a multiple of the {self.rows} rows of devices that share it")
        self.group, self.rows = group, 1

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Split along the first axis behind row and slot that is as long as a group; whole on every device without one.

        An axis of that length by chance does no harm: a sharding decides where an array lies, not what is computed.
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

    # `shard_map` compiles the function for one row, so the loop over steps ends when this row's slots are done. Under
    # plain `jit` its condition, "does any slot still run?", would be a sum over all rows at every step. Only the texts
    # axis is mapped: over the devices of a row XLA splits the work by itself, as the weights' shardings say.
    by_row = jax.shard_map(
        of_a_row,
        mesh=mesh,
        in_specs=(PartitionSpec(), *(PartitionSpec(TEXTS),) * wanted.arrays),
        out_specs=PartitionSpec(TEXTS),
        axis_names={TEXTS},
        check_vma=False,
    )
    return jax.jit(by_row, donate_argnums=wanted.donated)


@functools.lru_cache(maxsize=PROGRAMS)
def _as_one(wanted: Wanted, mesh: jax.sharding.Mesh, group: int) -> Any:
    def of_all(params: Any, *arrays: Any) -> Any:
        # The outputs are the next call's inputs: without a fixed layout XLA chooses one, and the call compiles again.
        def placed(array: Any) -> Any:
            return jax.lax.with_sharding_constraint(array[None], _over_texts(mesh, group, (1, *array.shape)))

        out = wanted.run(params, *(jax.tree.map(lambda array: array[0], one) for one in arrays))
        return jax.tree.map(placed, out)

    return jax.jit(of_all, donate_argnums=wanted.donated)


def _over_texts(mesh: jax.sharding.Mesh, group: int, shape: tuple[int, ...]) -> NamedSharding:
    split = next((axis for axis, size in enumerate(shape) if axis >= 2 and size == group), None)
    return NamedSharding(mesh, PartitionSpec() if split is None else PartitionSpec(*(None,) * split, TEXTS))


@functools.lru_cache
def _whole(mesh: jax.sharding.Mesh) -> Program:
    """Copies arrays whole onto every device, so that each process can read all of them."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))

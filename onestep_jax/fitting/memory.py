"""What a fit needs: memory, from XLA's own account of the compiled step, and floating-point operations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from onestep_jax.devices.placement import Placement, Pmap
from onestep_jax.devices.weight_split import params_shardings
from onestep_jax.fitting import slots as device
from onestep_jax.fitting.optimizers import Preset
from onestep_jax.fitting.slots import Problem
from onestep_jax.model.cost import abstract_params
from onestep_jax.model.decoder import Network, Params
from onestep_jax.prototokens.schemes import OneStep, Scheme


class Memory(NamedTuple):
    """Bytes on one device while slots of texts are being optimised.

    Attributes:
      weights: the frozen params.
      state: vectors, optimiser state and bookkeeping of the slots.
      working: activations and everything else that XLA sets aside within a step.
    """

    weights: int
    state: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.state + self.working


def compiled_step(
    network: Network,
    dtype: Any,
    *,
    slots: int,
    length: int,
    preset: Preset,
    scheme: Scheme | None = None,
    placement: Placement | None = None,
) -> tuple[Params, device.Slot, Any]:
    """The step of groups of texts of `length` tokens, `slots` of them a row of devices, compiled and not run.

    No weight is needed. Compiling takes seconds, for a large model up to a minute. One device if not told otherwise.

    Returns:
      The params and the slots, as shapes, and the compiled program over them.
    """
    placement = placement or Pmap(jax.local_devices()[:1])
    params, chosen = abstract_params(network.config, dtype), scheme or OneStep()
    params = jax.tree.map(_lying, params, params_shardings(placement.mesh, params, network.config.kv_heads))
    problem = Problem(network, chosen, preset.optimizer.build(), 1.0, preset.steps, preset.temperature)

    def stacked(leaf: Any) -> Any:
        shape = (placement.rows, slots, *leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=placement.sharding(shape))

    state = jax.tree.map(stacked, device.shapes(problem, length))
    lowered = placement.lower(device.chunk, params, state, static=(problem, 1), donate=1)
    return params, state, lowered.compile()


def _lying(leaf: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def fit_memory(network: Network, dtype: Any, **shape: Any) -> Memory:
    """Memory of such a step on one device, by XLA's own account; arguments of `compiled_step`."""
    return program_memory(*compiled_step(network, dtype, **shape))


def program_memory(params: Any, state: Any, program: Any) -> Memory:
    """Bytes on one device of a compiled step over params and slots: arrays, or shapes with shardings."""
    return Memory(_bytes(params), _bytes(state), int(program.memory_analysis().temp_size_in_bytes))


def fitting_slots(network: Network, dtype: Any, limit: float, **shape: Any) -> int:
    """How many slots a row fit into `limit` bytes of a device, 0 for none: memory grows linearly from one slot to two.

    Arguments of `compiled_step`, without `slots`.
    """
    one, two = (fit_memory(network, dtype, slots=slots, **shape).total for slots in (1, 2))
    return max(0, 1 + int((limit - one) // max(1, two - one)))


def _bytes(tree: Any) -> int:
    """Bytes of shapes on one device."""
    parts = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts)

"""The memory that a fit needs, from XLA's own account of the compiled step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NotRequired, TypedDict, Unpack

import jax
import optax

from onestep_jax.devices.placement import Placement, Pmap, local_devices
from onestep_jax.devices.weight_split import params_shardings
from onestep_jax.fitting import programs
from onestep_jax.fitting.optimizers import Preset
from onestep_jax.fitting.slots import FitProblem, Frozen, Slot, own_past_shapes, shapes
from onestep_jax.model.cost import abstract_params
from onestep_jax.model.decoder import Network, Params
from onestep_jax.prototokens.schemes import OneStep, Scheme


class Memory(NamedTuple):
    """Bytes on one device while slots of texts are being optimised.

    Attributes:
      weights: what is frozen: the params, and keys and values of a common prefix.
      state: vectors, optimiser state and bookkeeping of the slots.
      working: activations and everything else that XLA sets aside within a step.
    """

    weights: int
    state: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.state + self.working


class PastShape(NamedTuple):
    """Prefixes of a fit.

    Attributes:
      rows: P, tokens of the longest one.
      own: whether each text has its own.
    """

    rows: int = 0
    own: bool = False


NO_PAST = PastShape()


class StepShape(TypedDict):
    """The keyword arguments of `lowered_step` besides the number of slots."""

    length: int
    preset: Preset
    scheme: NotRequired[Scheme]
    optimizer: NotRequired[optax.GradientTransformation | None]
    placement: NotRequired[Placement]
    past: NotRequired[PastShape]
    stacked: NotRequired[bool]


def lowered_step(
    network: Network,
    dtype: Any,
    *,
    slots: int,
    length: int,
    preset: Preset,
    scheme: Scheme | None = None,
    optimizer: optax.GradientTransformation | None = None,
    placement: Placement | None = None,
    past: PastShape = NO_PAST,
    stacked: bool = False,
) -> tuple[Frozen, Slot, Any]:
    """Trace and lower the step of a fit without compiling it; no weights are needed.

    Args:
      network: the model's functions.
      dtype: of the weights.
      slots: groups on each row of devices.
      length: tokens of a text.
      preset: gives the temperature of the loss.
      scheme: the arrangement; the preset's by default.
      optimizer: the preset's by default.
      placement: the devices; one local device by default.
      past: what stands before the texts.
      stacked: whether the params have their layers in a stack, see `model/stacked.py`.

    Returns:
      What is frozen and the slots, as shapes with shardings, and the lowered program over them.
    """
    placement, params = placement or Pmap(local_devices()[:1]), abstract_params(network.config, dtype, stacked)
    params = jax.tree.map(_placed, params, params_shardings(placement.mesh, params, network.config.kv_heads))
    frozen = Frozen(params, _common_past(network, params, placement, 0 if past.own else past.rows))
    problem = _problem(network, scheme or OneStep(preset.arrangement), optimizer or preset.optimizer.build(), preset)

    def of_slots(leaf: Any) -> Any:
        whole = jax.ShapeDtypeStruct((placement.rows, slots, *leaf.shape), leaf.dtype)
        return _placed(whole, placement.sharding(whole.shape))

    own = own_past_shapes(problem, params, past.rows if past.own else 0)
    state = jax.tree.map(of_slots, shapes(problem, length, own))
    return frozen, state, placement.lower(programs.chunk, frozen, state, static=(problem, 1), donate=1)


def compiled_step(network: Network, dtype: Any, *, slots: int, **shape: Unpack[StepShape]) -> tuple[Frozen, Slot, Any]:
    """Compile the step of a fit without running it, see `lowered_step`; that takes seconds, up to a minute."""
    frozen, state, lowered = lowered_step(network, dtype, slots=slots, **shape)
    return frozen, state, lowered.compile()


def _common_past(network: Network, params: Params, placement: Placement, rows: int) -> Any:
    """Keys and values of the prefix that all texts have, as shapes with shardings; None without one."""
    if not rows:
        return None
    past = jax.eval_shape(network.past, params, jax.ShapeDtypeStruct((rows,), "int32"))
    return jax.tree.map(lambda leaf: _placed(leaf, placement.whole), past)


def _problem(network: Network, scheme: Scheme, optimizer: optax.GradientTransformation, preset: Preset) -> FitProblem:
    """A fit by a preset; the scale of its start vectors is left at 1, as memory does not depend on it."""
    return FitProblem(
        network=network,
        scheme=scheme,
        optimizer=optimizer,
        scale=1.0,
        temperature=preset.temperature,
    )


def _placed(leaf: Any, sharding: Any) -> Any:
    """The shape `leaf` with a sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def fit_memory(network: Network, dtype: Any, *, slots: int, **shape: Unpack[StepShape]) -> Memory:
    """Memory of a step of `slots` groups a row on one device, in bytes; it compiles the step."""
    frozen, state, program = compiled_step(network, dtype, slots=slots, **shape)
    return program_memory(frozen, state, program)


def program_memory(frozen: Any, state: Any, program: Any) -> Memory:
    """Bytes on one device of a compiled step over what is frozen and slots: arrays, or shapes with shardings."""
    return Memory(
        weights=_bytes(frozen), state=_bytes(state), working=int(program.memory_analysis().temp_size_in_bytes)
    )


def fitting_slots(network: Network, dtype: Any, limit: float, **shape: Unpack[StepShape]) -> int:
    """How many slots a row fit into `limit` bytes of a device; 0 if not even one does.

    Memory is linear in the number of slots, so two compilations give it: of one slot and of two.
    """
    one, two = (fit_memory(network, dtype, slots=slots, **shape).total for slots in (1, 2))
    return max(0, 1 + int((limit - one) // max(1, two - one)))


def _bytes(tree: Any) -> int:
    """Bytes on one device of arrays, or of shapes with shardings."""
    parts = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts)

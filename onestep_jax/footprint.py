"""What a fit needs: memory, from XLA's own account of the compiled step, and floating-point operations."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
from flax.traverse_util import unflatten_dict

from onestep_jax import slots as device
from onestep_jax.config import ModelConfig
from onestep_jax.model import Network, Params, parameter_shapes
from onestep_jax.optimizers import Preset
from onestep_jax.schemes import OneStep, Scheme
from onestep_jax.slots import Problem


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


def abstract_params(config: ModelConfig, dtype: Any) -> Params:
    """The params of a model as shapes and types, without an array."""
    shapes = parameter_shapes(config).items()
    return unflatten_dict({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes}, sep="/")


def compiled_step(
    network: Network, dtype: Any, *, slots: int, length: int, preset: Preset, scheme: Scheme | None = None
) -> tuple[Params, device.Slot, Any]:
    """The step of `slots` groups of texts of `length` tokens, compiled for the default backend and not run.

    No weight is needed. Compiling takes seconds, for a large model up to a minute.

    Returns:
      The params and the slots, as shapes, and the compiled program over them.
    """
    params, chosen = abstract_params(network.config, dtype), scheme or OneStep()
    problem = Problem(network, chosen, preset.optimizer.build(), 1.0, preset.steps, preset.temperature)
    one = device.shapes(problem, length)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype), one)
    program = jax.jit(functools.partial(device.chunk, problem, 1), donate_argnums=1)
    return params, state, program.lower(params, state).compile()


def fit_memory(
    network: Network, dtype: Any, *, slots: int, length: int, preset: Preset, scheme: Scheme | None = None
) -> Memory:
    """Memory of such a step on one device, by XLA's own account; see `compiled_step`."""
    shape: dict[str, Any] = {"slots": slots, "length": length, "preset": preset, "scheme": scheme}
    params, state, program = compiled_step(network, dtype, **shape)
    return Memory(_bytes(params), _bytes(state), int(program.memory_analysis().temp_size_in_bytes))


def fitting_slots(
    network: Network, dtype: Any, limit: float, *, length: int, preset: Preset, scheme: Scheme | None = None
) -> int:
    """How many slots fit into `limit` bytes of one device, 0 for none: memory grows linearly from one slot to two."""
    shape: dict[str, Any] = {"length": length, "preset": preset, "scheme": scheme}
    one, two = (fit_memory(network, dtype, slots=slots, **shape).total for slots in (1, 2))
    return max(0, 1 + int((limit - one) // max(1, two - one)))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def step_flops(config: ModelConfig, length: int) -> int:
    """Floating-point operations of one step of one text: forward, and backward to the input vectors only.

    A weight of a matrix costs 2 a position forward and 2 backward (the weights themselves get no gradient). Attention
    scores and mixing cost 4 · H · C for each pair of positions forward and twice that backward; all pairs are counted,
    since the masked ones are computed too. Norms, activations and softmax are left out.
    """
    shapes = parameter_shapes(config)
    if not config.tied:
        shapes.pop("embed/embedding")
    shapes.pop("positions/embedding", None)
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    attention = 12 * config.layers * config.heads * config.head_dim * length
    return length * (4 * matrices + attention)

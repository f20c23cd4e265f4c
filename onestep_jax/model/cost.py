"""Shapes of a model's weights and operations of a step, from its architecture alone."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Params, parameter_shapes
from onestep_jax.model.stacked import stack_layers


def abstract_params(config: ModelConfig, dtype: Any, stacked: bool = False) -> Params:
    """The params of a model, by layer or stacked, as shapes and dtypes; no array is made."""
    shapes = parameter_shapes(config).items()
    params = unflatten_dict({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes}, sep="/")
    return jax.eval_shape(lambda params: stack_layers(config, params), params) if stacked else params


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Numbers of weights: "total", and "touched" by one optimisation step.

    The embedding table is touched only where it is also the output head: input vectors are trained, not looked up.
    """
    sizes = {path: math.prod(shape) for path, shape in parameter_shapes(config).items()}
    total = sum(sizes.values())
    return {"total": total, "touched": total if config.tied else total - sizes["embed/embedding"]}


def step_flops(config: ModelConfig, length: int) -> int:
    """Floating-point operations of one step of one text: forward, and backward to the input vectors only.

    A weight of a matrix costs 2 operations a position forward and 2 backward, as the weights themselves get no
    gradient. Attention scores and mixing cost 4 · H · C operations for each pair of positions forward and twice that
    backward. All pairs are counted, since the masked ones are computed too. Norms, activations and softmax are left
    out.
    """
    # A table of which rows are looked up multiplies nothing; a tied one is the output head, which does.
    shapes = parameter_shapes(config)
    if not config.tied:
        shapes.pop("embed/embedding")
    shapes.pop("positions/embedding", None)
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    attention = 12 * config.layers * config.heads * config.head_dim * length
    return length * (4 * matrices + attention)

"""Memory and work of a fit, against XLA's own counts of what it compiles."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from onestep_jax import PRESETS, Model, OneStep, load_model
from onestep_jax.bench.shapes import SHAPES
from onestep_jax.fitting.memory import compiled_step, fit_memory, fitting_slots
from onestep_jax.model.cost import abstract_params, parameter_counts, step_flops
from onestep_jax.model.decoder import Network
from onestep_jax.model.families import read_config

FAST = PRESETS["fast"]


@pytest.fixture(scope="module")
def default() -> Model:
    return load_model(dtype="float32", tokenizer=False)


def test_abstract_params_are_the_shapes_of_the_real_ones(default: Model):
    abstract = abstract_params(default.config, jnp.float32)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), default.params
    )
    assert parameter_counts(default.config)["total"] == sum(leaf.size for leaf in jax.tree.leaves(default.params))


@pytest.mark.long
def test_memory_has_the_weights_and_grows_with_the_slots(default: Model):
    few, many = (fit_memory(default.network, jnp.float32, slots=n, length=16, preset=FAST) for n in (4, 16))
    assert few.weights == many.weights == sum(leaf.nbytes for leaf in jax.tree.leaves(default.params))
    assert many.state == 4 * few.state
    assert 3 < many.working / few.working < 5
    # The activations that a backward pass cannot do without: what enters each block's two halves.
    assert few.working > 4 * 16 * default.config.width * 2 * default.config.layers * 4
    assert many.total == many.weights + many.state + many.working


@pytest.mark.long
def test_weights_take_half_in_bfloat16(default: Model):
    sizes = [
        fit_memory(default.network, dtype, slots=1, length=8, preset=FAST).weights
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert sizes[0] == 2 * sizes[1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("length", [16, 128])
def test_flops_are_those_that_xla_counts(default: Model, tied: bool, length: int):
    config = dataclasses.replace(default.config, tied=tied)
    model = Model(config, abstract_params(config, jnp.float32))

    def score(x_TD: jax.Array, params: Any, cotangent_TV: jax.Array) -> jax.Array:
        return jnp.sum(model.apply(params, x_TD) * cotangent_TV)

    x_TD = jax.ShapeDtypeStruct((length, config.width), jnp.float32)
    cotangent_TV = jax.ShapeDtypeStruct((length, config.vocab_size), jnp.float32)
    counted: Any = jax.jit(jax.value_and_grad(score)).lower(x_TD, model.params, cotangent_TV).compile().cost_analysis()
    assert step_flops(config, length) == pytest.approx(counted["flops"], rel=0.05)


@pytest.mark.long
def test_slots_that_fit_fill_the_memory(default: Model):
    shape: dict[str, Any] = {"length": 16, "preset": FAST}
    one, three = (fit_memory(default.network, jnp.float32, slots=n, **shape).total for n in (1, 3))
    assert fitting_slots(default.network, jnp.float32, 1.02 * three, **shape) in (3, 4)
    assert fitting_slots(default.network, jnp.float32, 10 * three, **shape) > 20
    assert fitting_slots(default.network, jnp.float32, 0.9 * one, **shape) == 0
    group = fit_memory(default.network, jnp.float32, slots=1, scheme=OneStep(share="m", group=4), **shape)
    assert group.working > 2 * fit_memory(default.network, jnp.float32, slots=1, **shape).working


def test_no_logits_of_all_positions_exist():
    """At the width, vocabulary and length of Llama-3.2-1B; its sixteen equal layers are cut to one."""
    config = dataclasses.replace(read_config(SHAPES["llama-3.2-1b"])[1], layers=1)
    slots, length = 2, 256
    *_, program = compiled_step(Network(config), jnp.bfloat16, slots=slots, length=length, preset=FAST)
    shapes = [
        [int(number) for number in found.split(",")]
        for found in re.findall(r"\b(?:f32|bf16|f16|s32|pred)\[([\d,]+)\]", program.as_text())
    ]
    wide = [shape for shape in shapes if config.vocab_size in shape and config.width not in shape]
    assert wide
    assert max(math.prod(shape) for shape in wide) < slots * length * config.vocab_size / 3

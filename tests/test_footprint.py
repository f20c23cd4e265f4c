"""Memory and work of a fit, against XLA's own counts of what it compiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from onestep_jax import PRESETS, Model, load_model
from onestep_jax.footprint import abstract_params, fit_memory, step_flops
from onestep_jax.model import parameter_counts

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


def test_memory_has_the_weights_and_grows_with_the_slots(default: Model):
    few, many = (fit_memory(default.config, jnp.float32, slots=n, length=16, preset=FAST) for n in (4, 16))
    assert few.weights == many.weights == sum(leaf.nbytes for leaf in jax.tree.leaves(default.params))
    assert many.state == 4 * few.state
    assert 3 < many.working / few.working < 5
    # The activations that a backward pass cannot do without: what enters each block's two halves.
    assert few.working > 4 * 16 * default.config.width * 2 * default.config.layers * 4
    assert many.total == many.weights + many.state + many.working


def test_weights_take_half_in_bfloat16(default: Model):
    sizes = [
        fit_memory(default.config, dtype, slots=1, length=8, preset=FAST).weights
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

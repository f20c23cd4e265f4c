"""The tiny model's first block alone, which compiles in half the time, bare and with its tokenizer of sixty words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from onestep_jax import Model, load_model


@pytest.fixture(scope="session")
def little(tiny: Model) -> Model:
    params = {name: part for name, part in tiny.params.items() if name != "block_1"}
    config = dataclasses.replace(tiny.config, layers=1)
    described = tiny.described | {"num_hidden_layers": 1}
    return Model(config, params, None, "little", "fedcba9876543210", described)


@pytest.fixture(scope="session")
def half(little: Model) -> Model:
    """With its weights in bfloat16."""
    return dataclasses.replace(little, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), little.params))


@pytest.fixture(scope="session")
def worded(little: Model, tiny_folder: Path) -> Model:
    return dataclasses.replace(little, tokenizer=load_model(tiny_folder).tokenizer)

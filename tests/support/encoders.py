"""Encoders with random weights, in which every part takes part, and texts of the words that the tiny model knows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from onestep_jax import Design, Encoder, Model, Recipe
from onestep_jax.encoder.design import Weights
from onestep_jax.encoder.folder import make_encoder
from onestep_jax.encoder.objective import init_weights

# Half of its updates are without corrections, half with; its windows are of one length.
SMALL = Recipe(updates=24, batch=8, lr=0.01, warmup=4, growth=0.0, reading=0.5)
DESIGN = Design(length=4, corrections=2, step="diagonal")


def random_weights(model: Model, design: Design, seed: int = 0, size: float = 0.1) -> Weights:
    """Weights of which none is zero, so that adapters and corrections change something."""
    weights = init_weights(model.network, design, model.params, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + size * rng.normal(size=leaf.shape).astype(np.float32), weights)


def random_encoder(model: Model, seed: int = 0, **parts: Any) -> Encoder:
    design = dataclasses.replace(DESIGN, **parts)
    return make_encoder(model, design, random_weights(model, design, seed), {})


def word_texts(count: int, words: int = 40, seed: int = 0) -> list[str]:
    rows = np.random.default_rng(seed).integers(1, 60, size=(count, words))
    return [" ".join(f"w{i}" for i in row) for row in rows]

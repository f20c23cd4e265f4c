"""Mistral 7B and its kin: Llama with a window on every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama
from onestep_jax.model.families.base import Family, keys


def read(config: Mapping[str, Any]) -> ModelConfig:
    window = config.get("sliding_window", 4096)  # null means none
    return llama.read_like_llama(config, "mistral", kv_heads=8, windows=(window,))


HANDLED = {**llama.KEYS, **keys(counts="sliding_window", numbers="rms_norm_eps")}
FAMILY = Family("mistral", HANDLED, read, llama.weights)

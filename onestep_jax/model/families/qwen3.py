"""Qwen3: Qwen2 with normed queries and keys, heads of a width of their own, and biases only if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama, qwen2
from onestep_jax.model.families.base import Family, given, keys


def read(config: Mapping[str, Any]) -> ModelConfig:
    bias = given(config, "attention_bias", False)
    layers = qwen2.read_windows(config)
    fields: dict[str, Any] = {"qkv_bias": bias, "out_bias": bias, "qk_norm": "head"}
    return llama.read_like_llama(config, "qwen3", head_dim=128, kv_heads=32, windows=layers, **fields)


HANDLED = {**llama.KEYS, **qwen2.WINDOW_KEYS, **keys(numbers="rms_norm_eps", flags="attention_bias")}
FAMILY = Family("qwen3", HANDLED, read, llama.weights)

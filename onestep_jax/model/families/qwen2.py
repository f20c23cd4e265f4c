"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and windows on the upper layers if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama, windows
from onestep_jax.model.families.base import Family, given, keys


def read_windows(config: Mapping[str, Any]) -> list[int | None]:
    """The window of each layer; without `use_sliding_window` there is none."""
    window = config.get("sliding_window", 4096) if given(config, "use_sliding_window", False) else None
    first = given(config, "max_window_layers", 28)
    return windows.layer_windows(config, window, lambda i: window is not None and i >= first)


def read(config: Mapping[str, Any]) -> ModelConfig:
    layers = read_windows(config)
    return llama.read_like_llama(config, "qwen2", kv_heads=32, windows=layers, qkv_bias=True)


WINDOW_KEYS = {**windows.KEYS, **keys(counts="sliding_window", indices="max_window_layers", flags="use_sliding_window")}
HANDLED = {**llama.KEYS, **WINDOW_KEYS, **keys(numbers="rms_norm_eps")}
FAMILY = Family("qwen2", HANDLED, read, llama.weights, required={"use_mrope": False})

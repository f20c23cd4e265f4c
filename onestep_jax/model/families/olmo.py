"""OLMo 1: Llama with norms that have no weights, and clipped queries, keys and values if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama
from onestep_jax.model.families.base import Family, given, keys


def read(config: Mapping[str, Any]) -> ModelConfig:
    bias = given(config, "attention_bias", False)
    fields: dict[str, Any] = {"qkv_bias": bias, "out_bias": bias, "clip_qkv": config.get("clip_qkv")}
    return llama.read_like_llama(config, "olmo", norm="layer_plain", norm_eps=1e-5, **fields)


HANDLED = {**llama.KEYS, **keys(numbers="clip_qkv", flags="attention_bias")}
FAMILY = Family("olmo", HANDLED, read, llama.weights)

"""OLMo 2: norms on the outputs of attention and feed-forward, and over all heads of the queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama
from onestep_jax.model.families.base import Family, Weight, given, keys

NORMS = {"norm_1": "post_attention_layernorm", "norm_2": "post_feedforward_layernorm"}


def read(config: Mapping[str, Any]) -> ModelConfig:
    bias = given(config, "attention_bias", False)
    fields: dict[str, Any] = {"qkv_bias": bias, "out_bias": bias, "norm_at": "output", "qk_norm": "all"}
    return llama.read_like_llama(config, "olmo2", **fields)


def weights(config: ModelConfig) -> list[Weight]:
    return llama.weights(config, NORMS)


HANDLED = {**llama.KEYS, **keys(numbers="rms_norm_eps", flags="attention_bias")}
FAMILY = Family("olmo2", HANDLED, read, weights)

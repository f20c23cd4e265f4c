"""Gemma 2: scaled embeddings, norms on both sides of attention and feed-forward, soft caps, alternating windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama, windows
from onestep_jax.model.families.base import Family, Weight, given, keys, need

NORMS = {
    "norm_1": "input_layernorm",
    "norm_1_out": "post_attention_layernorm",
    "norm_2": "pre_feedforward_layernorm",
    "norm_2_out": "post_feedforward_layernorm",
}


def common(config: Mapping[str, Any], slides: Callable[[int], bool]) -> dict[str, Any]:
    """Arguments of `read_like_llama` that Gemma 2 and Gemma 3 share, given which layers slide by default."""
    bias = given(config, "attention_bias", False)
    return {
        "head_dim": 256,
        "kv_heads": 4,
        "tied": True,
        "activation_key": ("hidden_activation", "gelu_pytorch_tanh"),
        "windows": windows.layer_windows(config, config.get("sliding_window", 4096), slides),
        "scale": given(config, "query_pre_attn_scalar", 256) ** -0.5,
        "embed_scale": math.sqrt(need(config, "hidden_size")),
        "norm": "rms_plus_one",
        "norm_at": "both",
        "qkv_bias": bias,
        "out_bias": bias,
    }


def read(config: Mapping[str, Any]) -> ModelConfig:
    arguments = common(config, lambda i: i % 2 == 0)
    score_cap = config.get("attn_logit_softcapping", 50.0)  # null means none
    logit_cap = config.get("final_logit_softcapping", 30.0)
    return llama.read_like_llama(config, "gemma2", score_cap=score_cap, logit_cap=logit_cap, **arguments)


def weights(config: ModelConfig) -> list[Weight]:
    return llama.weights(config, NORMS)


HANDLED = {
    **{key: kind for key, kind in llama.KEYS.items() if key != "hidden_act"},
    **windows.KEYS,
    **keys(
        numbers="rms_norm_eps query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping",
        counts="sliding_window",
        flags="attention_bias",
        words="hidden_activation",
    ),
}
FAMILY = Family("gemma2", HANDLED, read, weights, {"use_bidirectional_attention": False}, ignored=["hidden_act"])

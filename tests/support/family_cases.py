"""Tiny models of every family, one for each option that changes its mathematics, as keyword arguments of its config.

The first case of a family is its plain one; the others change one or two things of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Config = dict[str, Any]

SIZES: Config = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
PLAIN_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR: Config = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
# With 8 pairs per head, wavelengths run from 6.3 up by factors of 3.2: below 16 / 2 = 8 positions they are kept, above
# 16 / 0.5 = 32 they are stretched, and the second one, 19.9, lies on the ramp.
LLAMA3: Config = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
YARN: Config = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
    "original_max_position_embeddings": 16,
}
TWO_HEADS: Config = {"num_attention_heads": 2, "num_key_value_heads": 1}


def longrope(pairs: int, original: int) -> Config:
    short, long = [1.0 + 0.1 * i for i in range(pairs)], [2.0 + 0.5 * i for i in range(pairs)]
    lists = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long}
    return lists | {"original_max_position_embeddings": original}


LLAMA = SIZES | {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_parameters": PLAIN_ROPE}
UNTIED: Config = {"tie_word_embeddings": False}
FULL: Config = {"num_key_value_heads": 4}
NEOX: Config = {
    **{key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
    "num_attention_heads": 2,
    "rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.25},
    "bos_token_id": 1,
}
GEMMA = SIZES | {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 7, "rms_norm_eps": 1e-5}
LAYER_TYPES = ["full_attention", "sliding_attention"]
SLIDING: Config = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
OLMO = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"}
GPT2: Config = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT_NEO: Config = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
GPT_NEO |= {"attention_types": [[["global", "local"], 1]], "window_size": 7}
OPT: Config = {"vocab_size": 97, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 40, "num_hidden_layers": 2}
OPT |= {"num_attention_heads": 4, "max_position_embeddings": 64}
PHI3 = LLAMA | UNTIED | {"pad_token_id": 0, "original_max_position_embeddings": 64}
GEMMA3 = GEMMA | {"num_hidden_layers": 3}

CASES: dict[str, dict[str, Config]] = {
    "gpt_neox": {
        "parallel residual, partial RoPE": NEOX,
        "sequential residual": NEOX | {"use_parallel_residual": False},
        "no attention bias": NEOX | {"attention_bias": False},
        "approximate GELU": NEOX | {"hidden_act": "gelu_fast"},
        "whole RoPE, other base": NEOX
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}},
        "RoPE linear": NEOX | {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}},
        "tied": NEOX | {"tie_word_embeddings": True, "layer_norm_eps": 1e-3},
    },
    "llama": {
        "grouped, tied": LLAMA,
        "full, untied": LLAMA | FULL | UNTIED,
        "wide heads, attention bias": LLAMA | {"head_dim": 12, "attention_bias": True},
        "biases, large epsilon": LLAMA | {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2},
        "RoPE base": LLAMA | {"rope_parameters": PLAIN_ROPE | {"rope_theta": 500000.0}},
        "RoPE linear": LLAMA | {"rope_parameters": LINEAR},
        "RoPE llama3": LLAMA | TWO_HEADS | {"rope_parameters": LLAMA3},
        "RoPE yarn": LLAMA | TWO_HEADS | {"rope_parameters": YARN},
        "RoPE yarn, not rounded, mscale": LLAMA
        | TWO_HEADS
        | {"rope_parameters": YARN | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 0.4}},
        "RoPE longrope": LLAMA | {"rope_parameters": longrope(4, original=8)},
        "GELU": LLAMA | {"hidden_act": "gelu"},
    },
    "mistral": {
        "window shorter than the text": LLAMA | UNTIED | {"sliding_window": 7},
        "window longer than the text": LLAMA | UNTIED | {"sliding_window": 50},
        "no window": LLAMA | UNTIED | {"sliding_window": None, "head_dim": 12},
        "tied, full": LLAMA | FULL | {"sliding_window": 7},
    },
    "qwen2": {
        "grouped, tied": LLAMA,
        "untied": LLAMA | UNTIED,
        "window on the upper layer": LLAMA | SLIDING,
        "layer types": LLAMA | SLIDING | {"layer_types": LAYER_TYPES[::-1]},
        "RoPE yarn": LLAMA | TWO_HEADS | {"rope_parameters": YARN},
    },
    "qwen3": {
        "wide heads, tied": LLAMA | {"head_dim": 12},
        "untied, bias": LLAMA | UNTIED | {"head_dim": 8, "attention_bias": True},
        "window on the upper layer": LLAMA | SLIDING | {"head_dim": 8},
    },
    "gemma2": {
        "alternating windows, soft caps": GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
        "no soft caps": GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "layer types, bias": GEMMA | {"layer_types": LAYER_TYPES, "attention_bias": True},
        "untied": GEMMA | UNTIED,
    },
    "gemma3_text": {
        "windows by pattern": GEMMA3 | {"sliding_window_pattern": 3},
        "layer types": GEMMA3 | {"layer_types": ["sliding_attention", *LAYER_TYPES]},
        "RoPE linear on the global layer": GEMMA3
        | {"sliding_window_pattern": 3, "rope_parameters": {"full_attention": LINEAR, "sliding_attention": PLAIN_ROPE}},
        "capped logits, bias": GEMMA3 | {"final_logit_softcapping": 5.0, "attention_bias": True},
    },
    "gpt2": {
        "tied": GPT2,
        "untied": GPT2 | UNTIED,
        "scores scaled by layer": GPT2 | {"scale_attn_by_inverse_layer_idx": True},
        "scores not scaled": GPT2 | {"scale_attn_weights": False},
        "other width, exact GELU": GPT2 | {"n_inner": 40, "activation_function": "gelu"},
        "scores in float32": GPT2 | {"reorder_and_upcast_attn": True},
    },
    "gpt_neo": {
        "global and local": GPT_NEO,
        "local only, other width": GPT_NEO | {"attention_types": [[["local"], 2]], "intermediate_size": 40},
        "untied, ReLU": GPT_NEO | UNTIED | {"activation_function": "relu"},
    },
    "opt": {
        "norm before": OPT,
        "350m: projected, norm after": OPT | {"word_embed_proj_dim": 24, "do_layer_norm_before": False},
        "projected, norm before": OPT | {"word_embed_proj_dim": 24},
        "no final norm": OPT | {"_remove_final_layer_norm": True},
        "Galactica: no bias, GELU": OPT | {"enable_bias": False, "activation_function": "gelu"},
        "norms without weights": OPT | {"layer_norm_elementwise_affine": False},
        "untied": OPT | UNTIED,
    },
    "olmo": {
        "plain": OLMO | UNTIED,
        "clipped, tied": OLMO | {"clip_qkv": 0.8},
        "bias, full": OLMO | FULL | UNTIED | {"attention_bias": True},
    },
    "olmo2": {
        "plain": LLAMA | UNTIED,
        "tied, full": LLAMA | FULL,
        "bias": LLAMA | UNTIED | {"attention_bias": True},
    },
    "phi3": {
        "grouped": PHI3,
        "full, tied": PHI3 | FULL | {"tie_word_embeddings": True},
        "window": PHI3 | {"sliding_window": 7},
        "partial RoPE": PHI3 | {"rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.5}},
        "longrope, short text": PHI3
        | {"original_max_position_embeddings": 32, "rope_parameters": longrope(4, original=32)},
        "longrope, long text": PHI3
        | {"original_max_position_embeddings": 8, "rope_parameters": longrope(4, original=8)},
    },
}

# What test_model.py reads without torch: GOLDEN_FOLDER / name is the checkpoint, GOLDEN_FOLDER / name.npz what
# transformers computed with it (make_golden.py). Name → model type and case.
GOLDEN = {model_type: (model_type, next(iter(cases))) for model_type, cases in CASES.items()}
GOLDEN |= {
    "llama_sharded": ("llama", "full, untied"),
    "llama3_rope": ("llama", "RoPE llama3"),
    "opt_350m": ("opt", "350m: projected, norm after"),
}
GOLDEN_FOLDER = Path(__file__).parents[1] / "golden"

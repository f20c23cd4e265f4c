"""Phi-3 and Phi-4: Llama with fused projections, partly turned heads, and RoPE of two lengths ("longrope")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama
from onestep_jax.model.families.base import Family, Part, Weight, given, head_sizes, keys
from onestep_jax.model.families.rope import read_rope

ROPE_OBJECTS = ("rope_parameters", "rope_scaling")


def read(config: Mapping[str, Any]) -> ModelConfig:
    sizes = head_sizes(config, "num_attention_heads", "hidden_size", head_dim=config.get("head_dim"))
    original = {"original_max_position_embeddings": given(config, "original_max_position_embeddings", 4096)}
    objects = {key: {**_renamed(config[key]), **original} for key in ROPE_OBJECTS if config.get(key)}
    share = given(config, "partial_rotary_factor", 1.0)
    rope = read_rope({**config, **objects}, sizes["head_dim"], fraction=share)
    return llama.read_like_llama(config, "phi3", rope=rope, windows=(config.get("sliding_window"),))


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings with the type that Phi-3's first checkpoints called "su" or "yarn" by its later name."""
    aliases = {"su": "longrope", "yarn": "longrope"}
    names = ("type", "rope_type")
    return {key: aliases.get(value, value) if key in names else value for key, value in settings.items()}


def weights(config: ModelConfig) -> list[Weight]:
    queries, keys_ = config.heads * config.head_dim, config.kv_heads * config.head_dim
    fused = {"gate": ("mlp.gate_up_proj", 0, config.ffn), "up": ("mlp.gate_up_proj", config.ffn, config.ffn)}
    sizes = {"mlp.gate_up_proj": 2 * config.ffn, "self_attn.qkv_proj": queries + 2 * keys_}
    fused |= {"q": ("self_attn.qkv_proj", 0, queries), "k": ("self_attn.qkv_proj", queries, keys_)}
    fused |= {"v": ("self_attn.qkv_proj", queries + keys_, keys_)}

    def fuse(row: Weight) -> Weight:
        projection = row.path.split("/")[-2]
        if projection not in fused:
            return row
        name, first, size = fused[projection]
        layer = ".".join(row.name.split(".")[:3])
        return Weight(row.path, f"{layer}.{name}.weight", Part(first, size, sizes[name]))

    return [fuse(row) for row in llama.weights(config)]


HANDLED = {
    **llama.KEYS,
    **keys(
        numbers="rms_norm_eps partial_rotary_factor",
        counts="sliding_window original_max_position_embeddings",
    ),
}
# What the code beside Phi-4's weights could do and transformers' cannot.
REQUIRED = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
}
FAMILY = Family("phi3", HANDLED, read, weights, REQUIRED, ignored=["resid_pdrop", "embd_pdrop"])

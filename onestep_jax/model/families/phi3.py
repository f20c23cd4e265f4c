"""Phi-3 and Phi-4: Llama with fused projections, partly turned heads, and RoPE of two lengths ("longrope")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import llama, rope
from onestep_jax.model.families.base import Family, Part, Weight, given, head_sizes, keys


def rope_settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rotary settings in today's names: Phi-3's first checkpoints called the type "su" or "yarn"."""
    original = {"original_max_position_embeddings": given(config, "original_max_position_embeddings", 4096)}
    objects = {key: _renamed(config[key]) for key in rope.OBJECTS if config.get(key)}
    return rope.rope_settings({**config, **objects, **original})


def unread(config: Mapping[str, Any]) -> list[str]:
    """Rotary settings that transformers does not read, such as `short_mscale`."""
    return rope.unread(rope_settings(config))


def read(config: Mapping[str, Any]) -> ModelConfig:
    sizes = head_sizes(config, "num_attention_heads", "hidden_size", head_dim=config.get("head_dim"))
    share = given(config, "partial_rotary_factor", 1.0)
    rotary = rope.read_rope({**config, **rope_settings(config)}, sizes["head_dim"], fraction=share)
    return llama.read_like_llama(config, "phi3", rope=rotary, windows=(config.get("sliding_window"),))


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
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
    **keys(numbers="rms_norm_eps partial_rotary_factor", counts="sliding_window"),
}
# What the code beside Phi-4's weights could do and transformers' cannot.
REQUIRED = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
}
IGNORED = ["resid_pdrop", "embd_pdrop"]
FAMILY = Family("phi3", HANDLED, read, weights, REQUIRED, IGNORED, unread=unread)

"""Llama 1 to 3.x and the models built like it (SmolLM, Sheared-LLaMA, TinyLlama)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.config import ModelConfig
from onestep_jax.families.base import Family, Weight, need
from onestep_jax.families.rope import KEYS as ROPE_KEYS
from onestep_jax.families.rope import read_rope

HANDLED = frozenset(
    """attention_bias head_dim hidden_size intermediate_size max_position_embeddings mlp_bias num_attention_heads
    num_hidden_layers num_key_value_heads rms_norm_eps tie_word_embeddings vocab_size""".split()
)


def read(config: Mapping[str, Any]) -> ModelConfig:
    heads, width = need(config, "num_attention_heads"), need(config, "hidden_size")
    return ModelConfig(
        family="llama",
        vocab_size=need(config, "vocab_size"),
        width=width,
        layers=need(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or width // heads,
        ffn=need(config, "intermediate_size"),
        context=need(config, "max_position_embeddings"),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=config.get("tie_word_embeddings", False),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        rope=read_rope(config),
    )


def weights(config: ModelConfig) -> list[Weight]:
    rows = [Weight("embed/embedding", "model.embed_tokens.weight"), Weight("norm/scale", "model.norm.weight")]
    if not config.tied:
        rows.append(Weight("head/kernel", "lm_head.weight", transposed=True))
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"model.layers.{i}"
        rows.append(Weight(f"{ours}/norm_1/scale", f"{theirs}.input_layernorm.weight"))
        rows.append(Weight(f"{ours}/norm_2/scale", f"{theirs}.post_attention_layernorm.weight"))
        for part, module, names, bias in (
            ("attention", "self_attn", "qkvo", config.attention_bias),
            ("mlp", "mlp", ("gate", "up", "down"), config.mlp_bias),
        ):
            for name in names:
                rows.append(
                    Weight(f"{ours}/{part}/{name}/kernel", f"{theirs}.{module}.{name}_proj.weight", transposed=True)
                )
                if bias:
                    rows.append(Weight(f"{ours}/{part}/{name}/bias", f"{theirs}.{module}.{name}_proj.bias"))
    return rows


def ignorable(config: ModelConfig, name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")


FAMILY = Family("llama", HANDLED | ROPE_KEYS, {"hidden_act": "silu"}, read, weights, ignorable)

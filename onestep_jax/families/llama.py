"""Llama 1 to 3.x and the models built like it (SmolLM, Sheared-LLaMA, TinyLlama)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.config import ModelConfig, UserError
from onestep_jax.families.base import COUNT, FLAG, NUMBER, Family, Weight, need
from onestep_jax.families.rope import KEYS as ROPE_KEYS
from onestep_jax.families.rope import read_rope

_COUNTS = """head_dim hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers
num_key_value_heads vocab_size""".split()
_FLAGS = "attention_bias mlp_bias tie_word_embeddings".split()
HANDLED = {**dict.fromkeys(_COUNTS, COUNT), **dict.fromkeys(_FLAGS, FLAG), "rms_norm_eps": NUMBER, **ROPE_KEYS}


def read(config: Mapping[str, Any]) -> ModelConfig:
    heads, width = need(config, "num_attention_heads"), need(config, "hidden_size")
    kv_heads, head_dim = config.get("num_key_value_heads") or heads, config.get("head_dim") or width // heads
    if config.get("head_dim") is None and width % heads:
        raise UserError(f"num_attention_heads = {heads}: expected a divisor of hidden_size = {width}, or a head_dim")
    if heads % kv_heads:
        raise UserError(f"num_attention_heads = {heads}: expected a multiple of num_key_value_heads = {kv_heads}")
    if head_dim % 2:
        raise UserError(f"head_dim = {head_dim}: expected an even number, which rotary positions need")
    return ModelConfig(
        family="llama",
        vocab_size=need(config, "vocab_size"),
        width=width,
        layers=need(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=need(config, "intermediate_size"),
        context=need(config, "max_position_embeddings"),
        norm_eps=need(config, "rms_norm_eps"),
        tied=bool(config.get("tie_word_embeddings")),
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
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


def ignorable(config: ModelConfig, name: str) -> str | None:
    if name.endswith("rotary_emb.inv_freq"):
        return ""
    return "model.embed_tokens.weight" if config.tied and name == "lm_head.weight" else None


REQUIRED = {"hidden_act": "silu", "rope_interleaved": False}
FAMILY = Family("llama", HANDLED, REQUIRED, read, weights, ignorable)

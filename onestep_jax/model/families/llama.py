"""Llama 1 to 3.x and the models built like it (SmolLM, Sheared-LLaMA, TinyLlama); the start of most later families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onestep_jax.model.config import Layer, ModelConfig, Rope
from onestep_jax.model.families.base import Family, Weight, activation, given, head_sizes, keys, linear, need, norm
from onestep_jax.model.families.rope import KEYS as ROPE_KEYS
from onestep_jax.model.families.rope import read_rope

# The keys of every family that is read by `read_like_llama`.
KEYS = {
    **keys(
        counts="""head_dim hidden_size intermediate_size max_position_embeddings num_attention_heads
        num_key_value_heads vocab_size""",
        layers="num_hidden_layers",
        flags="tie_word_embeddings",
        words="hidden_act",
    ),
    **ROPE_KEYS,
}
NORMS = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}


def read_like_llama(
    config: Mapping[str, Any],
    family: str,
    *,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    tied: bool = False,
    rope: Rope | None = None,
    windows: Sequence[int | None] = (None,),
    local_rope: Rope | None = None,
    scale: float | None = None,
    norm_eps: float | None = None,
    activation_key: tuple[str, str] = ("hidden_act", "silu"),
    **fields: Any,
) -> ModelConfig:
    """The decoder that Llama's key names describe.

    Args:
      config: config.json.
      family: its model_type.
      head_dim, kv_heads, tied: what an absent key means; without them, width / heads, as many as heads, and untied.
      rope: rotary positions, read without a default fraction if absent.
      windows: window of each layer, or of all of them.
      local_rope: rotary positions of layers with a window, if they are others.
      scale: factor of the attention scores.
      norm_eps, fields: where the family does not follow Llama.
      activation_key: key of the activation, and what its absence means.
    """
    head_dim, kv_heads = given(config, "head_dim", head_dim), config.get("num_key_value_heads", kv_heads)
    sizes = head_sizes(config, "num_attention_heads", "hidden_size", kv_heads, head_dim)
    context = need(config, "max_position_embeddings")
    rope = rope or read_rope(config, sizes["head_dim"])
    return ModelConfig(
        family=family,
        vocab_size=need(config, "vocab_size"),
        width=need(config, "hidden_size"),
        layers=need(config, "num_hidden_layers"),
        ffn=need(config, "intermediate_size"),
        context=context,
        norm_eps=norm_eps or need(config, "rms_norm_eps"),
        tied=given(config, "tie_word_embeddings", tied),
        pattern=tuple(Layer((local_rope if window else None) or rope, window, scale) for window in windows),
        activation=activation(config, *activation_key),
        **sizes,
        **fields,
    )


def read(config: Mapping[str, Any]) -> ModelConfig:
    bias = given(config, "attention_bias", False)
    return read_like_llama(config, "llama", qkv_bias=bias, out_bias=bias, mlp_bias=given(config, "mlp_bias", False))


def weights(config: ModelConfig, norms: Mapping[str, str] = NORMS) -> list[Weight]:
    """The table of Llama's tensor names; `norms` are a block's norms, ours → theirs."""
    rows = [Weight("embed/embedding", "model.embed_tokens.weight"), *norm("norm", "model.norm", config)]
    if not config.tied:
        rows += linear("head", "lm_head", bias=False)
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"model.layers.{i}"
        for name, stored in norms.items():
            rows += norm(f"{ours}/{name}", f"{theirs}.{stored}", config)
        for name in "qk" if config.qk_norm else "":
            rows += norm(f"{ours}/attention/{name}_norm", f"{theirs}.self_attn.{name}_norm", config)
        for name in "qkvo":
            bias = config.out_bias if name == "o" else config.qkv_bias
            rows += linear(f"{ours}/attention/{name}", f"{theirs}.self_attn.{name}_proj", bias)
        for name in ("gate", "up", "down"):
            rows += linear(f"{ours}/mlp/{name}", f"{theirs}.mlp.{name}_proj", config.mlp_bias)
    return rows


HANDLED = {**KEYS, **keys(flags="attention_bias mlp_bias", numbers="rms_norm_eps")}
FAMILY = Family("llama", HANDLED, read, weights, required={"rope_interleaved": False})

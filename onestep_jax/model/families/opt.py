"""OPT: learned positions from row 2 on; the 350m norms the sums and projects its input vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import Layer, ModelConfig
from onestep_jax.model.families.base import Family, Weight, activation, given, head_sizes, keys, linear, need, norm

OFFSET = 2  # the first two rows of the position table once stood for padding


def read(config: Mapping[str, Any]) -> ModelConfig:
    width, positions = need(config, "hidden_size"), need(config, "max_position_embeddings")
    embed_width, bias = given(config, "word_embed_proj_dim", width), given(config, "enable_bias", True)
    before = given(config, "do_layer_norm_before", True)
    return ModelConfig(
        family="opt",
        vocab_size=need(config, "vocab_size"),
        width=width,
        layers=need(config, "num_hidden_layers"),
        ffn=need(config, "ffn_dim"),
        context=positions,
        norm_eps=1e-5,
        tied=given(config, "tie_word_embeddings", True),
        embed_width=None if embed_width == width else embed_width,
        position_rows=positions + OFFSET,
        position_offset=OFFSET,
        pattern=(Layer(None),),
        norm="layer" if given(config, "layer_norm_elementwise_affine", True) else "layer_plain",
        norm_at="input" if before else "sum",
        final_norm=before and not given(config, "_remove_final_layer_norm", False),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        gated=False,
        activation=activation(config, "activation_function", "relu"),
        **head_sizes(config, "num_attention_heads", "hidden_size"),
    )


def weights(config: ModelConfig) -> list[Weight]:
    rows = [Weight("embed/embedding", "model.decoder.embed_tokens.weight")]
    rows += [Weight("positions/embedding", "model.decoder.embed_positions.weight")]
    for name in () if config.embed_width is None else ("project_in", "project_out"):
        rows += linear(name, f"model.decoder.{name}", bias=False)
    rows += norm("norm", "model.decoder.final_layer_norm", config) if config.final_norm else []
    rows += [] if config.tied else linear("head", "lm_head", bias=False)
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"model.decoder.layers.{i}"
        rows += norm(f"{ours}/norm_1", f"{theirs}.self_attn_layer_norm", config)
        rows += norm(f"{ours}/norm_2", f"{theirs}.final_layer_norm", config)
        for name, stored in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}.items():
            bias = config.out_bias if name == "o" else config.qkv_bias
            rows += linear(f"{ours}/attention/{name}", f"{theirs}.self_attn.{stored}", bias)
        rows += linear(f"{ours}/mlp/up", f"{theirs}.fc1", config.mlp_bias)
        rows += linear(f"{ours}/mlp/down", f"{theirs}.fc2", config.mlp_bias)
    return rows


HANDLED = keys(
    counts="ffn_dim hidden_size max_position_embeddings num_attention_heads vocab_size word_embed_proj_dim",
    layers="num_hidden_layers",
    flags="_remove_final_layer_norm do_layer_norm_before enable_bias layer_norm_elementwise_affine tie_word_embeddings",
    words="activation_function",
)
# Galactica's files have the two required keys; no code reads them.
REQUIRED = {"learned_embeddings": True, "scale_embeddings": False}
IGNORED = ["activation_dropout", "dropout", "init_std", "layerdrop"]
FAMILY = Family("opt", HANDLED, read, weights, REQUIRED, IGNORED)

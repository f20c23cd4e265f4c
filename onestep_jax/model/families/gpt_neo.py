"""GPT-Neo: learned positions, unscaled attention scores, a window on the local layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.config import Layer, ModelConfig
from onestep_jax.model.families import gpt2
from onestep_jax.model.families.base import Family, Weight, activation, given, head_sizes, keys, linear, need

KINDS = ("global", "local")


def read(config: Mapping[str, Any]) -> ModelConfig:
    sizes = head_sizes(config, "num_heads", "hidden_size")
    width, positions = need(config, "hidden_size"), need(config, "max_position_embeddings")
    window = given(config, "window_size", 256)
    return ModelConfig(
        family="gpt_neo",
        vocab_size=need(config, "vocab_size"),
        width=width,
        layers=need(config, "num_layers"),
        ffn=given(config, "intermediate_size", 4 * width),
        context=positions,
        norm_eps=given(config, "layer_norm_epsilon", 1e-5),
        tied=given(config, "tie_word_embeddings", True),
        position_rows=positions,
        pattern=tuple(Layer(None, window if kind == "local" else None, 1.0) for kind in _kinds(config)),
        norm="layer",
        out_bias=True,
        mlp_bias=True,
        gated=False,
        activation=activation(config, "activation_function", "gelu_new"),
        **sizes,
    )


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """The kind of each layer, from `attention_types`: [[[kind, …], how many times], …]."""
    types, layers = given(config, "attention_types", [[["global", "local"], 12]]), need(config, "num_layers")
    try:
        # counted before it is written out: a number of times may be anything
        counted = sum(len(some) * max(times, 0) for some, times in types)
        kinds = [kind for some, times in types for kind in list(some) * times] if counted == layers else []
    except (TypeError, ValueError, OverflowError):
        kinds = []
    if len(kinds) != layers or any(kind not in KINDS for kind in kinds):
        expected = f"[[[kind, …], times], …] of {' and '.join(KINDS)} for {layers} layers"
        raise UserError(f"attention_types = {types!r}: expected {expected}")
    listed = config.get("attention_layers")
    if listed is not None and listed != kinds:
        raise UserError(f"attention_layers = {listed!r} disagrees with attention_types; keep the right one")
    return kinds


def weights(config: ModelConfig) -> list[Weight]:
    rows = gpt2.frame(config)
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        for name in "qkv":
            rows += linear(f"{ours}/attention/{name}", f"{theirs}.attn.attention.{name}_proj", config.qkv_bias)
        rows += linear(f"{ours}/attention/o", f"{theirs}.attn.attention.out_proj", config.out_bias)
        rows += linear(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc", config.mlp_bias)
        rows += linear(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj", config.mlp_bias)
    return rows


HANDLED = keys(
    counts="hidden_size intermediate_size max_position_embeddings num_heads vocab_size window_size",
    layers="num_layers",
    numbers="layer_norm_epsilon",
    flags="tie_word_embeddings",
    lists="attention_layers attention_types",
    words="activation_function",
)
IGNORED = """embed_dropout resid_dropout summary_activation summary_first_dropout summary_proj_to_labels summary_type
summary_use_proj""".split()
BUFFERS = (".attn.attention.bias", ".attn.attention.masked_bias")
FAMILY = Family("gpt_neo", HANDLED, read, weights, ignored=IGNORED, prefix="transformer.", buffers=BUFFERS)

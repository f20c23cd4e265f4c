"""GPT-2: learned positions, and projections kept as (in, out), queries, keys and values in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.model.config import Layer, ModelConfig
from onestep_jax.model.families.base import (
    Family,
    Part,
    Weight,
    activation,
    given,
    head_sizes,
    keys,
    linear,
    need,
    norm,
)


def read(config: Mapping[str, Any]) -> ModelConfig:
    sizes = head_sizes(config, "n_head", "n_embd")
    width, layers, positions = need(config, "n_embd"), need(config, "n_layer"), need(config, "n_positions")
    scale = sizes["head_dim"] ** -0.5 if given(config, "scale_attn_weights", True) else 1.0
    by_layer = given(config, "scale_attn_by_inverse_layer_idx", False)
    scales = [scale / (i + 1) for i in range(layers)] if by_layer else [scale]
    return ModelConfig(
        family="gpt2",
        vocab_size=need(config, "vocab_size"),
        width=width,
        layers=layers,
        ffn=given(config, "n_inner", 4 * width),
        context=positions,
        norm_eps=given(config, "layer_norm_epsilon", 1e-5),
        tied=given(config, "tie_word_embeddings", True),
        position_rows=positions,
        pattern=tuple(Layer(None, scale=scale) for scale in scales),
        norm="layer",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
        activation=activation(config, "activation_function", "gelu_new"),
        **sizes,
    )


def frame(config: ModelConfig) -> list[Weight]:
    """What GPT-2 and GPT-Neo call alike: embeddings, positions, norms and head."""
    rows = [Weight("embed/embedding", "transformer.wte.weight")]
    rows += [Weight("positions/embedding", "transformer.wpe.weight")]
    rows += norm("norm", "transformer.ln_f", config)
    rows += [] if config.tied else linear("head", "lm_head", bias=False)
    for i in range(config.layers):
        for name, stored in (("norm_1", "ln_1"), ("norm_2", "ln_2")):
            rows += norm(f"block_{i}/{name}", f"transformer.h.{i}.{stored}", config)
    return rows


def weights(config: ModelConfig) -> list[Weight]:
    rows = frame(config)
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        for j, name in enumerate("qkv"):
            part = Part(j * config.width, config.width, 3 * config.width)
            rows += linear(f"{ours}/attention/{name}", f"{theirs}.attn.c_attn", True, part, transposed=True)
        rows += linear(f"{ours}/attention/o", f"{theirs}.attn.c_proj", True, transposed=True)
        rows += linear(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc", True, transposed=True)
        rows += linear(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj", True, transposed=True)
    return rows


HANDLED = keys(
    counts="n_embd n_head n_inner n_positions vocab_size",
    layers="n_layer",
    numbers="layer_norm_epsilon",
    flags="scale_attn_by_inverse_layer_idx scale_attn_weights tie_word_embeddings",
    words="activation_function",
)
# `reorder_and_upcast_attn` asks for float32 scores, which they always are here.
IGNORED = """attn_pdrop embd_pdrop n_ctx n_special output_past predict_special_tokens reorder_and_upcast_attn
resid_pdrop summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj""".split()
FAMILY = Family(
    "gpt2", HANDLED, read, weights, ignored=IGNORED, prefix="transformer.", buffers=(".attn.bias", ".attn.masked_bias")
)

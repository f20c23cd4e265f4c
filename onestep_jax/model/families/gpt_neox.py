"""GPT-NeoX: Pythia. Partly turned heads, fused queries, keys and values, attention beside the feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.config import Layer, ModelConfig, Rope
from onestep_jax.model.families.base import (
    ROTARY_BUFFERS,
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
from onestep_jax.model.families.rope import KEYS as ROPE_KEYS
from onestep_jax.model.families.rope import read_rope


def read(config: Mapping[str, Any]) -> ModelConfig:
    sizes = head_sizes(config, "num_attention_heads", "hidden_size")
    context, bias = need(config, "max_position_embeddings"), given(config, "attention_bias", True)
    return ModelConfig(
        family="gpt_neox",
        vocab_size=need(config, "vocab_size"),
        width=need(config, "hidden_size"),
        layers=need(config, "num_hidden_layers"),
        ffn=need(config, "intermediate_size"),
        context=context,
        norm_eps=given(config, "layer_norm_eps", 1e-5),
        tied=given(config, "tie_word_embeddings", False),
        pattern=(Layer(_rope(config, sizes["head_dim"])),),
        norm="layer",
        parallel=given(config, "use_parallel_residual", True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        gated=False,
        activation=activation(config, "hidden_act", "gelu"),
        **sizes,
    )


def _rope(config: Mapping[str, Any], head_dim: int) -> Rope:
    """Rotary positions; transformers 4.48 to 4.57 wrote base and share a second time, under the names of other models.

    Raises:
      UserError: if the copies differ.
    """
    theta, share = given(config, "rotary_emb_base", 10000.0), given(config, "rotary_pct", 0.25)
    rope = read_rope({**config, "rope_theta": None}, head_dim, theta, share)
    for key, value in {"rope_theta": rope.theta, "partial_rotary_factor": rope.fraction}.items():
        if given(config, key, value) != value:
            reason = f"disagrees with {value} of the other rotary settings; keep the right one"
            raise UserError(f"{key} = {config[key]!r} {reason}")
    return rope


def weights(config: ModelConfig) -> list[Weight]:
    rows = [Weight("embed/embedding", "gpt_neox.embed_in.weight")]
    rows += norm("norm", "gpt_neox.final_layer_norm", config)
    rows += [] if config.tied else linear("head", "embed_out", bias=False)
    for i in range(config.layers):
        ours, theirs = f"block_{i}", f"gpt_neox.layers.{i}"
        rows += norm(f"{ours}/norm_1", f"{theirs}.input_layernorm", config)
        rows += norm(f"{ours}/norm_2", f"{theirs}.post_attention_layernorm", config)
        for j, name in enumerate("qkv"):
            part = Part(j * config.head_dim, config.head_dim, 3 * config.head_dim)
            fused = f"{theirs}.attention.query_key_value"
            rows += linear(f"{ours}/attention/{name}", fused, config.qkv_bias, part)
        rows += linear(f"{ours}/attention/o", f"{theirs}.attention.dense", config.out_bias)
        rows += linear(f"{ours}/mlp/up", f"{theirs}.mlp.dense_h_to_4h", config.mlp_bias)
        rows += linear(f"{ours}/mlp/down", f"{theirs}.mlp.dense_4h_to_h", config.mlp_bias)
    return rows


HANDLED = {
    **keys(
        counts="hidden_size intermediate_size max_position_embeddings num_attention_heads vocab_size",
        layers="num_hidden_layers",
        numbers="layer_norm_eps partial_rotary_factor rotary_emb_base rotary_pct",
        flags="attention_bias tie_word_embeddings use_parallel_residual",
        words="hidden_act",
    ),
    **ROPE_KEYS,
}
BUFFERS = (".attention.bias", ".attention.masked_bias", *ROTARY_BUFFERS)
FAMILY = Family(
    "gpt_neox",
    HANDLED,
    read,
    weights,
    ignored=["attention_probs_dropout_prob", "hidden_dropout", "hidden_dropout_prob"],
    prefix="gpt_neox.",
    head="embed_out.weight",
    buffers=BUFFERS,
)

"""How GGUF files of each architecture spell settings and tensors: tables from llama.cpp's names to Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onestep_jax.errors import UserError
from onestep_jax.model.gguf.files import Header

# Tensors that hold settings, not weights.
FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"


class Layout(NamedTuple):
    """How the files of one architecture of llama.cpp spell a family of ours.

    Attributes:
      model_type: of the family.
      keys: metadata key, without the architecture's name → key of config.json. The file must have them.
      optional: the same of keys that a file may leave out.
      names: name of a tensor, or of a block's tensor after the block's number → name in the checkpoint.
      block: what the names of a block's tensors begin with there, before the number.
    """

    model_type: str
    keys: Mapping[str, str]
    optional: Mapping[str, str]
    names: Mapping[str, str]
    block: str = "model.layers"


_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES = _NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_NAMES = _NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GPT2_KEYS = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
LAYOUTS = {
    "llama": Layout("llama", _KEYS, _OPTIONAL, _NAMES),
    "qwen2": Layout("qwen2", _KEYS, _OPTIONAL, _NAMES),
    "qwen3": Layout("qwen3", _KEYS, _OPTIONAL, _NAMES),
    "gemma2": Layout("gemma2", _KEYS, _OPTIONAL | _WINDOW | _CAPS, _GEMMA_NAMES),
    "gemma3": Layout(
        "gemma3_text", _KEYS, _OPTIONAL | _WINDOW | _CAPS | {"rope.freq_base_swa": "rope_local_base_freq"}, _GEMMA_NAMES
    ),
    "phi3": Layout("phi3", _KEYS, _OPTIONAL | _WINDOW, _PHI3_NAMES),
    "gpt2": Layout("gpt2", _GPT2_KEYS, {}, _GPT2_NAMES, "transformer.h"),
}


def layout_of(header: Header) -> Layout:
    """The layout of a file's architecture.

    Raises:
      UserError: if there is none.
    """
    if header.architecture not in LAYOUTS:
        supported = ", ".join(LAYOUTS)
        reason = f"unsupported GGUF architecture {header.architecture!r}; supported: {supported}"
        raise UserError(f"{header.path}: {reason}")
    return LAYOUTS[header.architecture]

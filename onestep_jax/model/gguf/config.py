"""The metadata of a GGUF file as a config.json.

Where a file leaves a setting out, it has the value that llama.cpp takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.model.families.base import COUNT, KINDS, NUMBER
from onestep_jax.model.families.windows import FULL, SLIDING
from onestep_jax.model.gguf.files import Header, read_header
from onestep_jax.model.gguf.layouts import FREQUENCIES, LONG, SHORT, Layout, layout_of

# The value that the mathematics of every layout assumes.
_REQUIRED = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True, "rope.scaling.yarn_ext_factor": 1.0}
# The table of input vectors says how many tokens there are.
_IGNORED = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def gguf_config(path: Path) -> dict[str, Any]:
    """The config.json of the checkpoint that a file was made of, as far as it matters for the forward pass.

    Raises:
      UserError: if the file is damaged, or for an architecture or setting that is not supported.
    """
    header = read_header(path)
    try:
        return _config(header, layout_of(header))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _config(header: Header, layout: Layout) -> dict[str, Any]:
    start, values = header.architecture + ".", header.settings()
    config: dict[str, Any] = {
        "model_type": layout.model_type,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    for key, name in layout.keys.items():
        if key not in values:
            raise UserError(f"the metadata key {start + key} is missing")
        config[name] = values.pop(key)
    _check_layers(header, start + "block_count", config[layout.keys["block_count"]])
    config |= {name: values.pop(key) for key, name in layout.optional.items() if key in values}
    if "token_embd.weight" not in header.tensors:
        raise UserError("the tensor token_embd.weight is missing")
    config["vocab_size"] = header.tensors["token_embd.weight"].shape[0]
    ids = {name: header.special_token(key) for name, key in _TOKENS.items()}
    config |= {name: token for name, token in ids.items() if token is not None}
    if layout.model_type != "gpt2":
        config |= _heads(values, config)
        config |= _rope(header, values, config)
        config |= _windows(header.architecture, values, config)
    if layout.model_type in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if layout.model_type == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    if header.architecture in _LAYERS_OF_27B:
        config["query_pre_attn_scalar"] = _score_scale(header.architecture, values, config)
    _check_rest(start, values)
    return config


def _check_layers(header: Header, key: str, stated: Any) -> None:
    """Refuse another number of layers than the tensors have, before anything of that number is made."""
    numbers = [name.split(".")[1] for name in header.tensors if name.startswith("blk.")]
    layers = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    if stated != layers:
        raise UserError(f"{key} = {stated!r}, but there are tensors of {layers} layers; download it again")


def _check_rest(start: str, values: Mapping[str, Any]) -> None:
    """Refuse settings that nothing above has taken."""
    for key, value in values.items():
        if key in _REQUIRED and value != _REQUIRED[key]:
            raise UserError(f"{start}{key} = {value!r} is not supported; expected {_REQUIRED[key]!r}")
        if key not in _REQUIRED and key not in _IGNORED:
            raise UserError(f"{start}{key} = {value!r}: this metadata key is not supported")


def _count(config: Mapping[str, Any], key: str) -> int:
    return _checked(config[key], key, COUNT)


def _checked(value: Any, key: str, kind: str) -> Any:
    if not KINDS[kind](value):
        raise UserError(f"{key} = {value!r}: expected {kind}")
    return value


def _heads(values: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    head_dim = config.get("head_dim", width // heads)
    if values.pop("attention.value_length", head_dim) != head_dim:
        raise UserError(f"attention.value_length differs from the width of a key, {head_dim}; expected the same")
    return {"head_dim": head_dim, "num_key_value_heads": config.get("num_key_value_heads", heads)}


def _rope(header: Header, values: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of rotary positions: base, the share of a head that turns, and how long contexts are reached."""
    head_dim, context = _count(config, "head_dim"), _count(config, "max_position_embeddings")
    found: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10000.0)}
    turned = _checked(values.pop("rope.dimension_count", head_dim), "rope.dimension_count", COUNT)
    if header.architecture == "phi3":
        found["partial_rotary_factor"] = turned / head_dim
    elif turned != head_dim:
        raise UserError(f"rope.dimension_count = {turned!r} is not supported; expected the width of a head, {head_dim}")
    original = values.pop("rope.scaling.original_context_length", context)
    if header.architecture == "phi3":
        found["original_max_position_embeddings"] = original
    scaling = _stretch(header, values, context, original)
    return found | ({"rope_scaling": scaling} if scaling else {})


def _stretch(header: Header, values: dict[str, Any], context: int, original: int) -> dict[str, Any]:
    """How wavelengths are stretched to reach long contexts; nothing if they are not."""
    factors = [values.pop(key, 0.0) for key in ("rope.scaling.factor", "rope.scale_linear")]
    factor = factors[0] or factors[1] or 1.0
    kind = values.pop("rope.scaling.type", "linear")
    plain = kind == "none" or (kind == "linear" and factor == 1)
    magnitude = values.pop("rope.scaling.attn_factor", None)
    unchanged = magnitude in (None, 1.0)
    yarn = {name: values.pop(f"rope.scaling.yarn_{name}", None) for name in ("beta_fast", "beta_slow")}
    divisors = {
        name: header.tensors[name].read().ravel().tolist()
        for name in (FREQUENCIES, SHORT, LONG)
        if name in header.tensors
    }
    if divisors.keys() == {FREQUENCIES} and plain and unchanged:
        # Llama 3: each frequency is divided by a number of its own, in texts of any length.
        lists = {"short_factor": divisors[FREQUENCIES], "long_factor": divisors[FREQUENCIES]}
        found = {"rope_type": "longrope", "attention_factor": 1.0, "original_max_position_embeddings": context, **lists}
    elif divisors.keys() == {SHORT, LONG}:
        lists = {"short_factor": divisors[SHORT], "long_factor": divisors[LONG]}
        found = {"rope_type": "longrope", "attention_factor": magnitude, **lists}
        found["original_max_position_embeddings"] = original
    elif plain and unchanged and not divisors:
        return {}
    elif kind == "linear" and unchanged and not divisors:
        found = {"rope_type": kind, "factor": factor}
    elif kind == "yarn" and unchanged and not divisors:
        found = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original, **yarn}
    else:
        settings = f"rope.scaling.type = {kind!r}, rope.scaling.attn_factor = {magnitude!r}"
        settings += f", tensors {', '.join(divisors) or 'none'}"
        raise UserError(f"RoPE with {settings} is not supported")
    return {key: value for key, value in found.items() if value is not None}


def _windows(architecture: str, values: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers see only a window; llama.cpp writes 0 for none."""
    layers = _count(config, "num_hidden_layers")
    none = config.get("sliding_window", 0 if architecture == "gemma3" else None) == 0
    found: dict[str, Any] = {"sliding_window": None} if none else {}
    pattern = values.pop("attention.sliding_window_pattern", None) if architecture in _LAYERS_OF_27B else None
    if none and architecture in _LAYERS_OF_27B:
        found["layer_types"] = [FULL] * layers
    elif isinstance(pattern, list):
        found["layer_types"] = [SLIDING if slides else FULL for slides in pattern]
    elif pattern is not None and _checked(pattern, "attention.sliding_window_pattern", COUNT):
        found["layer_types"] = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    return found


def _score_scale(architecture: str, values: dict[str, Any], config: Mapping[str, Any]) -> float:
    """Gemma's divisor of the scores, squared. Files of old leave it out, and only the 27B models have their own.

    It is an int where it can be one: transformers takes no other.
    """
    if (scale := values.pop("attention.scale", None)) is not None:
        squared = _checked(scale, "attention.scale", NUMBER) ** -2
        whole = round(squared)
        # the file's float32 stands for the whole number of the checkpoint that it was made of
        return whole if whole and np.float32(whole**-0.5) == np.float32(scale) else squared
    if config["num_hidden_layers"] == _LAYERS_OF_27B[architecture]:
        squared = config["hidden_size"] / config["num_attention_heads"]
        return int(squared) if squared.is_integer() else squared
    return config["head_dim"]

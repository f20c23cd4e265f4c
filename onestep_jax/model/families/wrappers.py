"""Checkpoints that hold a decoder of ours beside a vision tower: config.json nests the decoder in `text_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from onestep_jax.errors import UserError
from onestep_jax.model.families import oracle
from onestep_jax.model.families.base import IGNORED, REQUIRED

# model_type of the whole → that of its decoder where `text_config` names none. In each of them the decoder sees a text
# without pictures as it would alone. Not so PaliGemma (looks both ways), Qwen2-VL (positions in three parts), Mllama
# (attends to pictures in layers of its own).
WRAPPERS = {
    "gemma3": "gemma3_text",
    "idefics3": "llama",
    "internvl": "qwen2",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "smolvlm": "llama",
    "vipllava": "llama",
}

# Keys of the whole that are its decoder's, too.
_SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "quantization_config")
# Those whose head is the embedding table if either the whole or its decoder says so; in others the whole decides.
_TIED_BY_TEXT = ("llava", "llava_onevision")

# What the names of the decoder's tensors begin with in the files → what they begin with in a file of the decoder alone.
# transformers up to 4.51 wrote the first two, and 5 writes them again; 4.52 to 4.57 wrote the third.
_NAMES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
    "lm_head.": "lm_head.",
}
_MARKS = tuple(begin for begin in _NAMES if begin != "lm_head.")


class Unwrapped(NamedTuple):
    """A decoder taken out of the config.json of a whole.

    Attributes:
      described: config.json of the decoder alone.
      unknown: keys of the whole that transformers does not know.
    """

    described: dict[str, Any]
    unknown: list[str]


def unwrap(config: Mapping[str, Any]) -> Unwrapped:
    """The decoder in the config.json of a whole.

    Raises:
      UserError: if there is no object `text_config`, or a key of the whole would change the decoder.
    """
    model_type = config["model_type"]
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise UserError(f"text_config = {text!r}: expected an object that describes the decoder of {model_type}")
    pictures = oracle.own_keys(model_type) | oracle.config_class(model_type).attribute_map.keys()
    unknown = []
    for key, value in config.items():
        if value is None or key in IGNORED or key in _SHARED or (key in pictures and key not in REQUIRED):
            continue
        if key in REQUIRED and value == REQUIRED[key]:
            continue
        if oracle.knows(model_type, key):
            raise UserError(f"{key} = {value!r} is not supported for {model_type}")
        unknown.append(key)
    described = {"model_type": WRAPPERS[model_type], **text}
    described |= {key: config[key] for key in _SHARED if config.get(key) is not None}
    described["tie_word_embeddings"] = _tied(config, described)
    if model_type == "gemma3":
        described["final_logit_softcapping"] = None  # the whole does not apply it
    return Unwrapped(described=described, unknown=unknown)


def _tied(config: Mapping[str, Any], text: Mapping[str, Any]) -> Any:
    """Whether the head is the embedding table."""
    tied = config.get("tie_word_embeddings")
    tied = oracle.default(config["model_type"], "tie_word_embeddings") if tied is None else tied
    if tied is False and config["model_type"] in _TIED_BY_TEXT:
        told = text.get("tie_word_embeddings")
        return oracle.default(text["model_type"], "tie_word_embeddings") if told is None else told
    return tied


def decoder_name(name: str) -> str | None:
    """A tensor's name in a file of the decoder alone; None for a tensor of another part."""
    return next((alone + name.removeprefix(begin) for begin, alone in _NAMES.items() if name.startswith(begin)), None)


def is_wrapped(name: str) -> bool:
    """Whether a tensor's name says that its decoder is part of a whole."""
    return name.startswith(_MARKS)

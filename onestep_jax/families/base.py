"""What a family is, and the checks that every family shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from onestep_jax.config import ModelConfig, UserError, nearest


class Weight(NamedTuple):
    """One row of a weight table.

    Attributes:
      path: place in our params, keys joined by "/".
      name: tensor name in the checkpoint.
      transposed: the checkpoint keeps the transposed matrix (torch's Linear is (out, in), ours is (in, out)).
    """

    path: str
    name: str
    transposed: bool = False


class Family(NamedTuple):
    """One architecture.

    Attributes:
      model_type: the value of config.json's `model_type`.
      handled: key that `read` looks at → the kind of its value (a key of `KINDS`), null aside.
      required: key → the only value whose mathematics is implemented.
      read: config.json → ModelConfig.
      weights: ModelConfig → weight table, one row for each of our params.
      ignorable: checkpoint tensor without a row → None if it must not be there, "" if it carries nothing (a buffer), or
        the name of the tensor that it must be a copy of (a tied head).
    """

    model_type: str
    handled: Mapping[str, str]
    required: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], ModelConfig]
    weights: Callable[[ModelConfig], list[Weight]]
    ignorable: Callable[[ModelConfig, str], str | None]


# Keys of every transformers config that say nothing about the forward pass at inference.
IGNORED = frozenset(
    """architectures attention_dropout auto_map bos_token_id dtype eos_token_id id2label initializer_range label2id
    model_type name_or_path _name_or_path output_attentions output_hidden_states pad_token_id pretraining_tp
    problem_type return_dict task_specific_params tokenizer_class torch_dtype torchscript transformers_version
    use_cache _attn_implementation attn_implementation chunk_size_feed_forward is_llama_config max_sequence_length
    transformers.js_config _attn_implementation_autoset use_bfloat16""".split()
)

# Kinds of value, in the words of the message that asks for one.
COUNT, NUMBER, FLAG, OBJECT = "a positive integer", "a positive finite number", "true or false", "an object"
KINDS: dict[str, Callable[[Any], bool]] = {
    COUNT: lambda value: type(value) is int and value > 0,
    NUMBER: lambda value: type(value) in (int, float) and 0 < value < math.inf,
    FLAG: lambda value: type(value) is bool,
    OBJECT: lambda value: isinstance(value, Mapping),
}

# Keys of every transformers config that would change it.
REQUIRED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}


def check_keys(family: Family, config: Mapping[str, Any]) -> None:
    """Refuse a config.json with a setting whose mathematics is not implemented.

    Raises:
      UserError: naming the key, its value and the value that would be accepted.
    """
    if config.get("quantization_config") is not None:
        raise UserError("quantised checkpoints are not supported; use the unquantised weights")
    required = REQUIRED | dict(family.required)
    for key, value in config.items():
        if key in required and value is not None and value != required[key]:
            raise UserError(f"{key} = {value!r} is not supported for {family.model_type}; expected {required[key]!r}")
        kind = family.handled.get(key)
        if kind is not None and value is not None and not KINDS[kind](value):
            raise UserError(f"{key} = {value!r}: expected {kind}")
        known = kind is not None or key in IGNORED or key in required
        if not known and value is not None:
            hint = nearest(key, family.handled.keys() | required.keys())
            raise UserError(f"unknown key {key!r} = {value!r}{hint}; {family.model_type} does not handle it")


def need(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key that every checkpoint of the family must have.

    Raises:
      UserError: if it is absent.
    """
    if config.get(key) is None:
        raise UserError(f"the key {key!r} is missing")
    return config[key]

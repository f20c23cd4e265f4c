"""What a family is, and the checks that every family shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from onestep_jax.errors import UserError
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import oracle


class Part(NamedTuple):
    """Some output features of a fused projection: of every `of` consecutive ones, `size` from `first` on."""

    first: int
    size: int
    of: int


class Weight(NamedTuple):
    """One row of a weight table.

    Attributes:
      path: place in our params, keys joined by "/".
      name: tensor name in the checkpoint.
      part: the features of a fused tensor that belong here; None for all.
      transposed: the checkpoint keeps the matrix as (in, out) (GPT-2's Conv1D; torch's Linear and ours are (out, in)).
    """

    path: str
    name: str
    part: Part | None = None
    transposed: bool = False


ROTARY_BUFFERS = tuple(f".rotary_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached"))


class Family(NamedTuple):
    """One architecture.

    Attributes:
      model_type: the value of config.json's `model_type`.
      handled: key that `read` looks at → the kind of its value (a key of `KINDS`), null aside.
      required: key → the only value whose mathematics is implemented.
      ignored: keys of this architecture that say nothing about the forward pass at inference.
      read: config.json → ModelConfig.
      weights: ModelConfig → weight table, one row for each of our params.
      prefix: what the names begin with; a checkpoint of the bare decoder leaves it out.
      head: name of the output head, which a tied checkpoint may hold as a copy of the embedding table.
      buffers: ends of the names of tensors that carry nothing.
      unread: config.json → names of rotary settings that transformers does not read; None for `rope.unread` of those in
        `rope_parameters` and `rope_scaling`.
    """

    model_type: str
    handled: Mapping[str, str]
    read: Callable[[Mapping[str, Any]], ModelConfig]
    weights: Callable[[ModelConfig], list[Weight]]
    required: Mapping[str, Any] = {}
    ignored: Iterable[str] = ()
    prefix: str = "model."
    head: str = "lm_head.weight"
    buffers: tuple[str, ...] = ROTARY_BUFFERS
    unread: Callable[[Mapping[str, Any]], list[str]] | None = None


# Keys of every transformers config that say nothing about the forward pass at inference.
IGNORED = frozenset(
    """architectures attention_dropout auto_map bos_token_id dtype eos_token_id id2label initializer_range label2id
    model_type name_or_path _name_or_path output_attentions output_hidden_states pad_token_id pretraining_tp
    problem_type return_dict task_specific_params tokenizer_class torch_dtype torchscript transformers_version
    use_cache _attn_implementation attn_implementation chunk_size_feed_forward is_llama_config max_sequence_length
    transformers.js_config _attn_implementation_autoset use_bfloat16 cache_implementation gradient_checkpointing
    classifier_dropout num_labels _num_labels finetuning_task tf_legacy_loss prefix sep_token_id _commit_hash
    _pad_token_id""".split()
)
# Settings of `generate`, which transformers 4 kept in every config and transformers 5 drops from it.
IGNORED |= frozenset(
    """bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    temperature top_k top_p typical_p""".split()
)

LARGEST = 3e38  # of a number: float32 holds no more
MOST_LAYERS = 1024  # more are a mistake, and describing a billion of them would take for ever

# Kinds of value, in the words of the message that asks for one.
COUNT, NUMBER = "a positive integer below 2^31", "a positive finite number"
LAYERS = f"a positive integer, at most {MOST_LAYERS}"
FLAG, OBJECT = "true or false", "an object"
LIST, WORD, INDEX = "a list", "a name", "an integer from 0 to below 2^31"
KINDS: dict[str, Callable[[Any], bool]] = {
    COUNT: lambda value: type(value) is int and 0 < value < 2**31,
    LAYERS: lambda value: type(value) is int and 0 < value <= MOST_LAYERS,
    NUMBER: lambda value: type(value) in (int, float) and 0 < value < LARGEST,
    FLAG: lambda value: type(value) is bool,
    OBJECT: lambda value: isinstance(value, Mapping),
    LIST: lambda value: isinstance(value, list),
    INDEX: lambda value: type(value) is int and 0 <= value < 2**31,
    WORD: lambda value: isinstance(value, str),
}

# Keys of every transformers config that would change it.
REQUIRED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}

# transformers' names of activations → ours.
ACTIVATIONS = {
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    "relu": "relu",
}


def check_keys(family: Family, config: Mapping[str, Any]) -> list[str]:
    """Refuse a config.json with a setting whose mathematics is not implemented.

    Returns:
      The keys that neither the family nor transformers knows: they cannot change what transformers computes.

    Raises:
      UserError: naming the key, its value and the value that would be accepted.
    """
    if config.get("quantization_config") is not None:
        raise UserError("quantised checkpoints are not supported; use the unquantised weights")
    required = REQUIRED | dict(family.required)
    ignored = IGNORED | set(family.ignored)
    unknown = []
    for key, value in config.items():
        if key in required and value is not None and value != required[key]:
            raise UserError(f"{key} = {value!r} is not supported for {family.model_type}; expected {required[key]!r}")
        kind = family.handled.get(key)
        if kind is not None and value is not None and not KINDS[kind](value):
            raise UserError(f"{key} = {value!r}: expected {kind}")
        if kind is not None or key in ignored or key in required or value is None:
            continue
        if oracle.knows(family.model_type, key):
            reason = f"transformers knows it for {family.model_type}, and it is not implemented here"
            raise UserError(f"{key} = {value!r} is not supported: {reason}")
        unknown.append(key)
    return unknown


def keys(**kinds: str) -> dict[str, str]:
    """Handled keys from kind = "key key …", the kind by its lower-case name."""
    named = {"counts": COUNT, "layers": LAYERS, "indices": INDEX, "numbers": NUMBER}
    named |= {"flags": FLAG, "lists": LIST, "words": WORD}
    return {key: named[kind] for kind, names in kinds.items() for key in names.split()}


def need(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key that may not be null; where it is absent, transformers' default for the architecture.

    Raises:
      UserError: if it is null, or absent and without a default.
    """
    if key in config:
        value = config[key]
    else:
        value = None if key == "model_type" else oracle.default(need(config, "model_type"), key)
    if value is None:
        raise UserError(f"the key {key!r} is {'null' if key in config else 'missing'}")
    return value


def given(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a key, or what transformers takes where it is absent or null."""
    value = config.get(key)
    return default if value is None else value


def activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """Our name of the activation that a key asks for.

    Raises:
      UserError: for one that is not implemented.
    """
    name = given(config, key, default)
    if name not in ACTIVATIONS:
        raise UserError(f"{key} = {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def head_sizes(
    config: Mapping[str, Any], heads: str, width: str, kv_heads: int | None = None, head_dim: int | None = None
) -> dict[str, Any]:
    """The fields heads, kv_heads and head_dim, from the keys of the query heads and of the residual width.

    Raises:
      UserError: if they do not divide one another.
    """
    count, residual = need(config, heads), need(config, width)
    if head_dim is None and residual % count:
        cure = ", or a head_dim" if heads == "num_attention_heads" else ""
        raise UserError(f"{heads} = {count}: expected a divisor of {width} = {residual}{cure}")
    kv_heads = kv_heads or count
    if count % kv_heads:
        raise UserError(f"{heads} = {count}: expected a multiple of num_key_value_heads = {kv_heads}")
    return {"heads": count, "kv_heads": kv_heads, "head_dim": head_dim or residual // count}


def linear(path: str, name: str, bias: bool, part: Part | None = None, transposed: bool = False) -> list[Weight]:
    """The rows of a projection: its kernel, and its bias if it has one."""
    rows = [Weight(f"{path}/kernel", f"{name}.weight", part, transposed)]
    return [*rows, Weight(f"{path}/bias", f"{name}.bias", part)] if bias else rows


def norm(path: str, name: str, config: ModelConfig) -> list[Weight]:
    """The rows of a norm of the config's kind: scale and bias, as far as it has them."""
    leaves = {"rms": ("scale",), "rms_plus_one": ("scale",), "layer": ("scale", "bias"), "layer_plain": ()}
    stored = {"scale": "weight", "bias": "bias"}
    return [Weight(f"{path}/{leaf}", f"{name}.{stored[leaf]}") for leaf in leaves[config.norm]]

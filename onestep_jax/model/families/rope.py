"""Rotary settings of a config.json, in the spelling of transformers 5 and in the older one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.config import Rope
from onestep_jax.model.families.base import COUNT, FLAG, KINDS, LIST, NUMBER, OBJECT, WORD, need
from onestep_jax.model.rotary import rotated_channels

_ORIGINAL = {"original_max_position_embeddings": COUNT}
KEYS = {"rope_parameters": OBJECT, "rope_scaling": OBJECT, "rope_theta": NUMBER, **_ORIGINAL}
OBJECTS = ("rope_parameters", "rope_scaling")

# What each type needs beside the base, and what it may have.
_NEEDED: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": NUMBER},
    "dynamic": {"factor": NUMBER},
    "llama3": {"factor": NUMBER, "low_freq_factor": NUMBER, "high_freq_factor": NUMBER},
    "yarn": {"factor": NUMBER},
    "longrope": {"short_factor": LIST, "long_factor": LIST},
}
_OPTIONAL: dict[str, dict[str, str]] = {
    "llama3": _ORIGINAL,
    "yarn": {
        **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), NUMBER),
        "truncate": FLAG,
        **_ORIGINAL,
    },
    "longrope": {"factor": NUMBER, "attention_factor": NUMBER, **_ORIGINAL},
}
_NO_ZERO = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # where 0 means what absence means


def rope_settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rotary settings of a config.json by the key that holds them.

    A context before stretching that stands outside goes before one inside, as in transformers.
    """
    outside = {key: config[key] for key in _ORIGINAL if config.get(key) is not None}
    settings = {key: dict(config[key]) for key in OBJECTS if config.get(key)}
    return {key: given | outside if _type(given) in _STRETCHED else given for key, given in settings.items()}


def unread(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names, with their places, of arguments that transformers does not read for the type of RoPE that is asked for."""
    found = []
    for place, given in settings.items():
        kind = _type(given)
        read = _arguments(kind).keys() if isinstance(kind, str) and kind in _NEEDED else given.keys()
        found += [f"{place}.{key}" for key, value in given.items() if value is not None and key not in read]
    return found


def _type(given: Mapping[str, Any]) -> Any:
    kind = given.get("rope_type")
    return given.get("type", "default") if kind is None else kind


def _arguments(kind: str) -> dict[str, str]:
    """Every argument of a type of RoPE, with its kind of value."""
    common = {"type": WORD, "rope_type": WORD, "rope_theta": NUMBER, "partial_rotary_factor": NUMBER}
    return common | _NEEDED[kind] | _OPTIONAL.get(kind, {})


def read_rope(config: Mapping[str, Any], head_dim: int, theta: float = 10000.0, fraction: float | None = None) -> Rope:
    """The rotary embedding of a config.json.

    transformers 5 writes `rope_parameters: {rope_type, rope_theta, …}`; older checkpoints have `rope_theta` at the top
    and `rope_scaling: {rope_type or type, …}` or null.

    Args:
      config: the whole config.json.
      head_dim: width of a head.
      theta: base where the config names none.
      fraction: share of a head's channels that turns where the config names none; None for a family whose heads turn
        as a whole.

    Raises:
      UserError: for a type that is not implemented, a missing or wrong argument of one that is, or two spellings that
        do not mean the same.
    """
    base = {"rope_theta": config.get("rope_theta") or theta}
    spellings = rope_settings(config)
    context = need(config, "max_position_embeddings")
    if not spellings:
        return parse_rope("RoPE", base, context, head_dim, fraction)
    meant = {parse_rope(key, base | given, context, head_dim, fraction) for key, given in spellings.items()}
    if len(meant) > 1:
        both = " and ".join(f"{key} = {given!r}" for key, given in spellings.items())
        raise UserError(f"{both} disagree; keep the right one")
    return meant.pop()


def parse_rope(spelling: str, given: Mapping[str, Any], context: int, head_dim: int, fraction: float | None) -> Rope:
    """One object of rotary settings; `unread` names the arguments that have no effect.

    Args:
      spelling: the key that holds it, for messages.
      given: type, base and arguments.
      context: the model's longest input, in positions.
      head_dim, fraction: see `read_rope`.

    Raises:
      UserError: see `read_rope`.
    """
    given = {key: value for key, value in given.items() if value is not None and (value != 0 or key not in _NO_ZERO)}
    _refuse_nested(spelling, given)
    kind = _type(given)
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise UserError(f"{spelling}: RoPE type {kind!r} is not supported; supported: {', '.join(_NEEDED)}")
    for key, expected in _arguments(kind).items():
        if key in given and not KINDS[expected](given[key]):
            raise UserError(f"{spelling}: {key} = {given[key]!r}: expected {expected}")
    missing = sorted(_NEEDED[kind].keys() - given.keys())
    if missing:
        raise UserError(f"{spelling}: RoPE type {kind!r} lacks {', '.join(missing)}")
    share = given.get("partial_rotary_factor", 1.0 if fraction is None else fraction)
    if fraction is None and share != 1.0:
        raise UserError(f"{spelling}: partial_rotary_factor = {share} is not supported here; expected 1.0")
    # "dynamic" stretches wavelengths only for inputs longer than the context, which are refused everywhere.
    ours = "default" if kind == "dynamic" else kind
    rope = Rope(theta=float(given["rope_theta"]), kind=ours, fraction=float(share), **_ARGUMENTS[ours](given, context))
    _check(spelling, rope, head_dim)
    return rope


def _refuse_nested(spelling: str, given: Mapping[str, Any]) -> None:
    """Settings for each kind of layer belong to Gemma 3; transformers fails on them elsewhere."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            raise UserError(f"{spelling}: {key} = {value!r}: settings for one kind of layer are not supported here")


def _llama3(given: Mapping[str, Any], context: int) -> dict[str, Any]:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    original = given.get("original_max_position_embeddings", context)
    return {name: float(given[name]) for name in names} | {"original_context": original}


def _yarn(given: Mapping[str, Any], context: int) -> dict[str, Any]:
    factor, magnitude = given["factor"], given.get("attention_factor")

    def stretch(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if magnitude is None and "mscale" in given and "mscale_all_dim" in given:
        magnitude = stretch(given["mscale"]) / stretch(given["mscale_all_dim"])
    return {
        "factor": float(factor),
        "magnitude": stretch(1.0) if magnitude is None else float(magnitude),
        "high_freq_factor": float(given.get("beta_fast", 32)),
        "low_freq_factor": float(given.get("beta_slow", 1)),
        "original_context": given.get("original_max_position_embeddings", context),
        "truncate": given.get("truncate", True),
    }


def _longrope(given: Mapping[str, Any], context: int) -> dict[str, Any]:
    original = given.get("original_max_position_embeddings", context)
    factor, magnitude = given.get("factor", context / original), given.get("attention_factor")
    if magnitude is None and factor > 1:
        if original == 1:  # its logarithm divides
            cure = "expected at least 2, or an attention_factor"
            raise UserError(f"RoPE type 'longrope': original_max_position_embeddings = 1: {cure}")
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
    lists = {ours: tuple(given[theirs]) for ours, theirs in _LONGROPE_LISTS.items()}
    return {"magnitude": 1.0 if magnitude is None else float(magnitude), "original_context": original, **lists}


_LONGROPE_LISTS = {"short_factors": "short_factor", "long_factors": "long_factor"}
_STRETCHED = ("llama3", "yarn", "longrope")  # whose arguments have the context before stretching
_ARGUMENTS: dict[str, Any] = {
    "default": lambda given, context: {},
    "linear": lambda given, context: {"factor": float(given["factor"])},
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _check(spelling: str, rope: Rope, head_dim: int) -> None:
    channels = rotated_channels(rope, head_dim)
    if channels % 2 or not 0 < channels <= head_dim:
        reason = f"{channels} of the {head_dim} channels of a head turn (partial_rotary_factor {rope.fraction})"
        raise UserError(f"{spelling}: {reason}; expected an even number of them, head_dim = {head_dim} at most")
    if rope.kind == "yarn" and rope.theta == 1:
        raise UserError(f"{spelling}: rope_theta = 1: RoPE type 'yarn' divides by its logarithm; expected another base")
    if rope.kind in ("llama3", "yarn") and rope.high_freq_factor <= rope.low_freq_factor:
        ends = "beta_fast above beta_slow" if rope.kind == "yarn" else "high_freq_factor above low_freq_factor"
        got = f"{rope.high_freq_factor} and {rope.low_freq_factor}"
        raise UserError(f"{spelling}: expected {ends}, got {got}")
    for ours, theirs in _LONGROPE_LISTS.items() if rope.kind == "longrope" else ():
        values = getattr(rope, ours)
        if len(values) != channels // 2 or not all(KINDS[NUMBER](value) for value in values):
            expected = f"{channels // 2} positive numbers, one for each pair of channels"
            raise UserError(f"{spelling}: {theirs} = {list(values)!r}: expected {expected}")

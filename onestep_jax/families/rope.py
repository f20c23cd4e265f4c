"""Rotary settings of a config.json, in the spelling of transformers 5 and in the older one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.config import Rope, UserError, nearest
from onestep_jax.families.base import COUNT, KINDS, NUMBER, OBJECT

KEYS = {"rope_parameters": OBJECT, "rope_scaling": OBJECT, "rope_theta": NUMBER}

# What each type needs beside the base.
_ARGUMENTS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": NUMBER},
    "llama3": {
        "factor": NUMBER,
        "low_freq_factor": NUMBER,
        "high_freq_factor": NUMBER,
        "original_max_position_embeddings": COUNT,
    },
}


def read_rope(config: Mapping[str, Any], default_theta: float = 10000.0) -> Rope:
    """The rotary embedding of a config.json.

    transformers 5 writes `rope_parameters: {rope_type, rope_theta, …}`; older checkpoints have `rope_theta` at the top
    and `rope_scaling: {rope_type or type, …}` or null.

    Raises:
      UserError: for a type that is not implemented, a missing, unknown or wrong argument of one that is, or two
        spellings that do not mean the same.
    """
    theta = config.get("rope_theta") or default_theta
    spellings = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)}
    meant = {_read_spelling(key, given, theta) for key, given in spellings.items()}
    if len(meant) > 1:
        both = " and ".join(f"{key} = {given!r}" for key, given in spellings.items())
        raise UserError(f"{both} disagree; keep the right one")
    return meant.pop() if meant else Rope(theta=float(theta))


def _read_spelling(spelling: str, given: Mapping[str, Any], theta: float) -> Rope:
    given = {key: value for key, value in given.items() if value is not None}
    old, kind = given.pop("type", "default"), given.pop("rope_type", None)
    kind = kind or old
    if not isinstance(kind, str) or kind not in _ARGUMENTS:
        raise UserError(f"{spelling}: RoPE type {kind!r} is not supported; supported: {', '.join(_ARGUMENTS)}")
    if given.get("partial_rotary_factor") == 1.0:
        given.pop("partial_rotary_factor")
    if kind == "default":
        given.pop("factor", None)
    kinds = {"rope_theta": NUMBER} | _ARGUMENTS[kind]
    for key, value in given.items():
        if key not in kinds:
            hint, expected = nearest(key, kinds), ", ".join(sorted(kinds))
            raise UserError(f"{spelling}: unknown argument {key!r}{hint} of RoPE type {kind!r}; expected {expected}")
        if not KINDS[kinds[key]](value):
            raise UserError(f"{spelling}: {key} = {value!r}: expected {kinds[key]}")
    missing = sorted(_ARGUMENTS[kind].keys() - given.keys())
    if missing:
        raise UserError(f"{spelling}: RoPE type {kind!r} lacks {', '.join(missing)}")
    original = given.pop("original_max_position_embeddings", 0)
    rope = Rope(theta=float(given.pop("rope_theta", theta)), kind=kind, original_context=original, **given)
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise UserError(f"{spelling}: high_freq_factor = {rope.high_freq_factor}: expected more than low_freq_factor")
    return rope

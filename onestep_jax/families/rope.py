"""Rotary settings of a config.json, in the spelling of transformers 5 and in the older one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.config import Rope, UserError, nearest
from onestep_jax.families.base import KINDS

KEYS = {"rope_parameters": "object", "rope_scaling": "object", "rope_theta": "number"}

# What each kind needs beside the base.
_ARGUMENTS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
}


def read_rope(config: Mapping[str, Any], default_theta: float = 10000.0) -> Rope:
    """The rotary embedding of a config.json.

    transformers 5 writes `rope_parameters: {rope_type, rope_theta, …}`; older checkpoints have `rope_theta` at the top
    and `rope_scaling: {rope_type or type, …}` or null.

    Raises:
      UserError: for a kind that is not implemented, or a missing or unknown argument of one that is.
    """
    new, old_style = config.get("rope_parameters"), config.get("rope_scaling")
    if new and old_style and new != old_style:
        raise UserError(f"rope_parameters = {new!r} and rope_scaling = {old_style!r} disagree; keep the right one")
    spelling = "rope_parameters" if new else "rope_scaling"
    given = dict(new or old_style or {})
    theta = given.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    old, kind = given.pop("type", None), given.pop("rope_type", None)
    kind = kind or old or "default"
    if not isinstance(kind, str) or kind not in _ARGUMENTS:
        raise UserError(f"{spelling}: RoPE type {kind!r} is not supported; supported: {', '.join(_ARGUMENTS)}")
    if given.get("partial_rotary_factor") == 1.0:
        given.pop("partial_rotary_factor")
    given = {key: value for key, value in given.items() if value is not None}
    if kind == "default":
        given.pop("factor", None)
    for key, value in ({"rope_theta": theta} | given).items():
        if not KINDS["number"](value):
            raise UserError(f"{spelling}: {key} = {value!r}: expected a number")
        if key != "rope_theta" and key not in _ARGUMENTS[kind]:
            expected = ", ".join(sorted(_ARGUMENTS[kind])) or "none but rope_theta"
            hint = nearest(key, _ARGUMENTS[kind])
            raise UserError(f"{spelling}: unknown argument {key!r}{hint} of RoPE type {kind!r}; expected {expected}")
    missing = sorted(_ARGUMENTS[kind] - given.keys())
    if missing:
        raise UserError(f"{spelling}: RoPE type {kind!r} lacks {', '.join(missing)}")
    original = given.pop("original_max_position_embeddings", 0)
    return Rope(theta=float(theta), kind=kind, original_context=original, **given)

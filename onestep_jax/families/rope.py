"""Rotary settings of a config.json, in the spelling of transformers 5 and in the older one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.config import Rope, UserError, check_known

KEYS = frozenset({"rope_parameters", "rope_scaling", "rope_theta"})

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
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = given.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    old, kind = given.pop("type", None), given.pop("rope_type", None)
    kind = kind or old or "default"
    if kind not in _ARGUMENTS:
        raise UserError(f"config.json: RoPE type {kind!r} is not supported; supported: {', '.join(_ARGUMENTS)}")
    if given.get("partial_rotary_factor") == 1.0:
        given.pop("partial_rotary_factor")
    given = {key: value for key, value in given.items() if value is not None}
    if kind == "default":
        given.pop("factor", None)
    check_known(f"argument of RoPE type {kind!r}", given, _ARGUMENTS[kind])
    missing = sorted(_ARGUMENTS[kind] - given.keys())
    if missing:
        raise UserError(f"config.json: RoPE type {kind!r} lacks {', '.join(missing)}")
    original = given.pop("original_max_position_embeddings", 0)
    return Rope(theta=float(theta), kind=kind, original_context=original, **given)

"""Gemma 3, text only: Gemma 2 with normed queries and keys, and rotary positions of their own where a window slides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.config import ModelConfig, Rope
from onestep_jax.model.families import gemma2, llama, rope, windows
from onestep_jax.model.families.base import Family, given, keys, need

THETAS = {windows.FULL: 1_000_000.0, windows.SLIDING: 10_000.0}
OLD_THETAS = {windows.FULL: "rope_theta", windows.SLIDING: "rope_local_base_freq"}


def rope_settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rotary settings of either kind of layer, as transformers reads them.

    `rope_parameters` nests them by the kind of layer. The older `rope_scaling` changes those of layers that see all.

    Raises:
      UserError: if the settings of a kind of layer are no object.
    """
    outer, scaling = given(config, "rope_parameters", {}), given(config, "rope_scaling", {})
    for kind in THETAS:
        if not isinstance(outer.get(kind), Mapping | None):
            raise UserError(f"rope_parameters: {kind} = {outer[kind]!r}: expected an object of rotary settings")
    settings = {kind: {"rope_theta": given(config, OLD_THETAS[kind], theta)} for kind, theta in THETAS.items()}
    settings = {kind: base | dict(outer.get(kind) or {}) for kind, base in settings.items()}
    if not outer:
        settings[windows.FULL]["rope_type"] = "default"  # which goes before a `type` in rope_scaling
    settings[windows.FULL] |= {key: value for key, value in scaling.items() if not isinstance(value, Mapping)}
    return settings


def unread(config: Mapping[str, Any]) -> list[str]:
    """Rotary settings that transformers does not read: of other kinds of layer, or nested in `rope_scaling`."""
    beside = [f"rope_parameters.{key}" for key in given(config, "rope_parameters", {}) if key not in THETAS]
    scaling = given(config, "rope_scaling", {}).items()
    nested = [f"rope_scaling.{key}" for key, value in scaling if isinstance(value, Mapping)]
    return beside + nested + rope.unread(rope_settings(config))


def read_ropes(config: Mapping[str, Any]) -> dict[str, Rope]:
    """Rotary positions of either kind of layer.

    Raises:
      UserError: as `parse_rope` and `rope_settings`.
    """
    head_dim, context = given(config, "head_dim", 256), need(config, "max_position_embeddings")
    settings = rope_settings(config)
    return {kind: rope.parse_rope(kind, settings[kind], context, head_dim, None) for kind in THETAS}


def read(config: Mapping[str, Any]) -> ModelConfig:
    period = given(config, "sliding_window_pattern", 6)
    arguments = gemma2.common(config, lambda i: (i + 1) % period != 0)
    ropes = read_ropes(config)
    arguments |= {"rope": ropes[windows.FULL], "local_rope": ropes[windows.SLIDING], "qk_norm": "head"}
    logit_cap = config.get("final_logit_softcapping")
    return llama.read_like_llama(config, "gemma3_text", logit_cap=logit_cap, **arguments)


HANDLED = {
    **{key: kind for key, kind in gemma2.HANDLED.items() if key != "attn_logit_softcapping"},
    **keys(counts="sliding_window_pattern", numbers="rope_local_base_freq"),
}
# transformers 5 keeps `attn_logit_softcapping` in the config and does not apply it.
REQUIRED = {**gemma2.FAMILY.required, "attn_logit_softcapping": None}
# Files with `_sliding_window_pattern` have `layer_types`, which transformers reads instead.
IGNORED = ["hidden_act", "_sliding_window_pattern"]
FAMILY = Family("gemma3_text", HANDLED, read, gemma2.weights, REQUIRED, IGNORED, unread=unread)

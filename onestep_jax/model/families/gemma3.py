"""Gemma 3, text only: Gemma 2 with normed queries and keys, and rotary positions of their own where a window slides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.config import ModelConfig, Rope
from onestep_jax.model.families import gemma2, llama, rope, windows
from onestep_jax.model.families.base import Family, given, keys

THETAS = {windows.FULL: 1_000_000.0, windows.SLIDING: 10_000.0}


def read_ropes(config: Mapping[str, Any]) -> dict[str, Rope]:
    """Rotary positions of either kind of layer: nested in `rope_parameters`, or in the older keys.

    Raises:
      UserError: as `read_rope`, and for anything in `rope_parameters` but the settings of the two kinds.
    """
    nested, head_dim = given(config, "rope_parameters", {}), given(config, "head_dim", 256)
    for kind, settings in nested.items():
        if kind not in THETAS or not isinstance(settings, Mapping | None):
            expected = f"objects of rotary settings under {' and '.join(THETAS)}"
            raise UserError(f"rope_parameters: {kind} = {settings!r}: expected {expected}")
    old = {
        windows.FULL: {"rope_theta": config.get("rope_theta"), "rope_scaling": config.get("rope_scaling")},
        windows.SLIDING: {"rope_theta": config.get("rope_local_base_freq"), "rope_scaling": None},
    }
    return {
        kind: rope.read_rope({**config, **old[kind], "rope_parameters": nested.get(kind)}, head_dim, theta)
        for kind, theta in THETAS.items()
    }


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
FAMILY = Family("gemma3_text", HANDLED, read, gemma2.weights, REQUIRED, IGNORED)

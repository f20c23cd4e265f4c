"""Which blocks of a decoder see only a window of the positions before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onestep_jax.errors import UserError
from onestep_jax.model.families.base import LIST, need

KEYS = {"layer_types": LIST}
SLIDING, FULL = "sliding_attention", "full_attention"


def layer_windows(config: Mapping[str, Any], window: int | None, default: Callable[[int], bool]) -> list[int | None]:
    """The window of each block: `window` where `layer_types`, or `default` in its absence, says that it slides.

    Raises:
      UserError: for a kind of layer that is not implemented, a list of another length than the decoder, or layers that
        slide without a window.
    """
    layers, kinds = need(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        kinds = [SLIDING if default(i) else FULL for i in range(layers)]
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise UserError(f"layer_types: {kind!r} is not supported; supported: {FULL}, {SLIDING}")
    if len(kinds) != layers:
        raise UserError(f"layer_types: {len(kinds)} entries; expected one for each of {layers} layers")
    if window is None and SLIDING in kinds:
        raise UserError(f"sliding_window: {SLIDING} layers (layer_types) have no window; set it, or make them {FULL}")
    return [window if kind == SLIDING else None for kind in kinds]

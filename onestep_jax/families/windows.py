"""Which blocks of a decoder see only a window of the positions before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onestep_jax.config import UserError
from onestep_jax.families.base import LIST, need

KEYS = {"layer_types": LIST}
SLIDING, FULL = "sliding_attention", "full_attention"


def sliding_layers(config: Mapping[str, Any], default: Callable[[int], bool]) -> list[bool]:
    """Whether block i is a sliding one: as `layer_types` says, or by `default` if it is absent.

    Raises:
      UserError: for a kind of layer that is not implemented, or a list of another length than the decoder.
    """
    layers, kinds = need(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        return [default(i) for i in range(layers)]
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise UserError(f"layer_types: {kind!r} is not supported; supported: {FULL}, {SLIDING}")
    if len(kinds) != layers:
        raise UserError(f"layer_types: {len(kinds)} entries; expected one for each of {layers} layers")
    return [kind == SLIDING for kind in kinds]

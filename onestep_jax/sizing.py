"""How many groups to optimise at a time, and whether activations are kept, by what the devices hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.config import UserError
from onestep_jax.footprint import fitting_slots
from onestep_jax.model import Model
from onestep_jax.optimizers import Preset
from onestep_jax.placement import Pmap
from onestep_jax.schemes import Scheme

# Tokens at a time beyond which a device gets no faster (measured on a CPU, where a text-step of 32 tokens costs as much
# with 8 slots as with 32; a guess elsewhere), and the share of an accelerator's memory that a fit may fill.
CPU_TOKENS = 1024
ACCELERATOR_TOKENS = 2**16
MEMORY_SHARE = 0.85


class Sizing(NamedTuple):
    """What a fit runs with.

    Attributes:
      slots: groups at a time over all devices.
      remat: see `Network.remat`.
    """

    slots: int
    remat: bool


def size_fit(
    model: Model,
    tokens: Sequence[np.ndarray],
    scheme: Scheme,
    placement: Pmap,
    preset: Preset,
    *,
    slots: int | str = "auto",
    remat: bool | str = "auto",
) -> Sizing:
    """As given; what is "auto" fills the devices without running out of their memory.

    Activations are computed again, which takes half as much work again, only where not even one slot fits with them.
    On an accelerator an automatic number of slots costs two small compilations, from which XLA says the memory.

    Raises:
      UserError: for a number of slots below one, or another word than "auto".
    """
    if not isinstance(remat, bool) and remat != "auto":
        raise UserError(f"remat = {remat!r}: expected True, False or 'auto'")
    if isinstance(slots, int):
        if slots < 1:
            raise UserError(f"slots = {slots}: expected at least 1, or 'auto'")
        return Sizing(slots, remat is True)
    if slots != "auto":
        raise UserError(f"slots = {slots!r}: expected a number or 'auto'")
    device, positions = placement.devices[0], max(len(ids) for ids in tokens) + scheme.extra
    if device.platform == "cpu":
        count = max(4, CPU_TOKENS // (positions * scheme.group))
        return Sizing(_power_of_two(min(32, count)) * len(placement.devices), remat is True)
    limit = MEMORY_SHARE * (device.memory_stats() or {}).get("bytes_limit", 2**34)
    shape: dict[str, Any] = {"length": positions, "preset": preset, "scheme": scheme}

    def fitting(again: bool) -> int:
        return fitting_slots(dataclasses.replace(model.network, remat=again), model.dtype, limit, **shape)

    again = remat is True
    most = fitting(again)
    if remat == "auto" and most == 0:
        again, most = True, fitting(True)
    enough = max(1, ACCELERATOR_TOKENS // (positions * scheme.group))
    return Sizing(_power_of_two(max(1, min(most, enough))) * len(placement.devices), again)


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)

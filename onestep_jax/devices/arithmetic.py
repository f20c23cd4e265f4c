"""JAX's global switches: those that change numbers are pinned while this package computes, or recorded.

A notebook may turn on 64-bit numbers or another generator of random numbers for its own work. The vectors of a run must
not depend on it: a text starts at the same vectors in every session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

# Each is JAX's default, and what all recorded vectors were made with.
_PINS: tuple[Callable[[], Any], ...] = (
    lambda: jax.enable_x64(False),
    lambda: jax.numpy_dtype_promotion("standard"),
    lambda: jax.default_prng_impl("threefry2x32"),
    lambda: jax.threefry_partitionable(True),
)


def pinned(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute in 32 bits and draw from one generator, whatever JAX is set to outside.

    Only this thread is meant: JAX's settings belong to a thread.
    """

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as pins:
            for pin in _PINS:
                pins.enter_context(pin())
            return function(*args, **kwargs)

    return inside


def matmul_precision() -> str | None:
    """The setting `jax_default_matmul_precision`, which is left to the user; None for the back end's own.

    On a TPU, and on a GPU that has TF32, float32 products are computed with fewer bits by default.
    """
    found = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return None if found is None else str(found)


def computed_with(devices: Sequence[Any]) -> dict[str, Any]:
    """What a record says of the devices that numbers come from: the precision of products, how many, and their kind."""
    return {
        "matmul precision": matmul_precision(),
        "devices": len(devices),
        "device": devices[0].device_kind,
    }

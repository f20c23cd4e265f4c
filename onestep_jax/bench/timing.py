"""How the benchmarks measure: interleaved contenders, medians with their range, records with every repeat.

The speed of a machine drifts while a benchmark runs. So contenders are interleaved, in another order each round, and
claims are ratios of two medians of one run.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from onestep_jax.devices.machine import processor
from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Model
from onestep_jax.store.records import json_text
from onestep_jax.store.sessions import versions
from onestep_jax.store.storage import replace, writing


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, contender → repeats; each is first called `warm_up` times without counting."""
    for call in contenders.values():
        for _ in range(warm_up):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(list(contenders), len(contenders)):
            began = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


class Clock:
    """The time after which a benchmark begins nothing new.

    Args:
      limit: seconds from now; None for no limit.
    """

    def __init__(self, limit: float | None):
        self.ends = None if limit is None else time.monotonic() + limit

    def leaves_out(self, name: str, say: Callable[[str], None]) -> bool:
        """Whether the time is up; if so, the user is told that `name` is left out."""
        if self.ends is None or time.monotonic() < self.ends:
            return False
        say(f"{name}: left out, the time is up")
        return True


def spread(name: str, values: list[float], unit: float = 1.0) -> dict[str, float]:
    """Columns "NAME median", "NAME least" and "NAME most" of the values, each times `unit`."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {f"{name} {which}": unit * value for which, value in found.items()}


def draw_spread(panel: Any, xs: Sequence[float], rows: Sequence[Mapping[str, Any]], name: str, **style: Any) -> None:
    """Plot the medians of the column NAME against `xs`, with bars from the least to the most."""
    middle, least, most = ([row[f"{name} {which}"] for row in rows] for which in ("median", "least", "most"))
    down = [m - x for m, x in zip(middle, least, strict=True)]
    up = [y - m for m, y in zip(middle, most, strict=True)]
    panel.errorbar(xs, middle, [down, up], marker="o", capsize=3, **style)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(xs, [str(x) for x in xs])


def within_context(model: Model, lengths: Sequence[int], say: Callable[[str], None]) -> list[int]:
    """The lengths, in tokens, that the model's context holds; the user is told of the others.

    Raises:
      UserError: if the context holds none of them.
    """
    context = model.config.context
    held = [length for length in lengths if length <= context]
    if not held:
        given = ", ".join(map(str, lengths))
        raise UserError(f"lengths {given}: all beyond the model's context of {context} positions; give shorter ones")
    for length in lengths:
        if length > context:
            say(f"{length} tokens: left out, beyond the model's context of {context} positions")
    return held


def matmul(dtype: Any, size: int | None = None) -> tuple[Callable[[], Any], float]:
    """A call that multiplies two square matrices, and its number of floating-point operations.

    Its speed is the ceiling for a step's speed.

    Args:
      dtype: of the matrices.
      size: rows; by default 2048 on a CPU, 8192 elsewhere.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    return lambda: product(a, b).block_until_ready(), 2.0 * size**3


def machine() -> dict[str, Any]:
    """Facts about the machine that a benchmark ran on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.local_device_count(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }


def record(name: str, settings: Mapping[str, Any], rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The record of a benchmark: settings, machine, versions, rows, and `more` measurements by name."""
    return {"benchmark": name, "settings": dict(settings), "machine": machine(), **versions(), "rows": rows, **more}


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a record as JSON, into a folder that is made if need be."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, (json_text(found, indent=2) + "\n").encode())

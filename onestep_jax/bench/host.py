"""What the host costs: how much of a fit its devices are not being waited for.

While a chunk runs, the host reads the last one, harvests, refills and records. Whatever it needs beyond that shows as
time in which it waits for no device; on a CPU, where host and devices share the cores, this is an upper bound.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onestep_jax.bench.measuring import draw_spread, record, spread
from onestep_jax.checkpoint import default_dtype, load_model
from onestep_jax.config import UserError
from onestep_jax.fitting import fit
from onestep_jax.model import Model
from onestep_jax.placement import Pmap


class Watched(Pmap):
    """Notes the seconds that the host waits for the devices."""

    waited = 0.0

    def fetch(self, tree: Any) -> Any:
        began = time.perf_counter()
        jax.block_until_ready(tree)
        self.waited += time.perf_counter() - began
        return super().fetch(tree)


def bench_host(
    source: str = "default",
    *,
    devices: Sequence[int] = (1, 2, 4, 8),
    slots: int = 1,
    length: int = 32,
    steps: int = 100,
    chunk: int = 10,
    repeats: int = 3,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fit as many random texts as there are slots, into a run directory, over 1, 2, 4, … local devices in turn.

    Args:
      source: folder, hub id or "default".
      devices: numbers of them; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight.
      slots: on each device.
      length: tokens of a text.
      steps: of every text, by the preset `paper`.
      chunk: steps between looks of the host.
      repeats: fits of each.
      dtype: of the weights.
      say: receives a line for the user.

    Returns:
      See `measuring.record`; a row a number of devices.
    """
    local = jax.local_devices()
    if max(devices) > len(local):
        cure = "XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight of a CPU"
        raise UserError(f"{max(devices)} devices: there are {len(local)}; give fewer with --devices, or {cure}")
    dtype = dtype or default_dtype()
    model = load_model(source, dtype=dtype)
    shape = (slots * max(devices), length)
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=shape).tolist()
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in devices}
    for _ in range(repeats):
        for count in devices:
            sizes = {"slots": slots * count, "steps": steps, "chunk": chunk}
            found[count].append(_measure(model, tokens[: slots * count], local[:count], **sizes))
    rows = []
    for count, measured in found.items():
        row: dict[str, Any] = {"devices": count, "slots": slots * count}
        row |= spread("ms a chunk", [chunk_ms for chunk_ms, _ in measured])
        row |= spread("ms not waiting", [host_ms for _, host_ms in measured])
        row |= spread("share not waiting", [host_ms / chunk_ms for chunk_ms, host_ms in measured])
        rows.append(row)
        say(f"{count} devices: {row['ms not waiting median']:.3g} of {row['ms a chunk median']:.3g} ms a chunk")
    settings = {"model": source, "slots": slots, "length": length, "steps": steps, "chunk": chunk}
    return record("host", {**settings, "repeats": repeats, "dtype": dtype}, rows)


def _measure(model: Model, tokens: Any, devices: Sequence[Any], **options: Any) -> tuple[float, float]:
    """Milliseconds of a chunk, and those of them in which the host waited for no device; means over a fit."""
    placement, looks = Watched(devices), []

    def look(_progress: Any) -> None:
        looks.append((time.perf_counter(), placement.waited))

    with tempfile.TemporaryDirectory() as folder:
        fit(model, tokens, preset="paper", run=Path(folder) / "run", placement=placement, progress=look, **options)
    (began, before), (ended, after), chunks = looks[0], looks[-1], len(looks) - 1
    return 1e3 * (ended - began) / chunks, 1e3 * (ended - began - (after - before)) / chunks


def draw_host(found: dict[str, Any], path: Path) -> Path:
    """Milliseconds of a chunk, and those in which no device is waited for, against the number of devices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    panel = figure.subplots()
    devices = [row["devices"] for row in found["rows"]]
    for name in ("ms a chunk", "ms not waiting"):
        draw_spread(panel, devices, found["rows"], name, label=name)
    panel.set(xlabel=f"devices, {found['settings']['slots']} texts each", ylabel="milliseconds")
    panel.legend()
    figure.savefig(path, dpi=150)
    return path

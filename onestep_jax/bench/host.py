"""What the host costs a chunk of steps: handing it over, and everything else that is no waiting.

    handing over    a chunk of which all slots are idle, from its call to its end: nothing is computed
    the rest        what of a fit goes by neither within a program's call nor while waiting for its result

Both are upper bounds: most of the rest goes by while the devices work. Calls are counted apart because XLA does part of
the work within them where there are more virtual devices than cores.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onestep_jax.bench.timing import draw_spread, record, spread
from onestep_jax.devices.placement import Pmap, Program
from onestep_jax.errors import UserError
from onestep_jax.fitting import slots as device
from onestep_jax.fitting.fitting import fit, make_problem
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.model.checkpoint import default_dtype, load_model
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.schemes import OneStep

IDLE_CALLS = 100


class Watched(Pmap):
    """Notes the seconds that go by within calls of programs and while waiting for the devices."""

    away = 0.0

    def fetch(self, tree: Any) -> Any:
        with self._noted():
            jax.block_until_ready(tree)
        return super().fetch(tree)

    def map(self, *arguments: Any, **options: Any) -> Program:
        program = super().map(*arguments, **options)

        def call(*arrays: Any) -> Any:
            with self._noted():
                return program(*arrays)

        return call

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.away += time.perf_counter() - began


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
      See `timing.record`; a row a number of devices.
    """
    local = jax.local_devices()
    if max(devices) > len(local):
        cure = "XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight of a CPU"
        raise UserError(f"{max(devices)} devices: there are {len(local)}; give fewer with --devices, or {cure}")
    dtype = dtype or default_dtype()
    model = load_model(source, dtype=dtype)
    shape = (slots * max(devices), length)
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=shape).tolist()
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in devices}
    for _ in range(repeats):
        for count in devices:
            handing = _handing_over(model, local[:count], slots, length, chunk)
            sizes = {"slots": slots * count, "steps": steps, "chunk": chunk}
            found[count].append((handing, *_fit(model, tokens[: slots * count], local[:count], **sizes)))
    rows = []
    for count, measured in found.items():
        row: dict[str, Any] = {"devices": count, "slots": slots * count}
        row |= spread("ms a chunk", [whole for _, _, whole in measured])
        row |= spread("ms handing over", [handing for handing, _, _ in measured])
        row |= spread("ms the rest", [rest for _, rest, _ in measured])
        row |= spread("share of the host", [(handing + rest) / whole for handing, rest, whole in measured])
        rows.append(row)
        say(f"{count} devices: {row['share of the host median']:.2%} of {row['ms a chunk median']:.4g} ms a chunk")
    settings = {"model": source, "slots": slots, "length": length, "steps": steps, "chunk": chunk}
    return record("host", {**settings, "repeats": repeats, "dtype": dtype}, rows)


def _handing_over(model: Model, devices: Sequence[Any], slots: int, length: int, chunk: int) -> float:
    """Milliseconds of a chunk of which all slots are idle, the median of many."""
    preset, placement = PRESETS["paper"], Pmap(devices)
    problem = make_problem(model, OneStep(), preset, preset.optimizer.build(), preset.steps)
    params = placement.place(model.params, model.config.kv_heads)
    state = placement.spread(device.idle(problem, length, (len(devices), slots)))
    program, seconds = placement.map(device.chunk, problem, chunk, donate=1), []
    for _ in range(IDLE_CALLS):
        began = time.perf_counter()
        state, info = program(params, state)
        jax.block_until_ready(info)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def _fit(model: Model, tokens: Any, devices: Sequence[Any], **options: Any) -> tuple[float, float]:
    """Milliseconds a chunk that are neither within calls nor waiting, and all of them; means over a fit."""
    placement, looks = Watched(devices), []

    def look(_progress: Any) -> None:
        looks.append((time.perf_counter(), placement.away))

    with tempfile.TemporaryDirectory() as folder:
        fit(model, tokens, preset="paper", run=Path(folder) / "run", placement=placement, progress=look, **options)
    (began, before), (ended, after), chunks = looks[0], looks[-1], len(looks) - 1
    return 1e3 * (ended - began - (after - before)) / chunks, 1e3 * (ended - began) / chunks


def draw_host(found: dict[str, Any], path: Path) -> Path:
    """Milliseconds of a chunk, and those that the host costs, against the number of devices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    panel = figure.subplots()
    devices = [row["devices"] for row in found["rows"]]
    for name in ("ms a chunk", "ms handing over", "ms the rest"):
        draw_spread(panel, devices, found["rows"], name, label=name)
    panel.set(xlabel=f"devices, {found['settings']['slots']} texts each", ylabel="milliseconds")
    panel.legend()
    figure.savefig(path, dpi=150)
    return path

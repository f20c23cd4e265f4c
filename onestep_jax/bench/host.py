"""What the host costs a chunk of steps, in two parts.

    handing over    a chunk with idle slots only, from its call to its end: nothing is computed
    the rest        the time of a fit outside programs' calls and outside waiting for their results

Both are upper bounds: during most of the rest the devices work. Time within calls is left out of the rest because XLA
computes within them if there are more virtual devices than cores.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax.bench.timing import draw_spread, record, spread
from onestep_jax.devices.placement import Pmap, Program
from onestep_jax.errors import UserError
from onestep_jax.fitting import PRESETS, fit, make_problem, programs
from onestep_jax.fitting.slots import Frozen, idle
from onestep_jax.model.checkpoint import default_dtype
from onestep_jax.model.decoder import Model
from onestep_jax.model.untrained import load_any
from onestep_jax.prototokens.schemes import OneStep

IDLE_CALLS = 100


class Timing(NamedTuple):
    """Milliseconds per chunk: of handing it over, of the rest of the host's work, and of all of it."""

    handing_over: float
    rest: float
    whole: float


class Watched(Pmap):
    """`Pmap` that adds up the time within calls of programs and while waiting for the devices.

    Attributes:
      away: that time, in seconds.
    """

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
      devices: how many to use; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight.
      slots: on each device.
      length: tokens of a text.
      steps: of every text, with the preset `paper`.
      chunk: steps between looks of the host.
      repeats: fits per number of devices.
      dtype: of the weights.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per number of devices.
    """
    local = jax.local_devices()
    if max(devices) > len(local):
        cure = "XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight of a CPU"
        raise UserError(f"{max(devices)} devices: there are {len(local)}; give fewer with --devices, or {cure}")
    dtype = dtype or default_dtype()
    model = load_any(source, dtype=dtype)
    shape = (slots * max(devices), length)
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=shape).tolist()
    found: dict[int, list[Timing]] = {count: [] for count in devices}
    for _ in range(repeats):
        for count in devices:
            handing_over = _handing_over(model, local[:count], slots, length, chunk)
            rest, whole = _fit(model, tokens[: slots * count], local[:count], steps, chunk)
            found[count].append(Timing(handing_over=handing_over, rest=rest, whole=whole))
    rows = [{"devices": count, "slots": slots * count, **_row(measured)} for count, measured in found.items()]
    for row in rows:
        share, whole = row["share of the host median"], row["ms a chunk median"]
        say(f"{row['devices']} devices: {share:.2%} of {whole:.4g} ms a chunk")
    settings = {"model": source, "slots": slots, "length": length, "steps": steps, "chunk": chunk}
    return record("host", {**settings, "repeats": repeats, "dtype": dtype}, rows)


def _row(measured: Sequence[Timing]) -> dict[str, float]:
    return {
        **spread("ms a chunk", [one.whole for one in measured]),
        **spread("ms handing over", [one.handing_over for one in measured]),
        **spread("ms the rest", [one.rest for one in measured]),
        **spread("share of the host", [(one.handing_over + one.rest) / one.whole for one in measured]),
    }


def _handing_over(model: Model, devices: Sequence[Any], slots: int, length: int, chunk: int) -> float:
    """Milliseconds of a chunk with idle slots only, the median of many calls."""
    preset, placement = PRESETS["paper"], Pmap(devices)
    problem = make_problem(model, OneStep(), preset, preset.optimizer.build())
    frozen = Frozen(placement.place(model.params, model.config.kv_heads))
    state = placement.spread(idle(problem, length, (len(devices), slots)))
    program, seconds = placement.map(programs.chunk, problem, chunk, donate=1), []
    for _ in range(IDLE_CALLS):
        began = time.perf_counter()
        state, info = program(frozen, state)
        jax.block_until_ready(info)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def _fit(model: Model, tokens: list[list[int]], devices: Sequence[Any], steps: int, chunk: int) -> tuple[float, float]:
    """Milliseconds per chunk, means over a fit of each text in a slot: outside calls and waiting, and in all."""
    placement, looks = Watched(devices), []

    def look(_progress: Any) -> None:
        looks.append((time.perf_counter(), placement.away))

    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            tokens,
            run=Path(folder) / "run",
            preset="paper",
            steps=steps,
            slots=len(tokens),
            chunk=chunk,
            placement=placement,
            progress=look,
        )
    (began, before), (ended, after), chunks = looks[0], looks[-1], len(looks) - 1
    return 1e3 * (ended - began - (after - before)) / chunks, 1e3 * (ended - began) / chunks


def draw_host(found: dict[str, Any], path: Path) -> Path:
    """Plot the milliseconds of a chunk, and the host's part of them, against the number of devices."""
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

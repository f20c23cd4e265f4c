"""What compiling costs: the step of a fit against the number of layers, cold and from the disk; programs of a fit.

Both layouts of the layers take part: each by itself, and as a stack over which the step scans (`model/stacked.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from onestep_jax.bench.models import architecture, subject
from onestep_jax.bench.timing import Clock, draw_spread, record, spread
from onestep_jax.errors import check_known
from onestep_jax.fitting import fit
from onestep_jax.fitting.memory import lowered_step
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.model.checkpoint import DTYPES, default_dtype
from onestep_jax.model.decoder import Model, Network

TRACED, COLD, DISK = "s tracing", "s compiling", "s from the disk"
LAYOUTS = {"by layer": False, "stacked": True}
SHORT, LONG = 0.3, 0.6  # shares of the length that some of the counted texts have

# Settings under which every program is kept on the disk, whatever it took to compile.
_KEPT = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event, of a program that is compiled or read


def bench_compile(
    source: str = "default",
    *,
    layers: Sequence[int] = (8, 16, 30, 80),
    length: int = 32,
    slots: int = 8,
    preset: str = "fast",
    repeats: int = 3,
    dtype: str | None = None,
    layouts: Sequence[str] = tuple(LAYOUTS),
    limit: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time compiling the step of a fit at several depths of a model, and count the programs of a fit.

    For another depth the model's layers are repeated in their pattern or cut. No weights are needed, since a program
    does not depend on their values. Texts of three lengths are then fitted for a few steps at the model's own depth.

    Args:
      source: see `models.subject`.
      layers: depths (L).
      length: tokens of a text.
      slots: texts at a time.
      preset: name of the optimiser's preset.
      repeats: timed compilations of each depth, in another order each round.
      dtype: of the weights; by default float32 on a CPU, else bfloat16.
      layouts: of `LAYOUTS`.
      limit: seconds after which no further round begins.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per layout and depth, ratios to the least depth and of the layouts, and how many
      programs a fit compiled.
    """
    check_known("preset", [preset], PRESETS)
    dtype = dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    check_known("layout", layouts, LAYOUTS)
    clock, config = Clock(limit), architecture(source)
    cases = [(layout, depth) for layout in layouts for depth in layers]
    seconds: dict[tuple[str, int], dict[str, list[float]]] = {case: {TRACED: [], COLD: [], DISK: []} for case in cases}
    for number in range(repeats):
        if number and clock.leaves_out(f"round {number + 1}", say):
            break
        for layout, depth in random.Random(number).sample(cases, len(cases)):
            network, found = Network(dataclasses.replace(config, layers=depth)), seconds[layout, depth]
            for name, took in _compile(network, DTYPES[dtype], slots, length, preset, LAYOUTS[layout]).items():
                found[name].append(took)
            say(f"{depth} layers, {layout}: {found[COLD][-1]:.3g} {COLD}, {found[DISK][-1]:.3g} {DISK}")
    rows = [{"layout": layout, "layers": depth} | _columns(seconds[layout, depth]) for layout, depth in cases]
    settings = {"model": source, "length": length, "slots": slots, "preset": preset, "repeats": repeats, "dtype": dtype}
    work = _programs(subject(source, dtype), length, slots, preset)
    every = {f"{depth} layers, {layout}": found for (layout, depth), found in seconds.items()}
    return record("compile", settings, rows, work=work, ratios=_ratios(rows), seconds=every)


def _compile(network: Network, dtype: Any, slots: int, length: int, preset: str, stacked: bool) -> dict[str, float]:
    """Seconds to trace, to compile and to read a step, each with nothing kept in memory."""

    def lowered() -> Any:
        jax.clear_caches()
        wanted = PRESETS[preset]
        return lowered_step(network, dtype, slots=slots, length=length, preset=wanted, stacked=stacked)[2]

    with _cache(None):
        program, traced = _timed(lowered)
        _, cold = _timed(program.compile)
    with tempfile.TemporaryDirectory(prefix="onestep-compile-") as folder, _cache(folder):
        lowered().compile()
        _, read = _timed(lowered().compile)
    return {TRACED: traced, COLD: cold, DISK: read}


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began


@contextlib.contextmanager
def _cache(folder: str | None) -> Iterator[None]:
    """Programs are kept in this folder and nowhere else, or nowhere; then as before."""
    wanted = {"jax_enable_compilation_cache": folder is not None}
    if folder is not None:
        wanted |= {"jax_compilation_cache_dir": folder, **_KEPT}
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX opens a folder once
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _columns(found: dict[str, list[float]]) -> dict[str, float]:
    return {column: value for name, values in found.items() for column, value in spread(name, values).items()}


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Tracing and compiling at each depth over that at the least one, and of a stack over that of separate layers."""
    whole = {(row["layout"], row["layers"]): row[f"{TRACED} median"] + row[f"{COLD} median"] for row in rows}
    least = min(depth for _, depth in whole)
    found = {
        f"{depth} layers over {least}, {layout}, traced and compiled": took / whole[layout, least]
        for (layout, depth), took in whole.items()
        if depth != least
    }
    for layout, depth in whole:
        if layout == "stacked" and ("by layer", depth) in whole:
            name = f"stacked over by layer, {depth} layers, traced and compiled"
            found[name] = whole["stacked", depth] / whole["by layer", depth]
    return found


def _programs(model: Model, length: int, slots: int, preset: str) -> dict[str, float]:
    """How many programs a fit of texts of three lengths compiles, and a second fit of other texts of these lengths."""
    draw, took = np.random.default_rng(0), []
    lengths = [max(1, round(share * length)) for share in (SHORT, LONG, 1.0)]

    def note(event: str, duration_secs: float, **_: Any) -> None:
        took.extend([duration_secs] if event == _COMPILED else [])

    def count() -> int:
        took.clear()
        texts = [draw.integers(model.config.vocab_size, size=size).tolist() for size in lengths for _ in range(slots)]
        fit(model, texts, preset=preset, slots=slots, steps=2, seeds=1, chunk=1)
        return len(took)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        with _cache(None):
            first, compiling, second = count(), sum(took), count()
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    return {"programs of a fit": first, "seconds they take to compile": compiling, "programs of a second fit": second}


def draw_compile(found: dict[str, Any], path: Path) -> Path:
    """Plot the seconds of tracing, compiling and reading against the number of layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    panel = figure.subplots()
    for layout, style in zip(LAYOUTS, ("-", "--"), strict=True):
        rows = sorted((row for row in found["rows"] if row["layout"] == layout), key=lambda row: row["layers"])
        for name in (TRACED, COLD, DISK) if rows else ():
            label = f"{name.removeprefix('s ')}, {layout}"
            draw_spread(panel, [row["layers"] for row in rows], rows, name, label=label, linestyle=style)
    panel.set(xlabel="layers", ylabel="seconds")
    panel.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    return path

"""A task of a benchmark in a process of its own, whose start-up is timed with it and whose memory is its own."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onestep_jax.devices.compile_cache import VARIABLE
from onestep_jax.errors import UserError

_SERVE = "from onestep_jax.bench.process import serve; serve()"


def in_a_process(work: Callable[[dict[str, Any]], dict[str, Any]], task: dict[str, Any]) -> dict[str, Any]:
    """Do `work(task)` in a fresh process that takes no compiled program from the disk.

    Args:
      work: a function of a module, from plain values to plain values, with "texts" and "solved" among them.
      task: its argument; "way" names it in errors.

    Returns:
      What it returns, with "seconds" from the start of the process to its end, "solved an hour", and "peak MB", the
      most memory that the process had on the host.

    Raises:
      UserError: if it fails, with the last line that it printed on standard error.
    """
    environment = {**os.environ, VARIABLE: "off"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "task.json", Path(folder) / "found.json"
        given.write_text(json.dumps(task))
        command = [sys.executable, "-c", _SERVE, work.__module__, work.__name__, str(given), str(out)]
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        seconds = time.perf_counter() - began
        if done.returncode or not out.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"the way {task['way']!r} failed: {last}")
        found = json.loads(out.read_text())
    return {**found, "seconds": seconds, "solved an hour": 3600 * found["solved"] / seconds}


def serve() -> None:
    """Do the work that argv names, on the task in one file, and write its numbers to another."""
    module, name, given, out = sys.argv[1:]
    found = getattr(importlib.import_module(module), name)(json.loads(Path(given).read_text()))
    unit = 1e-6 if sys.platform == "darwin" else 1.024e-3  # `ru_maxrss` is in bytes there, elsewhere in KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    Path(out).write_text(json.dumps({**found, "peak MB": peak}))


def solved_an_hour(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Solved texts per hour of the first way over those of each other way; None if that one solved none."""
    rates: dict[str, tuple[int, float]] = {}
    for row in rows:
        solved, seconds = rates.get(row["way"], (0, 0.0))
        rates[row["way"]] = (solved + row["solved"], seconds + row["seconds"])
    first, *others = rates
    own = rates[first][0] / rates[first][1]
    return {f"{first} over {way}": own / (rates[way][0] / rates[way][1]) if rates[way][0] else None for way in others}

"""Ten thousand tiny texts in one run: the host's memory stays flat, files stay few, a resume starts at once.

    python experiments/studies/many_texts.py --count 10000 --out runs/many

Texts are random token ids of the packaged model, two tokens long unless told otherwise, fitted by `fast` into a run
directory. A line is kept for each thousandth part of it: seconds, texts finished, resident memory, files in the
directory. After nine tenths it is stopped by SIGTERM and resumed. The resume is timed, with the model loaded and the
programs compiled, until its first chunk of steps is done. curve.csv and curve.png show the run, summary.json has the
answers.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

import onestep_jax
from onestep_jax.store.records import json_text

PAGE = 4096  # bytes, of /proc/self/statm


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


class Watch:
    """Keeps a line for each thousandth part of a run, and stops it once at nine tenths."""

    def __init__(self, run: Path, count: int):
        self.run, self.count, self.rows, self.stopped = run, count, list[dict[str, float]](), False
        self.began = time.monotonic()
        self.first_chunk: float | None = None

    def __call__(self, state: onestep_jax.Progress) -> None:
        seconds = time.monotonic() - self.began
        self.first_chunk = self.first_chunk or seconds
        if not self.rows or state.finished >= self.rows[-1]["finished"] + self.count / 1000:
            files = sum(1 for _ in self.run.rglob("*"))
            self.rows.append({"seconds": seconds, "finished": state.finished, "MB": resident_mb(), "files": files})
        if not self.stopped and state.finished >= 0.9 * self.count:
            self.stopped = True
            os.kill(os.getpid(), signal.SIGTERM)


def measure(model: Any, tokens: list[list[int]], run: Path, **options: Any) -> tuple[list[dict[str, float]], float]:
    """The course of a run up to its stop, and seconds from its resume to the first chunk of steps."""
    watch, again = Watch(run, len(tokens)), Watch(run, len(tokens))
    try:
        onestep_jax.fit(model, tokens, run=run, progress=watch, **options)
    except onestep_jax.Interrupted as stopped:
        print(stopped)
    again.stopped, again.began = True, time.monotonic()
    results = onestep_jax.fit(model, tokens, run=run, progress=again, **options)
    assert len(results) == len(tokens)
    return watch.rows, again.first_chunk or time.monotonic() - again.began


def summary(rows: list[dict[str, float]], resume: float) -> dict[str, float]:
    """Memory and files over the last four fifths of a run, when everything is compiled."""
    late = [row for row in rows if row["finished"] >= rows[-1]["finished"] / 5]
    memory, finished = ([row[key] for row in late] for key in ("MB", "finished"))
    slope = np.polyfit(finished, memory, 1)[0]
    return {
        "texts": rows[-1]["finished"],
        "texts an hour": 3600 * rows[-1]["finished"] / rows[-1]["seconds"],
        "MB at a fifth": memory[0],
        "MB at the end": memory[-1],
        "kB a text": 1e3 * slope,
        "most files": max(row["files"] for row in rows),
        "seconds of a resume": resume,
    }


def draw(rows: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    for panel, key in zip(figure.subplots(1, 2), ("MB", "files"), strict=True):
        panel.plot([row["finished"] for row in rows], [row[key] for row in rows])
        panel.set(xlabel="texts finished", ylabel=f"{key} of the {'process' if key == 'MB' else 'run directory'}")
        panel.set_ylim(bottom=0)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="default, a folder or a hub id (default: default)")
    parser.add_argument("--count", type=int, default=10_000, help="texts (default: 10000)")
    parser.add_argument("--length", type=int, default=2, help="tokens of each (default: 2)")
    parser.add_argument("--slots", type=int, default=64, help="texts at a time (default: 64)")
    parser.add_argument("--out", type=Path, default=Path("runs/many"), help="folder (default: runs/many)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = onestep_jax.load_model(args.model)
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=(args.count, args.length)).tolist()
    rows, resume = measure(model, tokens, args.out / "run", slots=args.slots)
    with (args.out / "curve.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    draw(rows, args.out / "curve.png")
    found = summary(rows, resume)
    (args.out / "summary.json").write_text(json_text(found, indent=2) + "\n")
    print(json_text(found, indent=2))


if __name__ == "__main__":
    main()

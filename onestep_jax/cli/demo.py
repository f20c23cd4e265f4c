"""The demo: eight short texts of many kinds, fitted and decoded on the packaged model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from onestep_jax.fitting.fitting import fit
from onestep_jax.fitting.progress import Progress
from onestep_jax.model.checkpoint import load_model
from onestep_jax.prototokens.reconstruction import Decoded, decode
from onestep_jax.report import plot_curves
from onestep_jax.store.results import Results

LENGTH = 32


class Demo(NamedTuple):
    """What a demo made.

    Attributes:
      kinds: a word for each text.
      results: of the fit.
      decoded: reconstructions from one forward pass.
      seconds: from loading the model to the last reconstruction.
      run: the run directory.
      figure: loss and accuracy against steps.
    """

    kinds: list[str]
    results: Results
    decoded: list[Decoded]
    seconds: float
    run: Path
    figure: Path


def demo_texts() -> list[dict[str, str]]:
    """The packaged texts, each with a word for its kind."""
    path = Path(__file__).parent.parent / "data" / "demo.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_demo(run: Path, progress: Callable[[Progress], None] | None = None) -> Demo:
    """Fit the packaged texts, 32 tokens each, decode them and draw the curves into the run directory."""
    began = time.perf_counter()
    texts = demo_texts()
    model = load_model()
    results = fit(model, [text["text"] for text in texts], length=LENGTH, run=run, progress=progress)
    decoded = decode(model, results)
    seconds = time.perf_counter() - began
    kinds = [text["kind"] for text in texts]
    figure = run / "curves.png"
    plot_curves(results, figure, kinds)
    return Demo(kinds, results, decoded, seconds, run, figure)

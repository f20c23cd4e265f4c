"""Figures from stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onestep_jax.results import Results


def plot_curves(results: Results, path: Path, labels: Sequence[str]) -> None:
    """Loss (nats per token) and accuracy against gradient evaluations, one line a text, of each text's best trial."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for text, label in zip(results, labels, strict=True):
        trial = next(trial for trial in text.trials if trial.seed == text.seed)
        steps, loss, accuracy = trial.trace.T
        line = left.plot(steps, loss, label=f"{label} ({text.accuracy:.0%})", linewidth=1.4)[0]
        right.plot(steps, accuracy, color=line.get_color(), linewidth=1.4)
    left.set(xlabel="gradient evaluations", ylabel="training loss (nats per token)", yscale="log")
    right.set(xlabel="gradient evaluations", ylabel="accuracy", ylim=(-0.02, 1.02))
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize="x-small", frameon=False)
    figure.savefig(path, dpi=150)

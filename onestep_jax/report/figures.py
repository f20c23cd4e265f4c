"""Figures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.report.headline import Headline
from onestep_jax.store.results import Results

ACCENT, MIDDLE, PALE = "#0f766e", "#5fa8a1", "#cfd8d6"
LABELLED = 12  # with more lines there is no legend


def plot_curves(results: Results, path: Path, labels: Sequence[str]) -> None:
    """Plot loss (nats per token) and accuracy against gradient evaluations: one line for each text, its best trial."""
    figure = _figure((9, 3.6))
    left, right = figure.subplots(1, 2)
    named = len(labels) <= LABELLED
    for text, label in zip(results, labels, strict=True):
        if text.best_trial is not None:
            steps, loss, accuracy = text.best_trial.trace.T
            width = 1.4 if named else 0.6
            line = left.plot(steps, loss, label=f"{label} ({text.accuracy:.0%})", linewidth=width)[0]
            right.plot(steps, accuracy, color=line.get_color(), linewidth=width)
    left.set(xlabel="gradient evaluations", ylabel="training loss (nats per token)", yscale="log")
    right.set(xlabel="gradient evaluations", ylabel="accuracy", ylim=(-0.02, 1.02))
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    if named and left.lines:
        left.legend(fontsize="x-small", frameon=False)
    figure.savefig(path, dpi=150)


def plot_text_bars(results: Results, path: Path) -> None:
    """Plot C_tokens (Eq. 2) of each text in front of its length, in the style of the paper's Figure 1."""
    figure = _figure((9, 3.2))
    axis = figure.subplots()
    places = np.arange(len(results))
    axis.bar(places, [len(text.tokens) for text in results], color=PALE, label="length")
    colors = [ACCENT if text.accuracy == 1 else MIDDLE for text in results]
    hatches = ["" if text.accuracy == 1 else "//" for text in results]
    axis.bar(places, [text.c_tokens for text in results], color=colors, hatch=hatches, edgecolor="white", linewidth=0)
    axis.set(xlabel="text", ylabel="reconstructed tokens")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title("solid: exact; hatched: some tokens wrong; pale: length", fontsize="small", loc="left")
    _plain(axis)
    figure.savefig(path, dpi=150)


def plot_run_bars(names: Sequence[str], numbers: Sequence[Headline], path: Path) -> None:
    """Plot for each run mean C_tokens, the longest text at accuracy 0.99 or more, and the longest exact text."""
    figure = _figure((9, 3.4))
    axis = figure.subplots()
    places = np.arange(len(names))
    series = (
        ("mean C_tokens of a text", PALE, [one.c_tokens / one.texts for one in numbers]),
        ("longest text, accuracy ≥ 0.99", MIDDLE, [one.longest_reconstructed for one in numbers]),
        ("longest text, exact", ACCENT, [one.longest_exact for one in numbers]),
    )
    for i, (label, color, heights) in enumerate(series):
        bars = axis.bar(places + (i - 1) * 0.27, heights, 0.25, color=color, label=label)
        axis.bar_label(bars, fmt="{:.3g}", fontsize="x-small")
    many = len(names) > 4
    axis.set_xticks(places, list(names), rotation=30 if many else 0, ha="right" if many else "center")
    axis.set(ylabel="tokens")
    axis.legend(fontsize="x-small", frameon=False)
    _plain(axis)
    figure.savefig(path, dpi=150)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _plain(axis: Any) -> None:
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)

"""Charts as inline SVG. Elements have classes, not colours: the style sheet of the page sets light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onestep_jax.analysis import reconstructed
from onestep_jax.report.headline import Headline
from onestep_jax.report.markup import Markup, join, tag, visible
from onestep_jax.report.wording import accuracy
from onestep_jax.store.results import TextResult

POINTS = 20_000  # of all curves of a panel together; this bounds the size of the page
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 18, 40


def text_bars(texts: Sequence[TextResult], title: str) -> Markup:
    """C_tokens (Eq. 2) of each text in front of its length."""
    width, height = 960, 280
    top = nice_ceiling(max(len(text.tokens) for text in texts))
    slot = (width - _LEFT - _RIGHT) / len(texts)
    bar = min(56.0, slot * 0.72)
    parts = [_grid(width, height, top)]
    for i, text in enumerate(texts):
        x = _LEFT + slot * (i + 0.5) - bar / 2
        kind = "exact" if text.accuracy == 1 else "near" if reconstructed(text) else "partly"
        words = f"text {text.index}: {text.c_tokens} of {len(text.tokens)} tokens, accuracy {accuracy(text.accuracy)}"
        bars = [_bar(x, bar, len(text.tokens), top, height, "length"), _bar(x, bar, text.c_tokens, top, height, kind)]
        if bar >= 22:
            y = _y(len(text.tokens), top, height) - 5
            bars.append(tag("text", text.c_tokens, x=_n(x + bar / 2), y=_n(y), class_="value"))
        parts.append(tag("g", tag("title", words), *bars))
    every = math.ceil(len(texts) / 24)
    for i in range(0, len(texts), every):
        parts.append(_label(texts[i].index, _LEFT + slot * (i + 0.5), height - 22))
    parts.append(_label("text", (width + _LEFT) / 2, height - 4))
    return _svg(width, height, title, parts)


def run_bars(names: Sequence[str], numbers: Sequence[Headline], title: str) -> Markup:
    """Three bars for each run: mean C_tokens, the longest text at accuracy 0.99 or more, the longest exact text."""
    count = len(names)
    width, height = max(960, 90 * count), 300
    heights = [(one.c_tokens / one.texts, one.longest_reconstructed, one.longest_exact) for one in numbers]
    top = nice_ceiling(max(max(row) for row in heights))
    slot = (width - _LEFT - _RIGHT) / count
    bar = min(44.0, slot * 0.25)
    parts = [_grid(width, height, top)]
    for i, (name, row) in enumerate(zip(names, heights, strict=True)):
        middle = _LEFT + slot * (i + 0.5)
        for k, (value, kind) in enumerate(zip(row, ("mean", "near", "exact"), strict=True)):
            x = middle + (k - 1.5) * (bar + 4)
            value_words = tag(
                "text", f"{value:.4g}", x=_n(x + bar / 2), y=_n(_y(value, top, height) - 5), class_="value"
            )
            parts.append(tag("g", _bar(x, bar, value, top, height, kind), value_words))
        short = visible(name) if len(name) <= slot / 7 else f"{visible(name)[: int(slot / 7) - 1]}…"
        parts.append(tag("text", tag("title", visible(name)), short, x=_n(middle), y=height - 20, class_="label"))
    return _svg(width, height, title, parts)


def curves(texts: Sequence[TextResult], measure: str, title: str, limit: float | None = None) -> Markup:
    """Thin lines of all texts and their median, against gradient evaluations.

    Args:
      texts: the traces of their best trials are drawn. For the median, a finished text keeps its last value.
      measure: "loss", on a logarithmic axis, or "accuracy".
      title: text for screen readers.
      limit: gradient evaluations at the right end; by default the most of any text.
    """
    lines = _lines(texts, {"loss": 1, "accuracy": 2}[measure])
    if not lines:
        return tag("p", f"No curve of the {measure} was recorded.", class_="muted")
    last = max(float(line[-1, 0]) for line in lines)
    low, high, ticks = 0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]
    if measure == "loss":
        low, high, ticks = _log_scale(np.concatenate([line[:, 1] for line in lines]))
    panel = _Panel(limit or last, low, high, measure == "loss")
    parts = [_row(panel.width, float(panel.y(tick)), f"{tick:g}") for tick in ticks]
    for step in _ticks(panel.limit):
        parts.append(_label(f"{step:,.0f}", panel.x(step), panel.height - _BOTTOM + 16))
    parts.append(_label("gradient evaluations", (panel.width + _LEFT) / 2, panel.height - 6))
    kept = max(20, POINTS // len(lines))
    for line in lines:
        thin = line[np.unique(np.linspace(0, len(line) - 1, min(len(line), kept)).round().astype(int))]
        parts.append(_polyline(panel, thin[:, 0], thin[:, 1], "one"))
    grid = np.linspace(min(float(line[0, 0]) for line in lines), last, 150)
    middle = np.median([np.interp(grid, line[:, 0], line[:, 1]) for line in lines], axis=0)
    parts.append(_polyline(panel, grid, middle, "median"))
    return _svg(panel.width, panel.height, title, parts)


def _lines(texts: Sequence[TextResult], column: int) -> list[np.ndarray]:
    """(points, 2), steps and a value, of each text that has finite ones."""
    traces = [trial.trace for text in texts if (trial := text.best_trial) is not None]
    lines = [trace[np.isfinite(trace).all(axis=1)][:, [0, column]] for trace in traces if len(trace)]
    return [line for line in lines if len(line)]


class _Panel(NamedTuple):
    """Scales of a panel: steps from 0 to `limit`, values from `low` to `high`."""

    limit: float
    low: float
    high: float
    log: bool
    width: int = 460
    height: int = 260

    def x(self, steps: np.ndarray | float) -> np.ndarray:
        return _LEFT + (self.width - _LEFT - _RIGHT) * np.asarray(steps, float) / self.limit

    def y(self, values: np.ndarray | float) -> np.ndarray:
        share = np.asarray(values, float)
        if self.log:
            share = np.log(np.clip(share, self.low, self.high) / self.low) / math.log(self.high / self.low)
        return self.height - _BOTTOM - (self.height - _BOTTOM - _TOP) * share


def nice_ceiling(value: float) -> int:
    """A round number of tokens, at least `value`, that is divisible by four."""
    power = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return next(k * power for k in (4, 8, 12, 16, 20, 24, 32, 40, 60, 80, 100) if k * power >= value)


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    view = f"0 0 {width} {height}"
    return tag("svg", *parts, viewBox=view, role="img", aria_label=title, class_="wide" if width > 500 else "panel")


def _grid(width: int, height: int, top: int) -> Markup:
    return join(_row(width, _y(top * k / 4, top, height), f"{top * k / 4:g}") for k in range(5))


def _row(width: int, y: float, label: str) -> Markup:
    line = tag("line", x1=_LEFT, x2=width - _RIGHT, y1=_n(y), y2=_n(y), class_="grid")
    return join([line, tag("text", label, x=_LEFT - 7, y=_n(y + 4), class_="tick")])


def _label(words: str | int, x: float | np.ndarray, y: float) -> Markup:
    return tag("text", words, x=_n(x), y=_n(y), class_="label")


def _bar(x: float, width: float, value: float, top: int, height: int, kind: str) -> Markup:
    y = _y(value, top, height)
    tall = height - _BOTTOM - y
    return tag("rect", class_=f"bar {kind}", x=_n(x), y=_n(y), width=_n(width), height=_n(tall), rx=2)


def _y(value: float, top: int, height: int) -> float:
    return height - _BOTTOM - (height - _BOTTOM - _TOP) * value / top


def _polyline(panel: _Panel, steps: np.ndarray, values: np.ndarray, kind: str) -> Markup:
    places = zip(panel.x(steps), panel.y(values), strict=True)
    return tag("polyline", points=" ".join(f"{_n(x)},{_n(y)}" for x, y in places), class_=f"curve {kind}")


def _log_scale(values: np.ndarray) -> tuple[float, float, list[float]]:
    """Ends and ticks of a logarithmic axis of four decades at most; lower values are drawn at its lower end."""
    positive = values[values > 0]
    high = float(positive.max()) if len(positive) else 1.0
    low = max(float(positive.min()) if len(positive) else 0.1, high * 1e-4)
    steps = [step * 10.0**power for power in range(-12, 13) for step in (1, 2, 5)]
    above = next(step for step in steps if step >= high)
    below = next(step for step in reversed(steps) if step <= min(low, above / 2))
    ticks = [step for step in steps if below <= step <= above]
    while len(ticks) > 7:
        ticks = ticks[::2]
    return below, above, ticks


def _ticks(limit: float) -> list[float]:
    """Round numbers from 0 to the limit, seven at most."""
    step = next(k * 10**power for power in range(12) for k in (1, 2, 5) if k * 10**power * 6 >= limit)
    return [float(k * step) for k in range(int(limit / step) + 1)]


def _n(value: float | np.ndarray) -> str:
    """A coordinate to a tenth of a unit."""
    return f"{float(value):.1f}".removesuffix(".0")

"""The tables of `preset_fast.py` from its CSVs, as one page of Markdown."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, str]
PATIENCE = (150, 200, 300, 500, 1000, 1800)

ABOUT = """Made by [`preset_fast.py`](../../studies/preset_fast.py), which says what each part is. Packaged model. Work
is gradient evaluations times tokens; an unsolved text counts with its whole budget, 600 evaluations while choosing and
5,000 while judging. `base` is `fast` with start vectors at 0.2 × the deviation of the embeddings; `choose` changes one
thing of it at a time, at 24 tokens, with other optimisers on the first eight texts only. N(0, 1) was taken for `fast`
and not N(0, 4), because the paper starts there. The temperature is older: it was chosen on one piece of each of eight
books, one of which is among those of the judged texts, which are other pieces of it."""


def write_tables(folder: Path) -> Path:
    """README.md of what is in the folder so far."""
    parts = ["# Why `fast` is what it is", "", ABOUT]
    for name, make in TABLES.items():
        path = folder / f"{name}.csv"
        if path.exists():
            with path.open(newline="") as file:
                parts += ["", f"## {name}", "", *make(list(csv.DictReader(file)))]
    page = folder / "README.md"
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return page


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def as_given(rows: list[Row]) -> list[str]:
    return table(list(rows[0]), [list(row.values()) for row in rows])


def seeds(rows: list[Row]) -> list[str]:
    """Expected evaluations until a text is solved if a seed is given up after so many, from the seeds of each text."""
    texts = sorted({row["text"] for row in rows}, key=int)
    lines = []
    for patience in PATIENCE:
        costs = []
        for text in texts:
            steps = np.array(
                [int(row["steps"]) if row["solved"] == "1" else np.inf for row in rows if row["text"] == text]
            )
            share = np.mean(steps <= patience)
            costs.append(np.minimum(steps, patience).mean() / share if share else np.inf)
        reached = np.isfinite(costs)
        mean = f"{np.mean(costs):.0f}" if reached.all() else "–"
        lines.append((patience, f"{reached.sum()} of {len(texts)}", mean))
    spread = [np.std([int(row["steps"]) for row in rows if row["text"] == text]) for text in texts]
    between = np.std([np.mean([int(row["steps"]) for row in rows if row["text"] == text]) for text in texts])
    words = (
        f"Standard deviation of evaluations between seeds of a text {np.mean(spread):.0f}, between texts {between:.0f}."
    )
    header = ("given up after", "texts that some seed solves by then", "expected evaluations a text")
    return [*table(header, lines), "", words]


def judge(rows: list[Row]) -> list[str]:
    """Each preset at each length, and the longest prefix that each text was solved at."""
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    lengths = sorted({int(row["length"]) for row in rows})
    lines, capacity, at = [], {}, {}
    for preset in presets:
        for length in lengths:
            chosen = [row for row in rows if (row["preset"], row["length"]) == (preset, str(length))]
            if chosen:
                steps = np.array([int(row["steps"]) for row in chosen])
                solved = sum(row["solved"] == "1" for row in chosen)
                at[preset, length] = (len(chosen), steps.mean())
                lines.append((preset, length, len(chosen), solved, f"{steps.mean():.0f}", f"{np.median(steps):.0f}"))
        texts = {row["text"] for row in rows if row["preset"] == preset}
        longest = dict.fromkeys(texts, 0)
        for row in rows:
            if row["preset"] == preset and row["solved"] == "1":
                longest[row["text"]] = max(longest[row["text"]], int(row["length"]))
        capacity[preset] = float(np.mean(list(longest.values())))
    means = ", ".join(f"`{preset}` {capacity[preset]:.1f} tokens" for preset in presets)
    words = [f"Longest prefix solved, of the lengths tried, mean: {means}."]
    if {"fast", "paper"} <= set(presets):
        everyone = max(count for count, _ in at.values())
        for length in lengths:
            both = [at.get((preset, length), (0, 0.0)) for preset in ("fast", "paper")]
            if all(count == everyone for count, _ in both):
                ratio = both[0][1] / both[1][1]
                words.append(f"At {length} tokens `fast` takes {ratio:.3f} of the work of `paper`, all texts counted.")
    header = ("preset", "tokens", "texts tried", "solved", "mean evaluations", "median")
    return [*table(header, lines), "", *words]


TABLES: dict[str, Callable[[list[Row]], list[str]]] = {
    "judge": judge,
    "choose": as_given,
    "curriculum": as_given,
    "seeds": seeds,
    "bfloat16": as_given,
}

"""README.md of recorded benchmarks from their JSON files.

    python experiments/studies/bench_tables.py experiments/results/bench

A record is what `onestep bench … --out experiments/results/bench/NAME.json` wrote; a plot NAME.png beside it is shown.
"""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def write_page(folder: Path) -> Path:
    """The page of all records in a folder."""
    parts = [
        "# Recorded benchmarks",
        "",
        "Made by [`bench_tables.py`](../../studies/bench_tables.py) from the JSON files here.",
    ]
    for path in sorted(folder.glob("*.json")):
        parts += ["", *_section(path, json.loads(path.read_text()))]
    page = folder / "README.md"
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return page


def _section(path: Path, record: dict[str, Any]) -> list[str]:
    machine, versions = record["machine"], record["versions"]
    where = f"{machine['devices']} × {machine['device']} ({machine['processor']}, {machine['cores']} cores)"
    lines = [f"## {path.stem}", "", "```sh", record["command"], "```", ""]
    commit = f"commit {record['commit'][:10]}" if record["commit"] else "no commit known"
    lines += [f"On {where}, jax {versions['jax']}, {commit}.", ""]
    lines += _rows(record["rows"])
    lockstep = next((row["steps"] for row in record["rows"] if row.get("way") == "lockstep"), None)
    if lockstep is not None:
        lines += [
            "",
            "What refilling can gain over lockstep, by the evaluations of these texts:",
            "",
            *_gains(lockstep),
        ]
    facts = {**record.get("work", {}), **record.get("ratios", {})}
    lines += [""] + [f"* {name}: {'none solved' if value is None else _shown(value)}" for name, value in facts.items()]
    plot = path.with_suffix(".png")
    return [*lines, "", f"![{path.stem}]({plot.name})"] if plot.exists() else lines


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    """Medians with their ranges; what every row lacks and lists of single values are left out."""
    names = [name for name in rows[0] if not name.endswith((" least", " most"))]
    names = [name for name in names if not any(isinstance(row.get(name), list) for row in rows)]
    lines = []
    for row in rows:
        cells = []
        for name in names:
            least, most = (row.get(name.removesuffix(" median") + end) for end in (" least", " most"))
            ranged = f" ({_shown(least)} to {_shown(most)})" if name.endswith(" median") else ""
            cells.append(_shown(row.get(name)) + ranged)
        lines.append(cells)
    return table([name.removesuffix(" median") for name in names], lines)


def _gains(steps: list[int]) -> list[str]:
    """Lockstep's time over that of a sweep that refills, in steps of all slots, compiling and narrowing aside.

    Handed out as they come: each text goes to whichever slot is free first. Any order: no slot ever idle, or the
    longest text alone, whichever takes longer.
    """
    lines = []
    for slots in (4, 8, 16, 32, 64):
        lockstep = sum(max(steps[first : first + slots]) for first in range(0, len(steps), slots))
        busy = [0] * slots
        for cost in steps:
            heapq.heapreplace(busy, busy[0] + cost)
        least = max(sum(steps) / slots, max(steps))
        lines.append([str(slots), f"{lockstep / max(busy):.2f}", f"{lockstep / least:.2f}"])
    return table(["slots", "handed out as they come", "any order, at most"], lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    print(write_page(Path(sys.argv[1])))

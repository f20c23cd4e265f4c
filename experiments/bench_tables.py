"""README.md of recorded benchmarks from their JSON files.

    python experiments/bench_tables.py experiments/results/bench

A record is what `onestep bench … --out experiments/results/bench/NAME.json` wrote; a plot NAME.png beside it is shown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from preset_tables import table


def write_page(folder: Path) -> Path:
    """The page of all records in a folder."""
    parts = [
        "# Recorded benchmarks",
        "",
        "Made by [`bench_tables.py`](../../bench_tables.py) from the JSON files here.",
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


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    print(write_page(Path(sys.argv[1])))

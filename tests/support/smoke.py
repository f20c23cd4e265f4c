"""Run a recipe card at its smallest size, by the command line, and read what it wrote."""

import csv
import json
from pathlib import Path

from onestep_jax import Model
from onestep_jax.cli.parser import main


def number(text: str):
    """A CSV cell as a number where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def smoke(name: str, out: Path, model: Model | None = None, *words: str) -> dict[str, list[dict]]:
    """Rows of every CSV of the card, by its name; checks what must hold of any card.

    On the packaged model, or on another that was loaded from a folder; with these words of the command line.
    """
    source = "default" if model is None else model.source
    assert main(["experiment", name, "--smoke", "--model", source, "--out", str(out), *words]) == 0
    folder = out / name
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == name
    assert config["settings"]["model"] == source
    tables = {path.stem: read_csv(path) for path in sorted(folder.glob("*.csv"))}
    figures = sorted(folder.glob("*.png"))
    assert tables
    assert figures
    assert config["files"] == sorted([*(f"{table}.csv" for table in tables), *(figure.name for figure in figures)])
    assert all(tables.values())
    for figure in figures:
        assert figure.read_bytes()[:4] == b"\x89PNG"
        assert figure.stat().st_size > 10_000
    return tables

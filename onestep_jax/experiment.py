"""Experiments: recipe cards in files of their own, run into a folder that keeps the numbers, the figures and the runs.

A card is a file of the clone's `experiments/` with a docstring (the paper's item, hours, the paper's numbers), a frozen
dataclass of settings, `config(smoke)` and `packaged()`, which fill it for the paper's size, for seconds, and for the
packaged model on a small machine, and `run(config, study)`. No card imports another.

    runs/experiments/NAME/config.json   settings, versions, commit, the command
    runs/experiments/NAME/*.csv, *.png  tables and figures
    runs/experiments/NAME/runs/         ordinary run directories
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import functools
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import onestep_jax
from onestep_jax.config import UserError, check_known
from onestep_jax.corpora import load_tokens
from onestep_jax.files import replace, writing
from onestep_jax.fitting import fit, versions
from onestep_jax.model import Model
from onestep_jax.results import Results
from onestep_jax.sweep import Progress

_PARTS = ("config", "packaged", "run")


class Study:
    """What a card works with: the model, texts, fits that resume, and where its tables and figures go.

    Args:
      folder: of the experiment; created.
      model: the frozen model.
      progress: called after each chunk of a fit.
      say: receives a line for the user.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        progress: Callable[[Progress], None] | None = None,
        say: Callable[[str], None] = print,
    ):
        self.folder, self.model, self.progress, self.say = folder, model, progress, say
        self.written: list[Path] = []
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def texts(self, source: str, count: int, length: int, seed: int = 0) -> list[np.ndarray]:
        """`count` texts of `length` tokens, see `corpora.load_tokens`."""
        return load_tokens(self.model, source, count=count, length=length, seed=seed)

    def fit(self, name: str, tokens: Sequence[np.ndarray], *, model: Model | None = None, **options: Any) -> Results:
        """`onestep_jax.fit` into the run directory `runs/NAME` of the experiment, which a second call goes on with."""
        texts = [ids.tolist() for ids in tokens]
        folder = self.run_folder(name)
        return fit(model or self.model, texts, run=folder, progress=self.progress, **options)

    def run_folder(self, name: str) -> Path:
        """Run directory of that name."""
        return self.folder / "runs" / name

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows with the same keys as NAME.csv, and show them."""
        assert rows, f"{name}: a table without rows"
        assert all(list(row) == list(rows[0]) for row in rows), f"{name}: rows of different columns"
        path = self.folder / f"{name}.csv"
        with writing(path), path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
        self._wrote(path)

    @contextmanager
    def figure(self, name: str, *, columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.6, 3.6)) -> Iterator:
        """Axes to draw on, (rows · columns) of them as a list; the figure is written as NAME.png at the end."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        axes = list(np.ravel(figure.subplots(rows, columns)))
        for axis in axes:
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        yield axes
        path = self.folder / f"{name}.png"
        with writing(path):
            figure.savefig(path, dpi=150)
        self._wrote(path)

    def _wrote(self, path: Path) -> None:
        self.written.append(path)
        self.say(f"{path}")


def _plain(value: Any) -> Any:
    """A number as CSV should show it: six significant digits."""
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.6g}"
    return value


# --- cards ---


def cards_folder() -> Path:
    """The clone's `experiments/`: of the current folder, or of the clone that the package is installed from.

    Raises:
      UserError: if there is none.
    """
    beside = Path(onestep_jax.__file__).parent.parent
    for folder in (Path.cwd() / "experiments", beside / "experiments"):
        if folder.is_dir() and any(_is_card(path) for path in folder.glob("*.py")):
            return folder
    raise UserError("no experiments/ with recipe cards here: run this in a clone of the onestep_jax repository")


def cards() -> dict[str, Path]:
    """Name → file of every card, in the order of their names."""
    return {path.stem: path for path in sorted(cards_folder().glob("*.py")) if _is_card(path)}


@functools.cache
def _is_card(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} >= set(_PARTS)


def load_card(name: str) -> ModuleType:
    """The module of a card.

    Raises:
      UserError: if there is no such card.
    """
    found = cards()
    check_known("experiment", [name], [*found, "all"])
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", found[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


def settings_of(card: ModuleType, size: str, changes: Mapping[str, str]) -> Any:
    """The card's settings: those of "paper", "packaged" or "smoke", with changes given as text.

    Raises:
      UserError: for a setting that the card does not have, or a value that does not fit it.
    """
    base = card.packaged() if size == "packaged" else card.config(size == "smoke")
    check_known(f"setting of {card.__name__.removeprefix('experiments.')}", changes, _fields(base))
    return dataclasses.replace(base, **{key: _parse(key, text, _fields(base)[key]) for key, text in changes.items()})


def _fields(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _parse(name: str, text: str, like: Any) -> Any:
    """Text as a value of the kind of `like`; the values of a tuple are separated by commas."""
    if isinstance(like, tuple):
        return tuple(_parse(name, part, like[0] if like else "") for part in text.split(",") if part)
    if isinstance(like, bool):
        check_known(f"value of --{name}", [text.lower()], ["true", "false"])
        return text.lower() == "true"
    try:
        return type(like)(text)
    except ValueError as error:
        raise UserError(f"--{name} {text}: expected a value like {like!r}") from error


def run_card(name: str, settings: Any, study: Study, command: str) -> dict[str, Any]:
    """Run one card into its folder; returns what its config.json then holds.

    Raises:
      UserError: if the folder holds the experiment with other settings.
    """
    card = load_card(name)
    identity = {"experiment": name, "settings": json.loads(json.dumps(dataclasses.asdict(settings)))}
    identity |= {"model": study.model.fingerprint}
    path = study.folder / "config.json"
    if path.exists():
        there = json.loads(path.read_text())
        differences = [key for key in identity if there.get(key) != identity[key]]
        if differences:
            key = differences[0]
            values = f"{key}: {there.get(key)!r} there, {identity[key]!r} here"
            raise UserError(f"{study.folder}: holds this experiment with other settings ({values}); give another --out")
    record = identity | {"title": title(card), "command": command, **versions()}
    with writing(path):
        replace(path, (json.dumps(record, indent=2) + "\n").encode())
    began = time.perf_counter()
    card.run(settings, study)
    record |= {"seconds of the last call": round(time.perf_counter() - began, 1)}
    record |= {"files": sorted({file.name for file in study.written})}
    with writing(path):
        replace(path, (json.dumps(record, indent=2) + "\n").encode())
    return record


def title(card: ModuleType) -> str:
    """First line of the card's docstring."""
    return (card.__doc__ or card.__name__).strip().split("\n")[0]

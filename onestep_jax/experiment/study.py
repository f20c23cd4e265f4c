"""What a recipe card works with: the model, texts, fits that resume, tables and figures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.fitting.fitting import fit
from onestep_jax.fitting.progress import Progress
from onestep_jax.model.decoder import Model
from onestep_jax.store.results import Results
from onestep_jax.store.storage import writing
from onestep_jax.texts.corpora import load_tokens


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

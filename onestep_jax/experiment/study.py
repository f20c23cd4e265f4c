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
from onestep_jax.prototokens.schemes import OneStep
from onestep_jax.store.records import no_formula
from onestep_jax.store.results import Results
from onestep_jax.store.storage import writing
from onestep_jax.texts.corpora import load_tokens


class Study:
    """What a card works with: the model, texts, fits that resume, and where its tables and figures go.

    Args:
      folder: of the experiment; created if it is not there.
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
        """Token ids of `count` texts of `length` tokens each; see `corpora.load_tokens`."""
        return load_tokens(self.model, source, count=count, length=length, seed=seed)

    def fit(self, name: str, tokens: Sequence[np.ndarray], *, model: Model | None = None, **options: Any) -> Results:
        """Fit token ids into the run directory `runs/NAME` of the experiment; the same call later resumes it.

        Cards repeat the paper, so the arrangement is the paper's `OneStep()` and not that of the preset, unless given.

        Args:
          name: of the run directory.
          tokens: token ids of each text.
          model: by default the model of the study.
          options: see `onestep_jax.fit`.
        """
        texts = [ids.tolist() for ids in tokens]
        options = {"scheme": OneStep()} | options
        return fit(model or self.model, texts, run=self.run_folder(name), progress=self.progress, **options)

    def run_folder(self, name: str) -> Path:
        """The run directory of that name."""
        return self.folder / "runs" / name

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, which all have the same keys, to NAME.csv, and print its path."""
        assert rows, f"{name}: a table without rows"
        assert all(list(row) == list(rows[0]) for row in rows), f"{name}: rows of different columns"
        path = self.folder / f"{name}.csv"
        with writing(path), path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
        self._wrote(path)

    @contextmanager
    def figure(
        self, name: str, *, columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.6, 3.6)
    ) -> Iterator[list[Any]]:
        """Axes to draw on, a list of rows · columns; the figure is written to NAME.png when the block ends.

        Args:
          name: of the figure.
          columns, rows: of axes.
          size: width and height of each axis, in inches.
        """
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
    """A floating-point number with six significant digits, a string that no spreadsheet computes, or what it is."""
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.6g}"
    return no_formula(value)

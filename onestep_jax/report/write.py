"""`write_report`: a table, figures and one page of stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from onestep_jax.report.data import write_table
from onestep_jax.report.figures import plot_curves, plot_run_bars, plot_text_bars
from onestep_jax.report.headline import headline
from onestep_jax.report.inputs import FittedRun, Progress, read_folders
from onestep_jax.report.page import page_html
from onestep_jax.store.storage import replace, writing


class Report(NamedTuple):
    """Paths of a report's files.

    Attributes:
      page: HTML, which needs no other file.
      table: CSV, one row for each text of a run; None without a run.
      figures: PNG.
    """

    page: Path
    table: Path | None
    figures: tuple[Path, ...]


def write_report(folders: Sequence[Path], out: Path, *, progress: Progress | None = None) -> Report:
    """Write a report of run directories, growths and experiment results; nothing is fitted and no weights are read.

    Args:
      folders: run directories, folders of `analysis.grow`, folders of experiment results (a config.json with the key
        "experiment", CSV and PNG files, perhaps run directories inside), or folders that hold any of them.
      out: folder to write into; it is made if necessary, and files of the same names are replaced.
      progress: called with the numbers of folders read and in all.

    Returns:
      The paths of report.html, texts.csv, capacity.png and the curves.

    Raises:
      UserError: for a folder that is none of them, a damaged run, one without a recorded text, or a full disk.
    """
    found = read_folders(folders, progress)
    out = Path(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        table = out / "texts.csv" if found.runs else None
        if table is not None:
            write_table(table, found.runs)
        figures = _figures(out, found.runs)
        page = out / "report.html"
        replace(page, page_html(found).encode(errors="backslashreplace"))
    return Report(page=page, table=table, figures=figures)


def _figures(out: Path, runs: Sequence[FittedRun]) -> tuple[Path, ...]:
    """The capacity bars, and the curves of each run."""
    if not runs:
        return ()
    bars = out / "capacity.png"
    if len(runs) == 1:
        plot_text_bars(runs[0].results, bars)
    else:
        plot_run_bars([run.name for run in runs], [headline(run) for run in runs], bars)
    made = [bars]
    for run in runs:
        name = "curves" if len(runs) == 1 else f"curves-{run.name.replace('/', '-')}"
        made.append(out / f"{name}.png")
        plot_curves(run.results, made[-1], [f"text {text.index}" for text in run.results])
    return tuple(made)

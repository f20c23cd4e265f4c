"""Progress bars and warnings on standard error, and the console that prints tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from onestep_jax.fitting.progress import Progress


def console(**options: Any) -> Any:
    """`rich.console.Console`, with its options; rich is imported where something is printed."""
    from rich.console import Console

    return Console(**options)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show what the package warns a user of in one line, as errors are shown; other warnings as Python does."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        if category is UserWarning:
            return f"onestep: warning: {message}\n"
        return usual(message, category, *place, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def fitting_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error; yields the callback that `fit` calls."""
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    with rich.Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None)

        def show(state: Progress) -> None:
            left = "?" if state.seconds_left is None else f"{state.seconds_left:.0f} s"
            counts = f"solved {state.solved} running {state.running} waiting {state.waiting}"
            words = f"{counts}, {state.steps_per_second:.0f} steps/s, left {left}"
            bar.update(task, description=words, completed=state.finished, total=state.texts)

        yield show


@contextmanager
def loading_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, removed once the weights are read; yields the callback that `load_model` calls."""
    from rich import progress as rich

    columns = (
        rich.TextColumn("loading weights"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
    )
    with rich.Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, removed at the end; yields the callback, which takes what is done and what there is."""
    from rich import progress as rich

    columns = (rich.TextColumn(what), rich.BarColumn(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

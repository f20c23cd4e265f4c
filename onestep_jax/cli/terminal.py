"""Progress bars and warnings on standard error, and the console that prints tables."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple, TextIO, TypeVar

from onestep_jax.encoder.training import Report
from onestep_jax.errors import redacted
from onestep_jax.fitting.progress import Progress

_T = TypeVar("_T")

# C0 and C1 (ESC, BEL, CSI, OSC, …), halves of surrogate pairs, and what breaks lines or turns the writing direction.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")
NARROWEST = 20  # characters that are taken for the width of a terminal


def printable(text: str, keep: str = "\n\t") -> str:
    """The text with control characters as escapes such as \\x1b, so that no text, path or name steers the terminal.

    Args:
      text: of any source.
      keep: control characters that stay.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a text that may hold anything; see `printable`."""
    print(printable(text), file=file, flush=file is sys.stderr)


def say_line(text: str) -> None:
    """Print one line on standard error: an error, a warning. Passwords and tokens are replaced."""
    if sys.stderr is not None:  # as it is where the caller has closed it; print would take standard output
        print(printable(redacted(text), keep=""), file=sys.stderr, flush=True)


def write_any_character() -> None:
    """Let standard output and error write as an escape what their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Let what standard output has not taken go, so that the end of the interpreter does not fail on it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(**options: Any) -> Any:
    """`rich.console.Console`, with its options, for tables and bars; rich is imported where something is printed.

    Square brackets and colons in strings have no meaning, and control characters are shown as escapes.
    """
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **how: Any) -> Any:
            return super().render_str(printable(text), **how)

    made = Plain(markup=False, emoji=False, **options)
    if made.width < NARROWEST:  # COLUMNS=0 means nothing, and would print nothing
        made.width = 80
    return made


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show what the package warns a user of in one line, as errors are shown; other warnings as Python does."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        if category is UserWarning:
            return f"onestep: warning: {printable(redacted(str(message)), keep='')}\n"
        return usual(message, category, *place, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


class _Work(NamedTuple):
    """What a bar of long work shows: words, and what is done of how many."""

    words: str
    done: int
    total: int


@contextmanager
def _working_bar(work_of: Callable[[_T], _Work]) -> Iterator[Callable[[_T], None]]:
    """A bar on standard error, of which nothing is left where nothing was done; yields what takes a report."""
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    with rich.Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None)

        def show(report: _T) -> None:
            work = work_of(report)
            bar.update(task, description=work.words, completed=work.done, total=work.total)

        try:
            yield show
        except BaseException:
            bar.live.transient = bar.live.transient or bar.tasks[0].total is None
            raise


def fitting_bar() -> AbstractContextManager[Callable[[Progress], None]]:
    """A bar on standard error; yields the callback that `fit` calls."""

    def work(state: Progress) -> _Work:
        left = "?" if state.seconds_left is None else f"{state.seconds_left:.0f} s"
        counts = f"solved {state.solved} running {state.running} waiting {state.waiting}"
        return _Work(f"{counts}, {state.steps_per_second:.0f} steps/s, left {left}", state.finished, state.texts)

    return _working_bar(work)


def training_bar() -> AbstractContextManager[Callable[[Report], None]]:
    """A bar on standard error; yields the callback that `train_encoder` calls."""
    held_out = ""

    def work(report: Report) -> _Work:
        nonlocal held_out
        if report.validation is not None:
            length, figures = report.validation
            exact = f"{figures.exact_K[-1]:.0%} of texts exact"
            held_out = f", held-out {length} tokens: {figures.accuracy_K[-1]:.0%} right, {exact}"
        now = f"{report.length} tokens, {report.corrections} corrections: {report.nats:.2f} nats"
        words = f"{now}, {report.accuracy:.0%} right, {report.tokens_per_second:.0f} tokens/s{held_out}"
        return _Work(words, report.update, report.updates)

    return _working_bar(work)


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
    screen = console(stderr=True)
    with rich.Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, removed at the end; yields the callback, which takes what is done and what there is."""
    from rich import progress as rich

    columns = (rich.TextColumn(what), rich.BarColumn(), rich.MofNCompleteColumn())
    screen = console(stderr=True)
    with rich.Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

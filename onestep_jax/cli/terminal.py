"""What the commands look like: tables and progress bars on the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def console(**options: Any) -> Any:
    from rich.console import Console

    return Console(**options)


@contextmanager
def fitting_bar() -> Iterator[Callable[[Any], None]]:
    """A bar on standard error; yields the callback that `fit` calls."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None)

        def show(state: Any) -> None:
            left = "?" if state.seconds_left is None else f"{state.seconds_left:.0f} s"
            counts = f"solved {state.solved} running {state.running} waiting {state.waiting}"
            words = f"{counts}, {state.steps_per_second:.0f} steps/s, left {left}"
            bar.update(task, description=words, completed=state.finished, total=state.texts)

        yield show


@contextmanager
def loading_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, gone when the weights are there; yields the callback that `load_model` calls."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, gone at the end; yields the callback for what is done and what there is to do."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_rows(rows: list[dict[str, Any]], title: str) -> None:
    """A table of rows with the same keys; median, least and most of a thing share a column, lists are left out."""
    from rich.table import Table

    ranges = [name.removesuffix(" median") for name in rows[0] if name.endswith(" median")]
    hidden = {f"{name} {which}" for name in ranges for which in ("least", "most")}
    names = [name for name, value in rows[0].items() if not isinstance(value, list) and name not in hidden]
    table = Table(*(name.removesuffix(" median") for name in names), title=title, title_justify="left")
    for row in rows:
        cells = []
        for name in names:
            shown = _shown(row[name])
            if name.endswith(" median"):
                least, most = (_shown(row[name.replace(" median", end)]) for end in (" least", " most"))
                shown += f" ({least} to {most})"
            cells.append(shown)
        table.add_row(*cells)
    console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def settings(values: Any) -> str:
    """The fields of a dataclass as lines."""
    fields = dataclasses.asdict(values)
    return "\n".join(f"  --{name.replace('_', '-'):20} {value}" for name, value in fields.items())


def print_facts(facts: dict[str, Any]) -> None:
    """What `onestep info` says of a model, with what a reader needs to know beside each number."""
    from rich.table import Table

    fit, memory, counts = facts["fit"], facts["fit_memory_bytes"], facts["parameters"]
    table = Table(show_header=False, title=f"{facts['model']}: {facts['architecture']['family']}", title_justify="left")
    for name, value in facts["architecture"].items():
        if name not in ("family", "pattern"):
            table.add_row(name, str(value))
    table.add_row("input vector", f"{facts['input_width']} wide")
    pattern = [", ".join(_flat(layer)) for layer in facts["architecture"]["pattern"]]
    for layer in dict.fromkeys(pattern):
        count = f"{pattern.count(layer)} of {len(pattern)} layers" if len(pattern) > 1 else "every layer"
        table.add_row(count, layer)
    table.add_section()
    table.add_row("parameters", f"{counts['total']:,}; touched by a step {counts['touched']:,}")
    table.add_row("size", ", ".join(f"{_size(count)} in {name}" for name, count in facts["bytes"].items()))
    parts = " + ".join(f"{name} {_size(memory[name])}" for name in ("weights", "state", "working"))
    where = f"{fit['slots']} slots of {fit['length']} tokens in {fit['dtype']} on one {fit['device']}"
    table.add_row("memory of a fit", f"{_size(memory['total'])} ({parts}) for {where}")
    flops = f"{facts['flops_per_text_step'] / 1e9:,.3g} GFLOP at {fit['length']} tokens"
    table.add_row("work of a text-step", flops)
    for name in ("fingerprint", "input_scale"):
        if name in facts:
            table.add_row(name.replace("_", " "), str(facts[name]))
    console().print(table)


def print_status(status: Any) -> None:
    """What `onestep status` says of a run."""
    from rich.table import Table

    table = Table(show_header=False)
    ends = ", ".join(f"{status.counted(name)} {name}" for name in ("solved", "exhausted", "failed"))
    table.add_row("texts", f"{len(status.recorded):,} of {status.texts:,} recorded: {ends}")
    steps = [flight.steps for flight in status.in_flight]
    reach = f", saved at {min(steps):,} to {max(steps):,} steps" if steps else ""
    table.add_row("in flight", f"{len(steps):,}{reach}")
    table.add_row("rate", "none yet" if status.an_hour is None else f"{status.an_hour:,.4g} texts an hour")
    if status.session:
        session = status.session
        table.add_row("session", f"{session.number}, processes: {session.processes}, begun {session.since}")
    table.add_row("now", f"going on: {status.owner}" if status.owner else "not going on")
    table.add_row("a resume" if not status.owner else "still", status.outlook)
    console().print(table)
    for row in status.failures:
        print(f"failed: [{row['index']}] {row['text_id']} after {row['steps']} steps")


def print_verification(found: Any, kept: int | None) -> None:
    """What `onestep verify` says of a run; `kept` are texts of damaged parts that were saved, if it set those aside."""
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("parts, saved states", f"{found.parts:,}, {found.states:,}")
    table.add_row("texts", f"{found.recorded:,} of {found.texts:,} recorded and whole")
    table.add_row("decoded again", f"{found.decoded:,}")
    if found.twice:
        table.add_row("recorded twice, alike", f"{found.twice:,}; the next onestep fit on the run clears that")
    if found.foreign:
        table.add_row("foreign files", f"{len(found.foreign):,}, left where they are")
    table.add_row("problems", f"{len(found.problems):,}")
    console().print(table)
    for problem in found.problems:
        print(problem)
    for path in found.foreign:
        print(f"{path}: no file of a run")
    if kept is not None:
        print(
            f"damaged parts and states moved to damaged/, {kept} whole texts of them kept; fit again makes the others"
        )
    elif any(problem.damage for problem in found.problems):
        print("onestep verify --drop moves what is damaged to damaged/, so that the same onestep fit makes it again")


def _flat(layer: dict[str, Any]) -> Iterator[str]:
    """The facts of a layer that are not the usual ones."""
    for name, value in layer.items():
        if name == "rope":
            rope = None if value is None else " ".join(f"{key} {number}" for key, number in value.items())
            yield "no RoPE" if rope is None else f"RoPE {rope}".strip()
        else:
            yield f"{name} {value}"


def _size(count: int) -> str:
    """Bytes for people."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.0f} {name}" if count >= 100 * unit else f"{count / unit:,.3g} {name}"
    return f"{count} bytes"

"""The sections of the page on experiments, and on the configuration of each run and the commands that resume it."""

from __future__ import annotations

import base64
import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep_jax.errors import UserError, redacted
from onestep_jax.report.inputs import Experiment, FittedRun
from onestep_jax.report.markup import Markup, join, one_line, tag, visible
from onestep_jax.report.sections import section, table
from onestep_jax.report.wording import fit_command

ROWS = 200  # of a CSV file that are shown


def experiments(found: Sequence[Experiment]) -> Markup:
    """Figures and tables of each experiment under its title."""
    parts = []
    for one in found:
        parts.append(tag("h3", visible(one.title)))
        parts += [_figure(one, path) for path in one.figures]
        parts += [_table(one, path) for path in one.tables]
        config = {key: value for key, value in one.config.items() if key != "captions"}
        parts.append(_details(f"Settings of {visible(one.title)}", _settings("Settings", config)))
    return section("experiments", "Experiments", *parts)


def _figure(one: Experiment, path: Path) -> Markup:
    caption = visible(one.caption(path))
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    image = tag("img", src=source, alt=f"Figure of {visible(one.title)}: {caption}")
    return tag("figure", image, tag("figcaption", caption), class_="picture")


def _table(one: Experiment, path: Path) -> Markup:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no CSV in UTF-8 ({error}); make the experiment's results again") from error
    if not head:
        return tag("p", f"{path.name} is empty.", class_="note")
    rows = [[*row, *[""] * (len(head) - len(row))][: len(head)] for row in rows if row]
    words = frozenset(i for i in range(len(head)) if not all(_is_number(row[i]) for row in rows))
    caption = f"{visible(one.caption(path))} ({path.name})"
    if len(rows) > ROWS:
        caption += f", the first {ROWS} of {len(rows):,} rows"
    shown = [[one_line(cell) for cell in row] for row in rows[:ROWS]]
    return table(caption, [one_line(name) for name in head], shown, words=words)


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True


def configuration(runs: Sequence[FittedRun]) -> Markup:
    """Commands, settings, versions and commit of each run; with several runs, those of each can be unfolded."""
    parts = []
    for run in runs:
        several = len(runs) > 1
        commands = (
            join([tag("p", words), tag("pre", tag("code", visible(redacted(line))), tabindex=0)])
            for words, line in _commands(run)
        )
        name = f"All settings of {visible(run.name)}" if several else "All settings"
        settings = _settings(name, run.config)
        if several:
            parts.append(_details(visible(run.name), join([_made_by(run), *commands, settings])))
        else:
            parts += [_made_by(run), *commands, _details(name, settings)]
    return section("configuration", "Configuration", *parts)


def _made_by(run: FittedRun) -> Markup:
    settings = run.settings
    versions = ", ".join(f"{name} {version}" for name, version in (settings.get("versions") or {}).items())
    device = settings.get("device", "not recorded")
    facts = {"Folder": run.folder, "Commit": settings.get("commit") or "not recorded"}
    facts |= {"Versions": versions or "not recorded", "Devices": f"{settings.get('devices', '–')} × {device}"}
    pairs = [join([tag("dt", name), tag("dd", visible(redacted(str(words))))]) for name, words in facts.items()]
    return tag("dl", *pairs, class_="facts")


def _commands(run: FittedRun) -> Iterator[tuple[str, str]]:
    folder = shlex.quote(str(run.folder))
    if command := fit_command(run.folder, run.identity, run.settings):
        yield (
            "To go on with the run, or to make it again; SOURCE stands for its texts, whose place is not recorded:",
            command,
        )
    else:
        yield (
            "The run was made from Python; the same call of fit resumes it:",
            f"onestep_jax.fit(…, run={str(run.folder)!r})",
        )
    yield (
        "To reconstruct its texts in one forward pass each, and to take its vectors along:",
        (f"onestep decode {folder}\nonestep export {folder} --out vectors.safetensors"),
    )


def _settings(caption: str, config: Mapping[str, Any]) -> Markup:
    rows = [(visible(name), one_line(str(value))) for name, value in _flat(config)]
    return table(caption, ("Setting", "Value"), rows, words=frozenset({0, 1}))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value) of nested settings."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _details(title: str, content: Markup) -> Markup:
    return tag("details", tag("summary", title), content)

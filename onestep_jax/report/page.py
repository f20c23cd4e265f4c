"""The page: one HTML file with its style, script and data inside. Its security policy forbids to fetch anything."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from importlib.resources import files
from string import Template

from onestep_jax.report import experiment_section, growth_section, sections
from onestep_jax.report.data import page_data, shown_texts
from onestep_jax.report.inputs import Found
from onestep_jax.report.markup import Markup, embedded, join, tag, visible


def page_html(found: Found) -> str:
    """Make the whole page.

    Args:
      found: at least one run, growth or experiment.
    """
    runs, shown = found.runs, shown_texts(found.runs)
    parts = []
    if runs:
        parts += [sections.summary(runs, found.notes), sections.capacity(runs, shown), _texts(found, shown)]
        parts += [sections.loss_and_accuracy(runs, shown)]
    if found.growths:
        parts.append(growth_section.growth(found.growths, () if runs else found.notes))
    if found.experiments:
        parts.append(experiment_section.experiments(found.experiments))
    if runs:
        parts.append(experiment_section.configuration(runs))
    title = _title(found)
    style, script = _piece("page.css"), _piece("page.js")
    return Template(_piece("page.html")).substitute(
        title=join([title]),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        style=style,
        script=script,
        subtitle=_subtitle(found),
        links=_links(found),
        body=join(parts),
        data=embedded(page_data(runs, shown) | growth_section.stage_data(found.growths)),
        version=importlib.metadata.version("onestep_jax"),
    )


def _piece(name: str) -> str:
    return (files("onestep_jax.report") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """Hash by which a content security policy allows this inline script or style and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _title(found: Found) -> str:
    """The name of the only experiment, run or growth, or how many there are."""
    if len(found.experiments) == 1:
        (experiment,) = found.experiments
        if all(run.folder.is_relative_to(experiment.folder) for run in (*found.runs, *found.growths)):
            return visible(experiment.title)
    made = [*found.runs, *found.growths]
    if len(made) == 1:
        return visible(made[0].name)
    counts = {"runs": len(found.runs), "growths": len(found.growths), "experiments": len(found.experiments)}
    return next(f"{count} {kind}" for kind, count in counts.items() if count)


def _subtitle(found: Found) -> Markup:
    count = sum(len(run.results) for run in found.runs)
    exact = sum(run.results.solved for run in found.runs)
    words = f"{count:,} {'text' if count == 1 else 'texts'}, {exact:,} of them exact, from a frozen language model"
    grown = sum(len(one.table.texts) for one in found.growths)
    words = (
        words if found.runs or not grown else f"{grown:,} {'text' if grown == 1 else 'texts'} that grew, token by token"
    )
    return tag("p", words if found.runs or grown else "Results of experiments", class_="subtitle")


def _links(found: Found) -> Markup:
    names = {"summary": "Summary", "capacity": "Capacity", "texts": "Texts", "curves": "Curves"} if found.runs else {}
    names |= {"growth": "Growth"} if found.growths else {}
    names |= {"experiments": "Experiments"} if found.experiments else {}
    names |= {"configuration": "Configuration"} if found.runs else {}
    return tag("ul", *(tag("li", tag("a", name, href=f"#{place}")) for place, name in names.items()))


def _texts(found: Found, shown: list) -> Markup:
    """The section of texts: plain tables, and the frame that the script fills."""
    several = len(found.runs) > 1
    options = [tag("option", "all runs", value="")]
    options += [tag("option", visible(run.name), value=i) for i, run in enumerate(found.runs)]
    chooser = tag("label", "Run", tag("select", *options, id="run")) if several else ""
    frame = Template(_piece("texts.html")).substitute(runs=chooser)
    tables = tag(
        "details", tag("summary", "The same as a table"), sections.text_tables(found.runs, shown), open=True, id="plain"
    )
    return sections.section("texts", "Texts", *sections.text_notes(found.runs, shown), Markup(frame), tables)

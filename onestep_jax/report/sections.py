"""The sections of the page that need no script: summary, capacity, curves, and the texts as plain tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onestep_jax.analysis import THRESHOLD, bits, exact_horizon
from onestep_jax.fitting.optimizers import AUTO, protocol
from onestep_jax.prototokens.schemes import from_description
from onestep_jax.report import charts
from onestep_jax.report.data import text_strings
from onestep_jax.report.headline import Headline, Sizes, headline, sizes
from onestep_jax.report.inputs import FittedRun
from onestep_jax.report.markup import Markup, join, one_line, tag, visible
from onestep_jax.report.wording import accuracy, asked, duration, model_name, notation, number, size
from onestep_jax.store.results import TextResult

CURVED_RUNS = 12  # runs whose curves are drawn


def section(name: str, title: str, *content: str) -> Markup:
    """A section element with its heading, which labels it."""
    heading = tag("h2", title, id=f"{name}-heading")
    return tag("section", heading, *content, id=name, aria_labelledby=f"{name}-heading")


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str | int]], *, words: frozenset[int] = frozenset()
) -> Markup:
    """A table; its first column names the rows, the columns in `words` are text, the others numbers."""
    first = tag(
        "tr", *(tag("th", name, scope="col", class_=None if i in words else "n") for i, name in enumerate(head))
    )
    body = []
    for row in rows:
        cells = [tag("th", row[0], scope="row", class_=None if 0 in words else "n")]
        cells += [tag("td", cell, class_=None if i in words else "n") for i, cell in enumerate(row[1:], start=1)]
        body.append(tag("tr", *cells))
    made = tag("table", tag("caption", caption), tag("thead", first), tag("tbody", *body))
    return scrolling(made, caption)


def scrolling(content: Markup, label: str) -> Markup:
    """A box in which a wide element scrolls, also by keyboard."""
    return tag("div", content, class_="scroll", tabindex=0, role="group", aria_label=label)


# --- summary ---


def summary(runs: Sequence[FittedRun], notes: Sequence[str]) -> Markup:
    """Settings and results: tiles for one run, a table for several."""
    numbers = [headline(run) for run in runs]
    remarks = [tag("p", note, class_="note") for note in (*_unfinished(runs, numbers), *map(visible, notes))]
    if len(runs) == 1:
        parts = [_tiles(numbers[0]), _facts(runs[0], numbers[0]), _bytes(sizes(runs[0]))]
    else:
        parts = [_runs_table(runs, numbers), _bytes_table(runs)]
    return section("summary", "Summary", *remarks, *parts)


def _unfinished(runs: Sequence[FittedRun], numbers: Sequence[Headline]) -> Iterator[str]:
    for run, one in zip(runs, numbers, strict=True):
        if one.texts < one.planned:
            which = "This run" if len(runs) == 1 else f"Run {visible(run.name)}"
            yield (
                f"{which} is unfinished: {one.texts} of its {one.planned} texts are recorded, and all numbers are of "
                "those. The command that made it goes on where it stopped."
            )


def _tiles(one: Headline) -> Markup:
    more = f"{number(bits(one.nats))} bits; {number(one.nats / one.texts, 1)} nats a text"
    tiles = [
        ("Exact texts", f"{one.exact} of {one.texts}", "every token right"),
        ("Reconstructed texts", f"{one.reconstructed} of {one.texts}", f"accuracy ≥ {THRESHOLD}"),
        ("Mean accuracy", accuracy(one.accuracy), "of a text"),
        ("Exact tokens", f"{one.c_tokens:,} of {one.tokens:,}", "C_tokens, all texts"),
        ("Information (H_LM)", f"{number(one.nats)} nats", more),
        ("Steps", number(one.steps), "median of a text"),
        ("Time", duration(one.seconds), "wall-clock, shared out to the texts"),
    ]
    cells = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", more, class_="more")) for name, value, more in tiles
    ]
    return tag("dl", *cells, class_="tiles")


def _facts(run: FittedRun, one: Headline) -> Markup:
    identity, settings = run.identity, run.settings
    lengths = sorted({len(text.tokens) for text in run.results})
    span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    seeds = identity.get("seeds", 1)
    budget = f"{number(identity.get('steps'))} gradient evaluations a text"
    if seeds != 1:
        budget += ", over as many seeds as they last for" if seeds == AUTO else f" and seed, up to {seeds} seeds"
    facts = [
        ("Model", f"{visible(model_name(settings))}, {identity.get('dtype', 'dtype not recorded')}, frozen"),
        ("Input", notation(run.results.scheme)),
        ("Protocol", protocol(identity, settings)),
        *asked(identity),
        ("Texts", f"{one.texts} of {span} tokens"),
        ("Budget", budget),
        ("H_LM", _first_term(settings.get("h_lm of the first token"))),
    ]
    return tag("dl", *(join([tag("dt", name), tag("dd", words)]) for name, words in facts), class_="facts")


def _first_term(how: str | None) -> str:
    """Eq. 3 does not say what the first token is predicted from; the run does."""
    words = {"left out": "without the first token, which has no context", "given BOS": "the first token follows BOS"}
    words["given the prefix"] = "the first token follows the prefix"
    return f"−Σ ln P(tᵢ | t₁ … tᵢ₋₁) of the same model; {words.get(str(how), 'its first term is not recorded')}"


def _bytes(one: Sizes) -> Markup:
    forms = [
        ("Text, UTF-8", one.text),
        (f"Token ids, {one.id_bits} bits each", one.ids),
        ("Arithmetic code under the same model", one.code),
        ("Learned vectors, float32", one.vectors),
    ]
    known = [(name, count) for name, count in forms if count is not None]
    most = max(count for _, count in known)
    rows = [(name, size(count), _meter(count / most)) for name, count in known]
    made = table("What the texts take", ("Form", "Size", "Compared"), rows, words=frozenset({0, 2}))
    return tag("div", made, tag("p", not_compression(one), class_="note"), class_="bytes")


def _meter(share: float) -> Markup:
    bar = tag("rect", width=f"{100 * share:.2f}", height=6, rx=1, class_="bar exact")
    return tag("svg", bar, viewBox="0 0 100 6", preserveAspectRatio="none", aria_hidden="true", class_="meter")


def not_compression(one: Sizes) -> str:
    """A note: few vectors for many tokens are not file compression."""
    name, plain = ("token ids", one.ids) if one.text is None else ("text itself", one.text)
    ratio = one.vectors / max(1, plain)
    times = f"{ratio:.1f} times" if ratio >= 1 else f"{ratio:.0%} of"
    return (
        f"This is no file compression: the learned vectors take {size(one.vectors)}, {times} the {name}, and whoever "
        "reads them needs the whole model besides. Few vectors stand for many tokens, not few bytes for many."
    )


def _runs_table(runs: Sequence[FittedRun], numbers: Sequence[Headline]) -> Markup:
    head = "Run|Model|Input|Texts|Exact|≥ 0.99|Mean accuracy|C_tokens|H_LM, nats|H_LM, bits|Median steps|Time".split(
        "|"
    )
    rows = []
    for run, one in zip(runs, numbers, strict=True):
        row = [visible(run.name), visible(run.results.source), notation(run.results.scheme), one.texts, one.exact]
        row += [one.reconstructed, accuracy(one.accuracy), f"{one.c_tokens:,} of {one.tokens:,}", number(one.nats)]
        rows.append([*row, number(bits(one.nats)), number(one.steps), duration(one.seconds)])
    return table("The runs", head, rows, words=frozenset({0, 1, 2}))


def _bytes_table(runs: Sequence[FittedRun]) -> Markup:
    head = ("Run", "Text, UTF-8", "Token ids", "Arithmetic code under the model", "Learned vectors")
    rows = []
    for run in runs:
        one = sizes(run)
        rows.append(
            [visible(run.name), *("–" if x is None else size(x) for x in (one.text, one.ids, one.code, one.vectors))]
        )
    words = (
        "This is no file compression: compare the vectors with the text, and remember that whoever reads them needs "
        "the whole model besides. Few vectors stand for many tokens, not few bytes for many."
    )
    return join(
        [table("What the texts of each run take", head, rows, words=frozenset({0})), tag("p", words, class_="note")]
    )


# --- capacity and curves ---


def capacity(runs: Sequence[FittedRun], shown: Sequence[Sequence[TextResult]]) -> Markup:
    """Bars as in Figure 1 of the paper: one for each text of one run, or three for each of several runs."""
    if len(runs) == 1:
        chart = charts.text_bars(
            shown[0], f"Bar chart: exact tokens of {len(shown[0])} texts; numbers in the table below"
        )
        kinds = [("exact", "exact"), ("near", f"accuracy ≥ {THRESHOLD}"), ("partly", "less"), ("length", "length")]
        words = "Exact tokens (C_tokens, Eq. 2) of each text, in front of its length. "
    else:
        names = [run.name for run in runs]
        chart = charts.run_bars(
            names, [headline(run) for run in runs], "Bar chart: three measures of capacity for each run"
        )
        kinds = [("mean", "mean C_tokens of a text"), ("near", f"longest text, accuracy ≥ {THRESHOLD}")]
        kinds += [("exact", "longest exact text")]
        words = "Reconstructed tokens of each run. "
    keys = [tag("span", _swatch(kind), label, class_="key") for kind, label in kinds]
    figure = tag("figure", scrolling(chart, "Capacity"), tag("figcaption", words, *keys))
    return section("capacity", "Capacity", figure)


def _swatch(kind: str) -> Markup:
    box = tag("rect", width=14, height=14, rx=2, class_=f"bar {kind}")
    return tag("svg", box, viewBox="0 0 14 14", aria_hidden="true", class_="swatch")


def loss_and_accuracy(runs: Sequence[FittedRun], shown: Sequence[Sequence[TextResult]]) -> Markup:
    """Small multiples: two panels for each run, all with the same scale of steps."""
    drawn = list(zip(runs, shown, strict=True))[:CURVED_RUNS]
    trials = [trial for _, texts in drawn for text in texts if (trial := text.best_trial) and len(trial.trace)]
    limit = max((float(trial.trace[-1, 0]) for trial in trials), default=None)
    figures = []
    for run, texts in drawn:
        name = "" if len(runs) == 1 else f" of {visible(run.name)}"
        panels = []
        for measure, label in (("loss", "Training loss, nats per token"), ("accuracy", "Accuracy")):
            svg = charts.curves(
                texts, measure, f"Line chart: {label.lower()}{name}, {len(texts)} texts and median", limit
            )
            panels.append(tag("div", tag("p", label, class_="axis"), svg, class_="panel-box"))
        caption = "Thin: one text each. Bold: their median, in which a finished text counts on with its last value."
        body = tag("figure", tag("div", *panels, class_="panels"), tag("figcaption", caption))
        figures.append(join([tag("h3", visible(run.name)), body]) if len(runs) > 1 else body)
    if len(runs) > CURVED_RUNS:
        figures.append(
            tag("p", f"Curves of the first {CURVED_RUNS} of {len(runs)} runs; give fewer to see the others.")
        )
    return section("curves", "Loss and accuracy", *figures)


# --- texts ---


def text_tables(runs: Sequence[FittedRun], shown: Sequence[Sequence[TextResult]]) -> Markup:
    """All shown texts as plain tables, for pages without script and as an alternative to coloured tokens."""
    parts = []
    for run, texts in zip(runs, shown, strict=True):
        caption = "Texts" if len(runs) == 1 else f"Texts of {visible(run.name)}"
        head = ("#", "Text", "One forward pass", "Exact", "Accuracy", "Exact horizon", "H_LM, nats", "Steps", "Status")
        rows = [_text_row(run, text) for text in texts]
        parts.append(table(caption, head, rows, words=frozenset({1, 2, 8})))
    return join(parts)


def _text_row(run: FittedRun, text: TextResult) -> list[str | int]:
    target, output = text_strings(run, text)
    same, exact = text.c_tokens == len(text.tokens), exact_horizon(text.predicted, text.tokens)
    row: list[str | int] = [text.index, one_line(target), "the same" if same else one_line(output)]
    row += [f"{text.c_tokens} of {len(text.tokens)}", accuracy(text.accuracy), exact]
    return [*row, number(text.h_lm, 1), number(text.steps), text.status]


def text_notes(runs: Sequence[FittedRun], shown: Sequence[Sequence[TextResult]]) -> list[Markup]:
    """Notes on what the page does not show of the texts, and why."""
    notes = []
    for reason in dict.fromkeys(run.without for run in runs if run.tokenizer is None):
        notes.append(f"Token ids are shown in place of words: no tokenizer could be had ({visible(reason)}).")
    for run in runs:
        if from_description(run.results.scheme).teacher_forced:
            notes.append(
                f"In {visible(run.name)} tokens count as right under teacher forcing, each predicted after the true "
                "tokens before it. That is not generation, which one early error derails."
            )
    count, total = sum(map(len, shown)), sum(len(run.results) for run in runs)
    if count < total:
        notes.append(f"The page holds {count:,} of {total:,} texts, the first ones of each run; texts.csv has all.")
    return [tag("p", note, class_="note") for note in notes]

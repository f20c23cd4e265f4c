"""The section of the page on texts that grew token by token: a slider over the stages, which shows the text appear.

Without a script the page shows the last stage of each text, and all stages as a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onestep_jax.analysis.growth import Stage, stages
from onestep_jax.fitting.optimizers import AUTO, protocol
from onestep_jax.report.inputs import GrownTexts
from onestep_jax.report.markup import Markup, join, tag, visible
from onestep_jax.report.sections import section, table
from onestep_jax.report.token_strings import token_pieces
from onestep_jax.report.wording import accuracy, model_name, notation, number

STAGES = 4000  # on the page, over all growths; they bound its size
NAMED = 3  # wrong tokens of a stage that are named


def growth(found: Sequence[GrownTexts], notes: Sequence[str] = ()) -> Markup:
    """Settings of each growth, a row for each text, and the texts with their stages.

    Args:
      found: at least one.
      notes: a sentence for each that was left out.
    """
    parts = [tag("p", visible(note), class_="note") for note in notes]
    for reason in dict.fromkeys(one.without for one in found if one.tokenizer is None):
        told = f"Token ids are shown in place of words: no tokenizer could be had ({visible(reason)})."
        parts.append(tag("p", told, class_="note"))
    parts.append(tag("p", _LEGEND, class_="legend"))
    shown = _shown(found)
    for which, one in enumerate(found):
        parts += [tag("h3", visible(one.name))] if len(found) > 1 else []
        grown = [_stages(one, text) for text in range(len(one.table.texts))]
        parts += [_facts(one), _texts_table(one, grown)]
        cards = [(place, text) for place, (of, text) in enumerate(shown) if of == which]
        parts += [_card(one, text, grown[text], place, len(found) > 1) for place, text in cards]
        if left := sum(map(bool, grown)) - len(cards):
            parts.append(tag("p", f"The page is too small for the stages of {left:,} more texts.", class_="note"))
    return section("growth", "Growth", *parts)


_LEGEND = (
    "The slider goes through the stages of a text, one length each. Tinted: right. Underlined: not right before the "
    "first step of the stage. Wavy underline: wrong at its end."
)


def stage_data(found: Sequence[GrownTexts]) -> dict[str, Any]:
    """The data that the page's script shows stages from; nothing without a growth.

    Returns:
      "growths": for each card in turn, its stages. Of a stage: "length" in tokens; "found", the positions, counted from
      0, that were not right before its first step; "wrong", position → what came out, in words; "said", a sentence.
    """
    if not found:
        return {}
    cards = []
    for which, text in _shown(found):
        one = found[which]
        pieces = _pieces(one, text)
        cards.append([_stage_data(one, stage, pieces) for stage in _stages(one, text)])
    return {"growths": cards}


def _stage_data(one: GrownTexts, stage: Stage, pieces: Sequence[str]) -> dict[str, Any]:
    return {
        "length": stage.length,
        "found": _found(stage),
        "wrong": _wrong(one, stage, pieces),
        "said": _said(one, stage, pieces),
    }


def _shown(found: Sequence[GrownTexts]) -> list[tuple[int, int]]:
    """(growth, text) of the first texts of each growth that have a stage, as many as the page may hold."""
    shown = []
    for which, one in enumerate(found):
        left = STAGES // len(found)
        for text in range(len(one.table.texts)):
            count = len(one.table.row(text))
            left -= count
            if count and (left >= 0 or not any(place[0] == which for place in shown)):
                shown.append((which, text))
    return shown


def _stages(one: GrownTexts, text: int) -> list[Stage]:
    return stages(one.table, text, threshold=one.settings["threshold"])


# --- settings, and a row for each text ---


def _facts(one: GrownTexts) -> Markup:
    identity, settings = one.config["identity"], one.config["settings"]
    fresh, total = one.settings.get("fresh"), one.settings.get("total")
    lengths = list(one.table.lengths)
    step = lengths[1] - lengths[0] if len(lengths) > 1 else 1
    budget = f"{number(identity.get('steps'))} gradient evaluations a stage"
    if fresh == AUTO:
        budget += ", over as many seeds as they last for"
    elif fresh:
        budget += f" and seed, up to {fresh} fresh seeds after the warm start"
    budget += f"; {number(total)} in all" if total else ""
    failures = one.settings.get("failures", 1)
    facts = [
        ("Model", f"{visible(model_name(settings))}, {identity.get('dtype', 'dtype not recorded')}, frozen"),
        ("Input", notation(one.table.scheme)),
        ("Protocol", protocol(identity, settings)),
        ("Stages", f"{lengths[0]} to {lengths[-1]} tokens, {step} more each time"),
        ("Budget", budget),
        ("A text ends", "after a stage that fails" if failures == 1 else f"after {failures} stages in a row that fail"),
        ("Folder", visible(str(one.folder))),
    ]
    return tag("dl", *(join([tag("dt", name), tag("dd", words)]) for name, words in facts), class_="facts")


def _texts_table(one: GrownTexts, grown: Sequence[Sequence[Stage]]) -> Markup:
    head = ("Text", "Capacity, tokens", "H_LM, nats", "Exact tokens", "Stages", "Evaluations", "Last stage")
    rows: list[list[str | int]] = []
    for i, (of_text, tried) in enumerate(zip(grown, map(one.table.tried, range(len(grown))), strict=True)):
        if not of_text:
            rows.append([i, "–", "–", "–", 0, 0, "not begun"])
            continue
        reached = max((stage for stage in of_text if stage.solved), key=lambda stage: stage.length, default=None)
        exact = max((stage.length for stage in of_text if stage.result.accuracy == 1), default=0)
        last = of_text[-1]
        how = (
            "failed"
            if not last.solved
            else "solved, the last length"
            if last.length == tried[-1]
            else "solved; the next is not recorded"
        )
        row: list[str | int] = [i, reached.length if reached else 0, number(reached.result.h_lm if reached else 0, 1)]
        rows.append([*row, exact, len(of_text), number(last.spent), f"{last.length} tokens, {how}"])
    return table("Texts that grew", head, rows, words=frozenset({6}))


# --- a text with its stages ---


def _card(one: GrownTexts, text: int, grown: Sequence[Stage], place: int, several: bool) -> Markup:
    """A text at its last stage, the slider, and the stages as a table."""
    title, last = f"{visible(one.name)}, text {text}" if several else f"Text {text}", grown[-1]
    reached = max((stage.length for stage in grown if stage.solved), default=0)
    line = [tag("h3", title, id=f"growth-{place}"), tag("span", f"{reached} tokens held", class_="badge")]
    line += [tag("span", f"{len(grown)} stages"), tag("span", f"{last.spent:,} evaluations")]
    ranged = {"min": 1, "max": len(grown), "step": 1, "value": len(grown), "autocomplete": "off"}
    slider = tag("label", "Stage", tag("input", type="range", **ranged), class_="stage", hidden=True)
    pieces = _pieces(one, text)
    now = tag("output", _said(one, last, pieces))
    every = tag("details", tag("summary", f"All stages of text {text} as a table"), _stages_table(grown, text))
    content = [tag("div", *line, class_="line"), slider, _tokens(one, last, pieces), now, every]
    return tag("article", *content, class_="card", data_growth=str(place), aria_labelledby=f"growth-{place}")


def _tokens(one: GrownTexts, last: Stage, pieces: Sequence[str]) -> Markup:
    """Every token that a stage has asked for, marked as the last stage left it."""
    found, wrong = set(_found(last)), _wrong(one, last, pieces)
    spans: list[str] = []
    for i, piece in enumerate(pieces):
        kind = f"token {'wrong' if i in wrong else 'right'}{' found' if i in found else ''}"
        shown = piece.replace("\n", "↵\n").replace("\t", "⇥\t") or "∅"
        spans += [" "] if i and one.tokenizer is None else []
        spans.append(tag("span", shown, class_=kind, title=wrong.get(i), hidden=i >= last.length))
    return tag("p", *spans, class_="tokens", dir="auto")


def _pieces(one: GrownTexts, text: int) -> list[str]:
    """Strings of the tokens of the longest stage of a text."""
    longest = max(one.table.row(text))
    return [visible(piece) for piece in token_pieces(one.tokenizer, one.table.texts[text][:longest])]


def _found(stage: Stage) -> list[int]:
    """Positions that were not right before the first step of a stage, as far as the trials are recorded."""
    trials = stage.result.trials
    return np.flatnonzero(trials[0].first_hit != 0).tolist() if trials else []


def _wrong(one: GrownTexts, stage: Stage, pieces: Sequence[str]) -> dict[int, str]:
    """Position of each wrong token → what came out in its place."""
    predicted, tokens = stage.result.predicted, stage.result.tokens
    wrong = np.flatnonzero(predicted != tokens).tolist()
    got = token_pieces(one.tokenizer, predicted) if wrong else []
    return {i: f"{_quoted(visible(got[i]))} in place of {_quoted(pieces[i])}" for i in wrong}


def _quoted(piece: str) -> str:
    return f"“{piece}”".replace("\n", "↵").replace("\t", "⇥")


def _said(one: GrownTexts, stage: Stage, pieces: Sequence[str]) -> str:
    """What a stage came to, in a line."""
    return " · ".join(_facts_of(one, stage, pieces))


def _facts_of(one: GrownTexts, stage: Stage, pieces: Sequence[str]) -> Iterator[str]:
    yield f"{stage.length} {'token' if stage.length == 1 else 'tokens'}"
    wrong = _wrong(one, stage, pieces)
    if wrong:
        named = [f"token {i + 1} {words}" for i, words in list(wrong.items())[:NAMED]]
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        yield f"{len(wrong)} wrong: {'; '.join(named)}{more}"
    else:
        yield "all right"
    yield f"{stage.evaluations:,} evaluations in this stage, {stage.spent:,} so far"
    if stage.right is not None:
        yield f"{stage.right} right before a step"
    if stage.right is not None and not stage.warm:
        yield "from random vectors"


def _stages_table(grown: Sequence[Stage], text: int) -> Markup:
    head = ("Tokens", "Evaluations", "So far", "Right before a step", "Right after", "Accuracy", "Start", "Moved")
    rows = []
    for stage in grown:
        before = "–" if stage.right is None else stage.right
        row = [stage.length, f"{stage.evaluations:,}", f"{stage.spent:,}", before, stage.result.c_tokens]
        start = "last solution" if stage.warm else "random vectors"
        rows.append([*row, accuracy(stage.result.accuracy), start, number(stage.moved, 2)])
    return table(f"Stages of text {text}", head, rows, words=frozenset({6}))

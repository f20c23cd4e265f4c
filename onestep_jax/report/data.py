"""The texts of runs as plain values: for the page's script, and for the rows of the CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.analysis import bits, exact_horizon, horizon, reconstructed
from onestep_jax.report.inputs import FittedRun
from onestep_jax.report.markup import visible
from onestep_jax.report.token_strings import token_pieces
from onestep_jax.store.records import no_formula
from onestep_jax.store.results import TextResult
from onestep_jax.tokens import as_text

TEXTS, TOKENS = 500, 60_000  # on the page, over all runs; they bound its size

COLUMNS = """run index text_id length c_tokens accuracy exact reconstructed exact_horizon horizon h_lm_nats
h_lm_bits loss margin steps best_step seconds seed status text output token_ids output_ids""".split()
_RECORDED = (
    "index text_id c_tokens accuracy loss margin steps best_step seconds seed status".split()
)  # fields of a TextResult


def shown_texts(runs: Sequence[FittedRun]) -> list[tuple[TextResult, ...]]:
    """The first texts of each run, at least one, and as many as the page may hold."""
    texts, tokens = TEXTS // max(1, len(runs)), TOKENS // max(1, len(runs))
    shown = []
    for run in runs:
        total = np.cumsum([len(text.tokens) for text in run.results])
        count = max(1, min(texts, int(np.searchsorted(total, tokens, side="right"))))
        shown.append(run.results.texts[:count])
    return shown


def page_data(runs: Sequence[FittedRun], shown: Sequence[Sequence[TextResult]]) -> dict[str, Any]:
    """The data that the page's script shows texts from.

    Returns:
      "pieces": the distinct strings of tokens. "runs": each with its "name", its "texts", and "strings", whether there
      is a tokenizer. Of a text: "tokens" are the target ids; "pieces" are indices into the list of strings; "wrong"
      maps a position, counted from 0, to the id that came out and the index of its string; "nats" are −ln P of each
      token, null if not known; "first" is the step at which each token was first right.
    """
    pieces: dict[str, int] = {}

    def places(run: FittedRun, ids: np.ndarray) -> list[int]:
        return [pieces.setdefault(visible(piece), len(pieces)) for piece in token_pieces(run.tokenizer, ids)]

    described = []
    for run, texts in zip(runs, shown, strict=True):
        rows = [_text_data(text, places(run, text.tokens), places(run, text.predicted)) for text in texts]
        described.append({"name": visible(run.name), "strings": run.tokenizer is not None, "texts": rows})
    return {"pieces": list(pieces), "runs": described}


def _text_data(text: TextResult, expected: list[int], got: list[int]) -> dict[str, Any]:
    trial = text.best_trial
    wrong = {int(i): [int(text.predicted[i]), got[i]] for i in np.flatnonzero(text.predicted != text.tokens)}
    return {
        "index": text.index,
        "accuracy": text.accuracy,
        "steps": text.steps,
        "seed": text.seed,
        "status": text.status,
        "id": text.text_id,
        "exact": text.c_tokens,
        "h_lm": _finite(text.h_lm),
        "tokens": text.tokens.tolist(),
        "pieces": expected,
        "wrong": wrong,
        "nats": [_finite(nats) for nats in text.nats],
        "first": [] if trial is None else trial.first_hit.tolist(),
    }


def _finite(value: float | np.floating) -> float | None:
    """A number to three decimals; JSON has no NaN."""
    return round(float(value), 3) if np.isfinite(value) else None


def text_strings(run: FittedRun, text: TextResult) -> tuple[str, str]:
    """Target and output of a text as strings, or as token ids without a tokenizer."""
    return _string(run, text.tokens), _string(run, text.predicted)


def _string(run: FittedRun, ids: np.ndarray) -> str:
    return _words(ids) if run.tokenizer is None else as_text(run.tokenizer, ids)


def _words(ids: Iterable[Any]) -> str:
    return " ".join(str(int(token)) for token in ids)


def table_rows(runs: Sequence[FittedRun]) -> Iterator[dict[str, Any]]:
    """One row with the `COLUMNS` for each text of each run."""
    for run in runs:
        for text in run.results:
            target, output = text_strings(run, text)
            yield {name: getattr(text, name) for name in _RECORDED} | {
                "run": run.name,
                "length": len(text.tokens),
                "exact": int(text.accuracy == 1),
                "reconstructed": int(reconstructed(text)),
                "exact_horizon": exact_horizon(text.predicted, text.tokens),
                "horizon": horizon(text.predicted, text.tokens),
                "h_lm_nats": text.h_lm,
                "h_lm_bits": bits(text.h_lm),
                "text": target,
                "output": output,
                "token_ids": _words(text.tokens),
                "output_ids": _words(text.predicted),
            }


def write_table(path: Path, runs: Sequence[FittedRun]) -> None:
    """Write `table_rows` as a CSV file in UTF-8.

    A cell that a spreadsheet would take for a formula gets an apostrophe in front, which it shows as text.
    """
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list[str](COLUMNS))
        writer.writeheader()
        writer.writerows({name: no_formula(cell) for name, cell in row.items()} for row in table_rows(runs))

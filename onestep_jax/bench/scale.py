"""What a text-step costs against the number of slots, the length of the texts and the size of the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from onestep_jax.bench.models import subject
from onestep_jax.bench.step import A_STEP, Stepper
from onestep_jax.bench.timing import Clock, draw_spread, interleaved, record, spread, within_context
from onestep_jax.model.cost import step_flops
from onestep_jax.model.decoder import Model

AXES = ("slots", "length", "vocabulary")


class Case(NamedTuple):
    """One measurement.

    Attributes:
      against: which of `AXES` it belongs to.
      slots: texts at a time.
      length: tokens of a text.
      vocabulary: tokens of the model's vocabulary.
    """

    against: str
    slots: int
    length: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.slots} slots of {self.length} tokens, {self.vocabulary} in the vocabulary"


def bench_scale(
    source: str = "default",
    *,
    slots: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    lengths: Sequence[int] = (16, 32, 64, 128, 256, 512),
    vocabularies: Sequence[int] = (4096, 16384, 65536, 131072),
    budget: int = 2048,
    chunk: int = 4,
    repeats: int = 3,
    dtype: str | None = None,
    limit: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time a text-step against each of `AXES`.

    For another vocabulary the rows of the model's embedding table are repeated or cut.

    Args:
      source: see `models.subject`.
      slots: numbers of slots, measured at the shortest length.
      lengths: tokens of a text, measured at `budget` / length slots, at least one.
      vocabularies: sizes, measured at the shortest length and as many slots as an eighth of `budget` holds.
      budget: slots × length, in tokens.
      chunk: steps of a call.
      repeats: timed calls per case.
      dtype: of the weights.
      limit: seconds after which no further case begins.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per case.
    """
    clock, model = Clock(limit), subject(source, dtype)
    lengths = within_context(model, lengths, say)
    rows, every = [], {}
    for case in _cases(slots, lengths, vocabularies, budget, model.config.vocab_size):
        if rows and clock.leaves_out(str(case), say):
            continue
        sized = model if case.vocabulary == model.config.vocab_size else with_vocabulary(model, case.vocabulary)
        stepper = Stepper(sized, case.slots, case.length, chunk)
        seconds = interleaved({"step": stepper}, repeats)["step"]
        stepper.check()
        row: dict[str, Any] = {**case._asdict(), **spread(A_STEP, seconds, 1e3 / (chunk * case.slots))}
        middle = row[f"{A_STEP} median"]
        rows.append({**row, "GFLOP/s": step_flops(sized.config, case.length) / 1e6 / middle})
        every["-".join(map(str, case))] = seconds
        say(f"{case}: {middle:.3g} {A_STEP}")
    settings = {"model": source, "chunk": chunk, "repeats": repeats, "dtype": str(model.dtype), "budget": budget}
    return record("scale", settings, rows, seconds=every)


def _cases(
    slots: Sequence[int], lengths: Sequence[int], vocabularies: Sequence[int], budget: int, own: int
) -> list[Case]:
    """What is measured, in order; `own` is the size of the model's vocabulary."""
    shortest = min(lengths)
    eighth = max(1, budget // (8 * shortest))
    cases = {Case("slots", count, shortest, own) for count in slots}
    cases |= {Case("length", max(1, budget // length), length, own) for length in lengths}
    cases |= {Case("vocabulary", eighth, shortest, size) for size in vocabularies}
    return sorted(cases)


def with_vocabulary(model: Model, size: int) -> Model:
    """The model with a vocabulary of `size`: the rows of its embedding table and of its head are repeated or cut."""
    rows = jnp.arange(size) % model.config.vocab_size
    params = {**model.params, "embed": {"embedding": model.params["embed"]["embedding"][rows]}}
    if not model.config.tied:
        params["head"] = {"kernel": model.params["head"]["kernel"][rows]}
    return dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_size=size), params=params)


def draw_scale(found: dict[str, Any], path: Path) -> Path:
    """Plot the milliseconds of a text-step, with their range, against each axis that was measured."""
    from matplotlib.figure import Figure

    measured = [axis for axis in AXES if any(row["against"] == axis for row in found["rows"])]
    figure = Figure(figsize=(4.2 * len(measured), 3.6), layout="constrained")
    for panel, against in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        rows = [row for row in found["rows"] if row["against"] == against]
        rows.sort(key=lambda row: row[against])
        draw_spread(panel, [row[against] for row in rows], rows, A_STEP)
        panel.set(xlabel=_label(against, rows[0], found["settings"]["budget"]), ylabel=A_STEP)
    figure.savefig(path, dpi=150)
    return path


def _label(against: str, row: dict[str, Any], budget: int) -> str:
    return {
        "slots": f"slots, of {row['length']} tokens",
        "length": f"tokens N, slots × N = {budget}",
        "vocabulary": f"vocabulary, {row['slots']} slots of {row['length']} tokens",
    }[against]

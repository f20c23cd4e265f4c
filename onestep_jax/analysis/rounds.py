"""Rounds of the ordinary `fit` that fill a table of prefixes, and the arguments that such tables are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep_jax.analysis.prefix_table import PrefixTable, check_nesting, round_folder
from onestep_jax.errors import UserError
from onestep_jax.fitting import Preset, fit, preset_of
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.prefixes import resolve_prefix
from onestep_jax.prototokens.schemes import OneStep, Scheme
from onestep_jax.prototokens.targets import prepare


def fit_round(
    model: Model,
    table: PrefixTable,
    wanted: Sequence[tuple[int, int]],
    run: Path | None,
    fit_options: Mapping[str, Any],
) -> PrefixTable:
    """Fit prefixes of a table, and give the table with their results.

    Args:
      model: the frozen model.
      table: so far.
      wanted: (text, length) of each prefix.
      run: run directory of the round; None for memory.
      fit_options: of `fit`; `prefixes` are those of the texts.
    """
    rows = distinct(table, wanted)
    if own := fit_options.get("prefixes"):
        fit_options = {**fit_options, "prefixes": [own[i] for i, _ in rows]}
    beginnings = [table.texts[i][:length].tolist() for i, length in rows]
    return table.adding(fit(model, beginnings, run=run, **fit_options))


def distinct(table: PrefixTable, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The wanted prefixes in their order; of equal prefixes, which have one text_id, the first."""
    return list({table.ids[i][length]: (i, length) for i, length in wanted}.values())


# --- arguments ---


def settled(model: Model, run: Path | None, fit_options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the arrangement that they mean.

    Raises:
      UserError: for an option that is not free in a table, or start vectors.
    """
    for name, default, cure in (("length", None, "lengths"), ("copies", 1, "seeds, the best of which is kept")):
        if fit_options.get(name, default) != default:
            raise UserError(f"{name} = {fit_options[name]!r}: cannot be chosen for a capacity; give {cure}")
    preset = preset_of_rounds(run, fit_options)
    default = None if fit_options.get("prefixes") else preset.prefix
    scheme = resolve_prefix(fit_options.get("scheme") or OneStep(preset.arrangement), model, default)
    if scheme.start is not None:
        raise UserError("a capacity draws its start vectors; give a scheme without start, or search(…, warm=True)")
    return {**fit_options, "scheme": scheme}


def empty_table(model: Model, texts: Any, lengths: Iterable[int], scheme: Scheme) -> PrefixTable:
    """A table of the prefixes to fit, without results, from checked arguments.

    Raises:
      UserError: for lengths or texts that a table cannot have.
    """
    lengths = tuple(sorted({int(length) for length in lengths}))
    if not lengths or lengths[0] < 1:
        raise UserError(f"lengths = {lengths}: expected numbers of tokens, at least one and each at least 1")
    tokens = prepare(model, texts, lengths[-1], scheme)
    least = lengths[0] if scheme.group == 1 else lengths[-1]
    for i, text in enumerate(tokens):
        if len(text) < least:
            raise UserError(f"text {i}: {len(text)} tokens, expected at least {least}; leave it out, or change lengths")
    if len(tokens) % scheme.group:
        reason = "a group would hold texts of two lengths; give a multiple"
        raise UserError(f"{len(tokens)} texts in groups of {scheme.group}: {reason}")
    return PrefixTable(texts=tuple(tokens), lengths=lengths, scheme=scheme.describe())


def check_rounds(model: Model, table: PrefixTable, way: str) -> None:
    """Refuse arrangements and lengths of which only one length at a time makes sense.

    Args:
      model: the frozen model.
      table: without results.
      way: "search" or "growth", for messages.

    Raises:
      UserError: for solutions that do not nest, or texts that share a vector.
    """
    check_nesting(table.scheme)
    group = table.scheme.get("group", 1)
    if group > 1:
        raise UserError(f"{way} with groups of {group}: all texts of a group must have the same length; use grid")
    first, last, boundary = table.lengths[0], table.lengths[-1], model.config.boundary
    if boundary is not None and first <= boundary < last:
        reason = f"rotary positions change at {boundary} tokens, and solutions do not nest across that length"
        raise UserError(f"lengths {first} to {last}: {reason}; make a {way} of each side")


def preset_of_rounds(run: Path | None, fit_options: Mapping[str, Any]) -> Preset:
    """The preset, as it was understood when the first round began."""
    return preset_of(fit_options.get("preset", "fast"), round_folder(run, 0))

"""Capacities of many texts (Table 3), by fitting every length (`grid`) or as few lengths as needed (`search`).

A third way, one token more at a time from the last solution, is `grow`, in `growth`. All work in rounds of the ordinary
`fit`. Each round has its own run directory, so that a killed job is resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.analysis.growth import grow
from onestep_jax.analysis.metrics import THRESHOLD
from onestep_jax.analysis.prefix_table import PrefixTable, create_folder, round_folder
from onestep_jax.analysis.rounds import check_rounds, distinct, empty_table, fit_round, preset_of_rounds, settled
from onestep_jax.analysis.text_capacity import capacity
from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Model
from onestep_jax.store.results import TextResult
from onestep_jax.store.storage import run_path

__all__ = ["Agreement", "agreement", "grid", "grow", "next_length", "search"]

# Share of the budget up to which a success is cheap. Doubling a length multiplies its steps by 2 to 7 (packaged model,
# 4 to 22 tokens), so twice the length is then likely to succeed within the budget.
CHEAP = 0.1


def grid(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]],
    lengths: Iterable[int],
    *,
    run: str | Path | None = None,
    **fit_options: Any,
) -> PrefixTable:
    """Fit every length of every text, in one `fit`, as the paper does for Table 3.

    Args:
      model: the frozen model.
      texts: strings or lists of token ids.
      lengths: prefix lengths to try, in tokens.
      run: folder to record in, see `prefix_table`; a grid that is there already is resumed.
      fit_options: of `fit`. A scheme that shares a leaf groups texts at one length, in their order.

    Raises:
      UserError: as `fit`; for a text below the shortest length; for options that a grid sets itself.
      Interrupted: as `fit`.
    """
    folder = None if run is None else run_path(run)
    fit_options = settled(model, folder, fit_options)
    scheme = fit_options["scheme"]
    table = empty_table(model, texts, lengths, scheme)
    if folder is not None:
        create_folder(folder, table, {"kind": "grid"})
    wanted = [(i, length) for length in table.lengths for i in range(len(table.texts)) if length in table.ids[i]]
    return fit_round(model, table, wanted, round_folder(folder, 0), fit_options)


def search(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]],
    lengths: Iterable[int],
    *,
    run: str | Path | None = None,
    warm: bool = False,
    failures: int = 1,
    threshold: float = THRESHOLD,
    **fit_options: Any,
) -> PrefixTable:
    """Find each text's capacity from few of its lengths, in ascending order until a length fails.

    A failure costs the whole budget, and a long one costs more than a short one. A success far below the capacity costs
    next to nothing. A failure far above the capacity gives no bound, since only a short prefix of it is right. Lengths
    are therefore tried in ascending order, one for each text and round; see `next_length`.

    Without `warm`, fits are those of `grid`, up to the order of float32 sums. Capacities then differ from the grid's
    only for a text whose longer lengths succeed after `failures` lengths in a row have failed.

    Args:
      model: the frozen model.
      texts: strings or lists of token ids.
      lengths: prefix lengths to try, in tokens.
      run: folder to record in, see `prefix_table`; a search that is there already is resumed.
      warm: start each length at the vectors with the longest horizon so far; capacities may then differ from a grid's.
      failures: lengths in a row that must fail before a text is finished.
      threshold: accuracy from which a prefix counts as reconstructed.
      fit_options: of `fit`.

    Raises:
      UserError: as `fit`; for a text below the shortest length; for options that a search sets itself; for a scheme
        that shares a leaf, whose texts must all have the same length, or whose solutions do not nest.
      Interrupted: as `fit`.
    """
    if failures < 1 or not 0 < threshold <= 1:
        raise UserError(f"failures = {failures}, threshold = {threshold}: expected at least 1, and above 0 to 1")
    folder = None if run is None else run_path(run)
    fit_options = settled(model, folder, fit_options)
    scheme = fit_options["scheme"]
    table = empty_table(model, texts, lengths, scheme)
    check_rounds(model, table, "search")
    cheap = CHEAP * _budget(folder, fit_options)
    if folder is not None:
        create_folder(folder, table, {"kind": "search", "warm": warm, "failures": failures, "threshold": threshold})
    for number in range(len(table.lengths)):  # a text tries each length once at most
        wanted = []
        for i in range(len(table.texts)):
            length = next_length(table.row(i), table.tried(i), failures, threshold, cheap)
            wanted += [] if length is None else [(i, length)]
        if not wanted:
            break
        if warm and number:
            start = _warm_start(table, wanted, threshold)
            fit_options["scheme"] = dataclasses.replace(scheme, start=start)  # pyright: ignore[reportArgumentType]
        table = fit_round(model, table, wanted, round_folder(folder, number), fit_options)
    return table


def next_length(
    fits: Mapping[int, TextResult],
    tried: Sequence[int],
    failures: int = 1,
    threshold: float = THRESHOLD,
    cheap: float = 0,
) -> int | None:
    """Choose the length that a search fits next, or None when the capacity is known.

    That is the first length that has no fit among the `failures` lengths above the longest reconstructed one. There is
    one exception. If no length has failed and the last success took at most `cheap` gradient evaluations, the longest
    length up to twice as long is tried: if it succeeds, its solution counts for the lengths between; if it fails, they
    are tried later.

    Args:
      fits: length → result, of one text so far.
      tried: the lengths to try, ascending.
      failures: lengths in a row that must fail.
      threshold: accuracy from which a prefix counts as reconstructed.
      cheap: gradient evaluations up to which a success allows a double length.
    """
    reached = capacity(fits.values(), lengths=tried, threshold=threshold, nested=True).tokens if fits else 0
    above = [length for length in tried if length > reached]
    untried = [length for length in above[:failures] if length not in fits]
    if not untried:
        return None
    failed = any(length > reached for length in fits)
    if failed or reached not in fits or fits[reached].steps > cheap:
        return untried[0]
    return max((length for length in above if length <= 2 * reached), default=untried[0])


class Agreement(NamedTuple):
    """How a search compares with the full grid.

    Attributes:
      texts: how many.
      equal: share of texts with the same capacity.
      at_least: share of texts with a capacity no smaller than the grid's.
      evaluations: gradient evaluations of the search, divided by those of the grid.
      token_positions: the same with each evaluation times its length, the ratio of the arithmetic.
    """

    texts: int
    equal: float
    at_least: float
    evaluations: float
    token_positions: float


def agreement(
    grid: PrefixTable, search: PrefixTable, *, threshold: float = THRESHOLD, nested: bool = False
) -> Agreement:
    """Compare the capacities and the work of a search with those of the full grid.

    Args:
      grid: of `grid`.
      search: of `search`, on the same texts and lengths.
      threshold: accuracy from which a prefix counts as reconstructed.
      nested: let the grid's fits count for shorter lengths too; with False a grid is read as in the paper.

    Raises:
      UserError: if the two are not of the same texts and lengths.
    """
    if [*map(dict, grid.ids)] != [*map(dict, search.ids)]:
        raise UserError("agreement: grid and search are of different texts or lengths; run both on the same")
    ours = np.array([found.tokens for found in search.capacities(threshold=threshold)])
    theirs = np.array([found.tokens for found in grid.capacities(threshold=threshold, nested=nested)])
    return Agreement(
        texts=len(ours),
        equal=float((ours == theirs).mean()),
        at_least=float((ours >= theirs).mean()),
        evaluations=search.evaluations / grid.evaluations,
        token_positions=search.token_positions / grid.token_positions,
    )


def _warm_start(table: PrefixTable, wanted: Sequence[tuple[int, int]], threshold: float) -> dict[str, np.ndarray]:
    """Vectors with the longest horizon of each text, leaf → (prefixes, …), in the order in which they are fitted."""
    rows = [table.row(i).values() for i, _ in distinct(table, wanted)]
    best = [capacity(row, threshold=threshold, nested=True).best for row in rows]
    return {name: np.stack([text.vectors[name] for text in best]) for name in best[0].vectors}


def _budget(run: Path | None, fit_options: Mapping[str, Any]) -> int:
    """Gradient evaluations that a failure costs at most."""
    preset = preset_of_rounds(run, fit_options)
    seeds = fit_options.get("seeds") or preset.seeds
    return (fit_options.get("steps") or preset.steps) * (1 if isinstance(seeds, str) else seeds)

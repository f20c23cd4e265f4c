"""Growth: a text is fitted one token longer at a time, each time from the last solution (Progressive Cramming).

Compare D. Tarasov et al., *Progressive Cramming*, whose texts grow in the autoregressive case. A text of N + 1 tokens
is fitted from the vectors that give its first N. What happens at one length is a *stage*. `absorption` counts the same
evaluations in one program and keeps no vectors; here every stage is a result of the ordinary `fit`, with its vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.analysis.metrics import THRESHOLD, reconstructed
from onestep_jax.analysis.prefix_table import PrefixTable, create_folder, round_folder
from onestep_jax.analysis.rounds import check_rounds, distinct, empty_table, fit_round, settled
from onestep_jax.analysis.trajectories import flatten
from onestep_jax.errors import COUNT, SIZE, Real, UserError, Whole, check_least
from onestep_jax.fitting import resolve
from onestep_jax.fitting.optimizers import AUTO
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.starts import StartVectors
from onestep_jax.prototokens.targets import prepare
from onestep_jax.store.reading import find_config, read_results
from onestep_jax.store.results import TextResult
from onestep_jax.store.storage import run_path

KIND = "growth"
FRESH = Whole(0, words=(AUTO,))
_SHARE = Real(0, 1, above=True)


def grow(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    first: int = 1,
    last: int | None = None,
    stride: int = 1,
    run: str | Path | None = None,
    fresh: int | str = AUTO,
    failures: int = 1,
    total: int | None = None,
    threshold: float = THRESHOLD,
    **fit_options: Any,
) -> PrefixTable:
    """Let each text grow: fit ever longer prefixes, each from the vectors of the last one that was reconstructed.

    A stage is one length. All texts that still grow are at the same stage, in one `fit`. A stage that the last vectors
    solve as they are costs one evaluation. What becomes of a text does not depend on the others, up to the order of
    float32 sums.

    A warm start can hang where random vectors would not. `fresh` says how many seeds a stage may try after it.

    Args:
      model: the frozen model.
      texts: strings or lists of token ids.
      first: tokens of the first stage, which starts at random vectors.
      last: tokens of the last stage; None for the whole of each text. Texts are cut to it.
      stride: tokens from one stage to the next.
      run: folder to record in, see `prefix_table`; a growth that is there already is resumed.
      fresh: seeds that a stage may try from random vectors after the warm start has failed, each with the budget of a
        stage; "auto" for as many as the budget of the stage lasts for, which is then common to all.
      failures: stages in a row that must fail before a text is finished.
      total: evaluations of a text over all its stages, from which on it begins no further one; None for no bound.
      threshold: accuracy from which a prefix counts as reconstructed.
      fit_options: of `fit`; `steps` is the budget of a stage, or of each of its seeds.

    Returns:
      The table of all stages; `stages` reads those of a text.

    Raises:
      UserError: as `fit`; for numbers out of range; for a text below the first length; for options that a growth sets
        itself; for a scheme in which texts share a vector, or whose solutions do not nest.
      Interrupted: as `fit`.
    """
    _check_numbers(first, last, stride, fresh, failures, total, threshold)
    folder = None if run is None else run_path(run)
    _check_free(fit_options)
    fit_options = settled(model, folder, fit_options) | {"seeds": fresh if isinstance(fresh, str) else 1 + fresh}
    table = _empty(model, texts, first, last, stride, fit_options)
    fit_options |= _sizes(model, table, folder, fit_options)
    if folder is not None:
        settings = {"failures": failures, "fresh": fresh, "total": total, "threshold": threshold}
        create_folder(folder, table, {"kind": KIND, **settings})
    for number, length in enumerate(table.lengths):
        wanted = [
            (i, length)
            for i, known in enumerate(table.ids)
            if length in known and _grows(list(table.row(i).values()), failures, total, threshold)
        ]
        if not wanted:
            break
        table = _fit_stage(model, table, wanted, round_folder(folder, number), threshold, fit_options)
    return table


def _grows(fits: Sequence[TextResult], failures: int, total: int | None, threshold: float) -> bool:
    """Whether a text goes on after these stages, shortest first."""
    lost = 0
    for fit in fits:
        lost = 0 if reconstructed(fit, threshold) else lost + 1
    return lost < failures and (total is None or sum(fit.steps for fit in fits) < total)


def _fit_stage(
    model: Model,
    table: PrefixTable,
    wanted: Sequence[tuple[int, int]],
    run: Path | None,
    threshold: float,
    fit_options: Mapping[str, Any],
) -> PrefixTable:
    """The table with one stage more; a stage that is recorded whole is only read."""
    rows = {table.ids[i][length]: i for i, length in distinct(table, wanted)}
    if table.found and run is not None and find_config(run) is not None:  # the first stage compares the settings
        recorded = read_results(run)
        if set(rows) <= {text.text_id for text in recorded}:
            return table.adding(recorded)
    last = {name: last_solution(list(table.row(i).values()), threshold) for name, i in rows.items()}
    begun = {name: result.vectors for name, result in last.items() if result is not None}
    if begun:
        fit_options = {**fit_options, "start": StartVectors(begun, model=model.fingerprint), "start_missing": "draw"}
    return fit_round(model, table, wanted, run, fit_options)


def last_solution(fits: Sequence[TextResult], threshold: float = THRESHOLD) -> TextResult | None:
    """The longest reconstructed of some stages, shortest first, or None."""
    return next((fit for fit in reversed(fits) if reconstructed(fit, threshold)), None)


# --- what a growth was like ---


class Stage(NamedTuple):
    """One length of a text that grew.

    Attributes:
      length: tokens.
      evaluations: gradient evaluations of this stage, over all its seeds.
      spent: the same of this and all earlier stages.
      right: tokens, of `length`, that were right before a step: under the last solution, or in the first stage under
        random vectors. None where the trials were not recorded.
      solved: whether the prefix is reconstructed.
      warm: whether the vectors that were kept are those that the last solution led to, not those of a fresh seed.
      moved: Euclidean distance from the last solution to the vectors that were kept; NaN where there was none.
      result: with the vectors.
    """

    length: int
    evaluations: int
    spent: int
    right: int | None
    solved: bool
    warm: bool
    moved: float
    result: TextResult


def stages(table: PrefixTable, text: int, *, threshold: float = THRESHOLD) -> list[Stage]:
    """Read the stages of a text, shortest first.

    Args:
      table: of `grow`.
      text: number of the text.
      threshold: accuracy from which a prefix counts as reconstructed.
    """
    found: list[Stage] = []
    fits: list[TextResult] = []
    for length, result in table.row(text).items():
        before, begun = last_solution(fits, threshold), result.trials[0] if result.trials else None
        fits.append(result)
        found.append(
            Stage(
                length=length,
                evaluations=result.steps,
                spent=sum(fit.steps for fit in fits),
                right=None if begun is None else int((begun.first_hit == 0).sum()),
                solved=reconstructed(result, threshold),
                warm=before is not None and begun is not None and begun.seed == result.seed,
                moved=float("nan") if before is None else distance(before, result),
                result=result,
            )
        )
    return found


def distance(one: TextResult, other: TextResult) -> float:
    """Euclidean distance between the vectors of two results, all leaves together."""
    between = flatten(solution_path([one, other]))
    return float(np.linalg.norm(between[1] - between[0]))


def solution_path(results: Sequence[TextResult]) -> dict[str, np.ndarray]:
    """Vectors of some results as a path, leaf → (results, *shape), for `trajectories.travel` and `principal_plane`.

    Args:
      results: at least one, such as those of the solved stages of a text.
    """
    return {name: np.stack([result.vectors[name] for result in results]) for name in results[0].vectors}


# --- arguments ---


def _check_numbers(
    first: int, last: int | None, stride: int, fresh: int | str, failures: int, total: int | None, threshold: float
) -> None:
    for name, value in (("first", first), ("stride", stride), ("failures", failures)):
        SIZE.check(name, value)
    if last is not None:
        SIZE.check("last", last)
        check_least(first, last=last)
    if total is not None:
        COUNT.check("total", total)
    FRESH.check("fresh", fresh)
    _SHARE.check("threshold", threshold)


def _check_free(fit_options: Mapping[str, Any]) -> None:
    """Refuse options of `fit` that a growth sets itself."""
    cures = {"seeds": "give fresh", "room": "leave it out"}
    cures |= dict.fromkeys(("start", "start_missing"), "leave it out: the first stage draws its start vectors")
    for name, cure in cures.items():
        if fit_options.get(name) is not None:
            raise UserError(f"{name}: cannot be chosen for a growth; {cure}")


def _empty(
    model: Model, texts: Any, first: int, last: int | None, stride: int, fit_options: Mapping[str, Any]
) -> PrefixTable:
    """A table of the stages to come."""
    scheme = fit_options["scheme"]
    if last is None:
        texts = [ids.tolist() for ids in prepare(model, texts, None, scheme)]
        last = max(map(len, texts))
    table = empty_table(model, texts, range(first, max(first, last) + 1, stride), scheme)
    check_rounds(model, table, KIND)
    if scheme.shared:
        raise UserError(
            f"growth with a shared {min(scheme.shared)}: its texts have start vectors of their own; use grid"
        )
    return table


def _sizes(model: Model, table: PrefixTable, run: Path | None, fit_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that serve all stages: sizes of a fit of the longest, so that the stages share compiled programs."""
    whole = [ids.tolist() for ids in table.texts]
    options = {name: value for name, value in fit_options.items() if name != "progress"}
    settings = resolve(model, whole, run=round_folder(run, 0), **options).settings
    return {"slots": settings["slots"], "remat": settings["remat"], "room": max(map(len, whole))}

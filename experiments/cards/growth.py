"""Growth: how much does a geometric search over lengths underestimate the capacity, against growth token by token?

    onestep experiment growth --model HuggingFaceTB/SmolLM2-135M --texts excerpts:FILE

The paper tries 18 lengths, each about √2 times the one before, from random vectors (Table 3). Progressive Cramming
(Tarasov et al.) lets a text grow by one token at a time from the last solution, and reports for the autoregressive case
that the geometric search falls short of this by 18 to 28 % of the tokens. Growth differs from the geometric search in
two things, which are told apart here:

    geometric         the paper's lengths, each from random vectors
    geometric, warm   the same lengths, each from the last solution
    every, fresh      every length, each from random vectors
    growth            every length, each from the last solution

Each length has the same budget in all four, `steps` gradient evaluations, over as many seeds as the preset says; under
growth the first of them is the last solution. A text ends after `failures` lengths in a row that fail. "every, fresh"
leaves lengths out where a success costs next to nothing (`capacity.search`). A text's capacity is the longest length at
an accuracy of at least 0.99. "short of growth" is 1 − the mean of a way / the mean of growth. "horizon" is the longest
reconstructed prefix of any fit, which need not be a length that was tried.

A stage is one length of growth. "moved" is the Euclidean distance from the last solution to the next, "to fresh" that
to the solution from random vectors for the same prefix, where "every, fresh" has one. "path" adds up the moves,
"displacement" is the distance from the first solution to the last.

Writes growth.csv (a row a way), growth_texts.csv (a row a text and way), growth_stages.csv (a row a stage),
growth_paths.csv (a row a text) and growth.png. `onestep report` shows the texts appear, stage by stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onestep_jax import OneStep
from onestep_jax.analysis import reconstructed
from onestep_jax.analysis.capacity import grow, search
from onestep_jax.analysis.growth import Stage, distance, solution_path, stages
from onestep_jax.analysis.prefix_table import PrefixTable
from onestep_jax.analysis.text_capacity import Capacity
from onestep_jax.analysis.trajectories import travel
from onestep_jax.experiment.study import Study
from onestep_jax.fitting import preset_of
from onestep_jax.store.results import TextResult
from onestep_jax.tokens import as_text

LENGTHS = (4, 5, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024, 1448)
GEOMETRIC, WARM, FRESH, GROWTH = "geometric", "geometric, warm", "every, fresh", "growth"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; growth and "every, fresh" try the lengths from the first to the last, `stride` apart."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 10
    lengths: tuple[int, ...] = LENGTHS
    stride: int = 1
    failures: int = 1
    arrangement: str = "one-step"
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's lengths, or seconds."""
    if smoke:
        return Config("default", "demo", count=2, lengths=(2, 4, 8, 16), preset="fast", steps=30)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=12, lengths=LENGTHS[:10], preset="fast", steps=500)


def run(config: Config, study: Study) -> None:
    """Find the capacities of the same texts in four ways."""
    tokens = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    tables = dict(_tables(config, study, [ids.tolist() for ids in tokens]))
    capacities = {way: table.capacities() for way, table in tables.items()}
    study.table("growth", [_summary(way, tables[way], capacities) for way in tables])
    study.table("growth_texts", [row for way in tables for row in _by_text(way, capacities[way])])
    grown = [stages(tables[GROWTH], text) for text in range(config.count)]
    fresh = [tables[FRESH].row(text) for text in range(config.count)]
    rows = [_stage(study, text, stage, fresh[text]) for text, of_text in enumerate(grown) for stage in of_text]
    study.table("growth_stages", rows)
    study.table("growth_paths", [_path(text, of_text) for text, of_text in enumerate(grown)])
    _draw(study, capacities, rows, fresh)


def _tables(config: Config, study: Study, texts: list[list[int]]) -> Iterator[tuple[str, PrefixTable]]:
    """Way → its fits."""
    options: dict[str, Any] = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    options |= {"scheme": OneStep(config.arrangement), "failures": config.failures, "progress": study.progress}
    first, last = min(config.lengths), max(config.lengths)
    every = range(first, last + 1, config.stride)
    for way, lengths, warm in ((GEOMETRIC, config.lengths, False), (WARM, config.lengths, True), (FRESH, every, False)):
        folder = study.run_folder(way.replace(", ", "-"))
        yield way, search(study.model, texts, lengths, warm=warm, run=folder, room=last, **options)
    seeds = preset_of(config.preset).seeds
    options |= {"fresh": seeds if isinstance(seeds, str) else seeds - 1, "run": study.run_folder(GROWTH)}
    yield GROWTH, grow(study.model, texts, first=first, last=last, stride=config.stride, **options)


def _summary(way: str, table: PrefixTable, capacities: Mapping[str, Sequence[Capacity]]) -> dict[str, Any]:
    """What a way finds, what it costs, and by which share it falls short of growth."""
    found, most = ({name: np.mean(values) for name, values in _of(capacities[one])} for one in (way, GROWTH))
    row = {"way": way, "texts": len(capacities[way]), "fits": len(table.found)}
    row |= {f"{name} mean": value for name, value in found.items()}
    row |= {"tokens median": np.median([text.tokens for text in capacities[way]])}
    row |= {"at the longest length": sum(text.tokens == text.longest_tried for text in capacities[way])}
    row |= {"evaluations": table.evaluations, "evaluations × tokens": table.token_positions}
    return row | {f"short of growth, {name}": 1 - found[name] / most[name] if most[name] else None for name in found}


def _of(capacities: Sequence[Capacity]) -> list[tuple[str, list[float]]]:
    return [
        ("tokens", [text.tokens for text in capacities]),
        ("exact tokens", [text.exact_tokens for text in capacities]),
        ("horizon", [text.horizon for text in capacities]),
        ("nats", [text.h_lm for text in capacities]),
    ]


def _by_text(way: str, capacities: Sequence[Capacity]) -> list[dict[str, Any]]:
    return [
        {"way": way, "text": i, **{name: values[i] for name, values in _of(capacities)}, "evaluations": one.evaluations}
        for i, one in enumerate(capacities)
    ]


def _stage(study: Study, text: int, stage: Stage, fresh: Mapping[int, TextResult]) -> dict[str, Any]:
    """A row for a stage of growth, beside the fit of the same prefix from random vectors."""
    other = fresh.get(stage.length)
    row = {"text": text, "length": stage.length, "token": as_text(study.model.tokenizer, stage.result.tokens[-1:])}
    row |= {"evaluations": stage.evaluations, "so far": stage.spent, "right before a step": stage.right}
    row |= {"solved": stage.solved, "from the last solution": stage.warm, "moved": _known(stage.moved)}
    row |= {"evaluations, fresh": None if other is None else other.steps}
    if other is None or not (stage.solved and reconstructed(other)):
        return row | {"to fresh": None}
    return row | {"to fresh": distance(stage.result, other)}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _path(text: int, grown: Sequence[Stage]) -> dict[str, Any]:
    """A row for the way of a text's solutions; empty where none was found."""
    solved = [stage for stage in grown if stage.solved]
    row: dict[str, Any] = {"text": text, "stages": len(grown), "solved": len(solved)}
    row |= {"came of itself": sum(stage.right == stage.length for stage in solved)}
    gone = travel(solution_path([stage.result for stage in solved])) if solved else None
    row |= {"path": gone and gone.length, "displacement": gone and gone.displacement}
    return row | {"displacement / path": gone and _known(gone.straightness)}


def _draw(
    study: Study,
    capacities: Mapping[str, Sequence[Capacity]],
    rows: Sequence[Mapping[str, Any]],
    fresh: Sequence[Mapping[int, TextResult]],
) -> None:
    """Capacities by way, a dot a text; evaluations of a length; distances between solutions."""
    results = [(length, fit.steps) for fits in fresh for length, fit in fits.items()]
    with study.figure("growth", columns=3, size=(4.2, 3.6)) as (tokens, cost, distances):
        for place, found in enumerate(capacities.values()):
            reached = [text.tokens for text in found]
            tokens.bar(place, np.mean(reached), 0.6, color=f"C{place}", alpha=0.5)
            tokens.plot(np.full(len(reached), place), reached, "k.", alpha=0.5)
        tokens.set_xticks(range(len(capacities)), list(capacities), rotation=15)
        tokens.set(ylabel="capacity, tokens")
        stepped = [(row["length"], row["evaluations"]) for row in rows]
        for name, colour, found in ((FRESH, "C2", results), (GROWTH, "C3", stepped)):
            cost.plot(*np.transpose(found), ".", alpha=0.25, color=colour)
            lengths = sorted({length for length, _ in found})
            middle = [np.median([steps for length, steps in found if length == one]) for one in lengths]
            cost.plot(lengths, middle, color=colour, label=f"{name}, median")
        cost.set(xlabel="tokens", ylabel="gradient evaluations", yscale="log")
        cost.legend(frameon=False, fontsize="small")
        for name, column in (("last solution to the next", "moved"), ("solution of growth to fresh", "to fresh")):
            found = [(row["length"], row[column]) for row in rows if row["solved"] and row[column] is not None]
            distances.plot(*np.transpose(found or [(np.nan, np.nan)]), ".", alpha=0.5, label=name)
        distances.set(xlabel="tokens", ylabel="distance", ylim=(0, None))
        distances.legend(frameon=False, fontsize="small")

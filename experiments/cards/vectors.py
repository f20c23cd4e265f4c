"""More vectors, fewer dimensions: how long a text fits into several e, several m, or an e of few numbers?

    onestep experiment vectors --model HuggingFaceTB/SmolLM2-135M --texts excerpts:FILE

Two vectors of the model's width hold a text (Table 3). This card changes what is stored. Its series are

    e       [e_1 … e_K] [m]×(N−1): several e in front
    m       [e] [m_1 … m_K in turn]×(N−1): several m
    e and m both, as many of each
    fixed   e = z W / √d with a fixed random W: d numbers in the place of D
    own     e = z W / √d + b, with W and b trained for each text
    shared  the same, with W and b trained for all texts together: d numbers a text, and W and b once
    memory, memory own   the autoregressive [mem, t_1 … t_(N−1)], teacher-forced, plain and with an own W and b

In the series of projections m is a whole vector, and so is the control. The point "plain" is the control of every
series at the same budget: one vector of each, whole. On "memory" a published result stands: an own W and b lifted the
capacity of an autoregressive vector from 335 to 957 tokens (SmolLM2-1.7B, Progressive Cramming, ICML 2026). The series
"memory own" says whether that is so here, "own" whether it is so in one pass.

A trained own W is a way to find e and need not be kept: e itself has D numbers. "floats" counts what the fit stored,
"floats of the vectors" the vectors that entered the model.

Capacity is that of Table 3: the longest of the tried prefixes of a text at an accuracy of at least 0.99, its exact
tokens, and its nats (H_LM). `--arrangement unguided-e` gives the arrangement in which the last e predicts no token.

Writes vectors.csv (a row a scheme), vectors_texts.csv (a row a scheme and text) and vectors.png, where an arrow marks a
lower bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from onestep_jax import Cramming, ManyVectors, OneStep, Projected
from onestep_jax.analysis.capacity import grid, search
from onestep_jax.analysis.prefix_table import PrefixTable
from onestep_jax.analysis.text_capacity import Capacity, summarise_capacities
from onestep_jax.errors import check_known
from onestep_jax.experiment.study import Study
from onestep_jax.prototokens.schemes import Scheme, floats_of

PLAIN = "plain"
GUIDED = {"one-step": 1, "unguided-e": 0}
MANY = {"e": ("e",), "m": ("m",), "e and m": ("e", "m")}
PROJECTED = ("fixed", "own", "shared")
MEMORY = "memory"
SERIES = (*MANY, *PROJECTED, MEMORY, f"{MEMORY} own")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `vectors` are the K above 1, `dimensions` the d, of which those beyond D are left out."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    texts: str = "pg19"
    count: int = 16
    lengths: tuple[int, ...] = (8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256)
    series: tuple[str, ...] = SERIES
    vectors: tuple[int, ...] = (2, 4, 8)
    dimensions: tuple[int, ...] = (16, 64, 256)
    arrangement: str = "one-step"
    preset: str = "fast"
    steps: int = 1000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of a real model, or seconds."""
    if smoke:
        few: dict[str, Any] = {
            "series": ("m", "fixed", "shared", "memory own"),
            "vectors": (2,),
            "dimensions": (4, 300),
        }
        return Config("default", "demo", count=2, lengths=(4, 8), steps=60, **few)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=6, lengths=(11, 16, 22, 32, 45, 64, 90), dimensions=(16, 64), steps=500)


def run(config: Config, study: Study) -> None:
    """Find the capacity of every text under every scheme."""
    check_known("series", config.series, SERIES)
    check_known("arrangement", [config.arrangement], GUIDED)
    tokens = [ids.tolist() for ids in study.texts(config.texts, config.count, max(config.lengths), config.seed)]
    rows, texts = [], []
    for series, number, scheme in _schemes(config, study.model.embed_width):
        name = f"{series}-{number}".replace(" ", "-")
        options: dict[str, Any] = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
        options |= {"scheme": scheme, "run": study.run_folder(name), "progress": study.progress}
        find = grid if scheme.shared else search  # texts that share a map move together, all at one length
        table = find(study.model, tokens, config.lengths, **options)
        capacities = table.capacities()
        labels = {"series": series, "number": number, "scheme": scheme.notation}
        rows.append(labels | _row(scheme, study.model.embed_width, capacities, table))
        texts += [labels | row for row in _by_text(capacities)]
    study.table("vectors", rows)
    study.table("vectors_texts", texts)
    _draw(study, rows)


def _schemes(config: Config, width: int) -> Iterator[tuple[str, int, Scheme]]:
    """(series, K or d, scheme); the controls come first, with all D numbers or one vector."""
    one, memory = OneStep(config.arrangement), Cramming()
    yield PLAIN, 1, one
    if any(series.startswith(MEMORY) for series in config.series):
        yield MEMORY, 1, memory
    for series in config.series:
        if leaves := MANY.get(series):
            for count in config.vectors:
                e, m = (count if leaf in leaves else 1 for leaf in "em")
                yield series, count, ManyVectors(e, m, GUIDED[config.arrangement])
        elif series != MEMORY:
            within, projection = (memory, "own") if series not in PROJECTED else (one, series)
            group = config.count if projection == "shared" else 1
            for d in config.dimensions:
                if d <= width:
                    yield series, d, Projected(within, d, projection, group=group)


def _row(scheme: Scheme, width: int, capacities: list[Capacity], table: PrefixTable) -> dict[str, Any]:
    """Floats, and capacities as in Table 3."""
    found = summarise_capacities(capacities)
    floats = floats_of(scheme, width)
    whole = floats_of(scheme.of, width) if isinstance(scheme, Projected) else floats
    row = {"floats": floats, "floats of the vectors": whole, "texts": found.texts}
    row |= {
        "tokens mean": found.c_tokens_mean,
        "tokens median": found.c_tokens_median,
        "tokens max": found.c_tokens_max,
    }
    row |= {"nats mean": found.h_lm_mean, "nats std": found.h_lm_std, "exact tokens mean": found.exact_tokens_mean}
    row |= {"exact nats mean": found.exact_h_lm_mean, "tokens a float": found.c_tokens_mean / floats}
    row |= {"at the longest length": found.at_longest}
    return row | {"gradient evaluations": table.evaluations, "evaluations × tokens": table.token_positions}


def _by_text(capacities: list[Capacity]) -> list[dict[str, Any]]:
    return [
        {"text": i, "tokens": one.tokens, "C_tokens": one.c_tokens, "H_LM, nats": one.h_lm}
        | {"exact tokens": one.exact_tokens, "horizon": one.horizon, "gradient evaluations": one.evaluations}
        for i, one in enumerate(capacities)
    ]


def _draw(study: Study, rows: list[dict[str, Any]]) -> None:
    """Capacity in tokens and nats over the floats stored, a line a series; the controls as crosses and levels.

    An arrow says that some texts held the longest length tried, so that the capacity is a lower bound.
    """
    with study.figure("vectors", columns=2, size=(4.8, 4.2)) as axes:
        for axis, column in zip(axes, ("tokens mean", "nats mean"), strict=True):
            for place, series in enumerate(dict.fromkeys(row["series"] for row in rows)):
                own = sorted((row for row in rows if row["series"] == series), key=lambda row: row["floats"])
                floats, capacity = ([row[name] for row in own] for name in ("floats", column))
                if series in (PLAIN, MEMORY):
                    axis.axhline(capacity[0], color=f"C{place}", linewidth=0.8, linestyle=":")
                axis.plot(
                    floats, capacity, "x-" if series in (PLAIN, MEMORY) else "o-", color=f"C{place}", label=series
                )
            capped = [row for row in rows if row["at the longest length"]]
            ends = ([row["floats"] for row in capped], [row[column] for row in capped])
            axis.scatter(*ends, marker=r"$\uparrow$", s=90, color="0.2", zorder=4, label="at least" if capped else None)
            axis.set(xlabel="floats stored a text", xscale="log", ylim=(0, None))
            axis.set_ylabel(f"capacity, {column.removesuffix(' mean')} (mean over texts)")
            axis.set_axisbelow(True)
        axes[0].legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)

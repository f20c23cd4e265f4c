"""Table 3 and Figure 1: how long a text a model can hold in two vectors, and in one when `m` is shared by all texts.

    onestep experiment table3_capacity --model meta-llama/Llama-3.2-1B

A text's capacity is its longest prefix, among the tried lengths, at an accuracy of at least 0.99: C_tokens are the
tokens that are right there, H_LM the nats that the prefix holds under the same model (Eq. 2 and 3). The paper tries 18
lengths from 4 to 1,448 for four kinds of text and six models, with `m` trained for each text ("own") or one `m` for all
texts and seeds ("shared"):

    texts       m       Pythia-160M       Pythia-410M       Pythia-1.4B
    random      own      90; 507.5±105.9   92; 377.1±133.1   90; 470.7±103.1
                shared   45; 247.9±32.0    22;  91.1±30.8    45; 231.0±37.9
    fanfics     own     128; 358.9±73.3   128; 395.4±97.8   131; 261.0±56.4
                shared   45; 145.0±26.2    45;  82.3±28.1    45; 147.9±29.7
    PG-19       own     128; 388.4±66.4   167; 408.8±96.3   128; 298.4±77.4
                shared   45; 156.0±33.9    32;  88.1±30.3    64; 156.0±30.2
    PG-19 (gen) own     128; 354.1±72.0   181; 379.2±82.6   128; 277.6±71.3
                shared   45; 153.0±17.8    32; 106.9±38.5    64; 197.1±39.3

    texts       m       Llama-3.2-1B      Llama-3.2-3B      Llama-3.1-8B
    random      own     256; 1551.3±159.5 362; 2193.4±190.2 512; 2974.4±298.3
                shared  181;  947.7±155.0 256; 1292.2±217.4 256; 1309.4±234.6
    fanfics     own     362; 1107.6±129.1 512; 1408.4±179.5 724; 1763.3±280.2
                shared  181;  576.4±90.4  288;  835.9±121.7 362; 1112.8±168.6
    PG-19       own     362;  993.8±183.4 512; 1346.0±218.4 724; 1659.8±344.5
                shared  181;  456.5±56.5  256;  826.1±117.6 362;  832.3±171.0
    PG-19 (gen) own     362;  927.3±103.4 512; 1266.6±125.9 724; 1653.1±211.4
                shared  181;  478.7±85.7  362;  788.6±130.8 362;  771.7±143.0

Read here: C_tokens is the maximum over texts and H_LM averages over texts, see `text_capacity.CapacitySummary`; median
and mean of C_tokens stand beside, and so does the exact horizon, at an accuracy of 1. The paper says neither how many
texts nor how many restarts; `--count` and `--seeds` are this project's. An own `m` is tried from so many seeds until
the text is solved; a shared one serves every text from every seed at once, and the best copy of each text counts.

Method "grid" fits every length as the paper does, "search" as few as it takes to know (only an own `m`: texts that
share one can only move together), "both" compares the two.

Writes table3.csv (a row a kind of text, m and method), table3_texts.csv (a row a text of those), with "both"
table3_search.csv (agreement and work of the search), and table3.png.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onestep_jax import OneStep
from onestep_jax.analysis.capacity import agreement, grid, search
from onestep_jax.analysis.prefix_table import PrefixTable
from onestep_jax.analysis.text_capacity import Capacity, summarise_capacities
from onestep_jax.errors import check_known
from onestep_jax.experiment.study import Study

# Last part of a model's name, in lower case → (texts, m) → C_tokens, mean and standard deviation of H_LM in nats.
ITEMS = tuple((kind, m) for kind in ("random", "fanfics", "pg19", "gen:pg19") for m in ("own", "shared"))
PAPER = {
    "pythia-160m": (
        (90, 507.5, 105.9),
        (45, 247.9, 32.0),
        (128, 358.9, 73.3),
        (45, 145.0, 26.2),
        (128, 388.4, 66.4),
        (45, 156.0, 33.9),
        (128, 354.1, 72.0),
        (45, 153.0, 17.8),
    ),
    "pythia-410m": (
        (92, 377.1, 133.1),
        (22, 91.1, 30.8),
        (128, 395.4, 97.8),
        (45, 82.3, 28.1),
        (167, 408.8, 96.3),
        (32, 88.1, 30.3),
        (181, 379.2, 82.6),
        (32, 106.9, 38.5),
    ),
    "pythia-1.4b": (
        (90, 470.7, 103.1),
        (45, 231.0, 37.9),
        (131, 261.0, 56.4),
        (45, 147.9, 29.7),
        (128, 298.4, 77.4),
        (64, 156.0, 30.2),
        (128, 277.6, 71.3),
        (64, 197.1, 39.3),
    ),
    "llama-3.2-1b": (
        (256, 1551.3, 159.5),
        (181, 947.7, 155.0),
        (362, 1107.6, 129.1),
        (181, 576.4, 90.4),
        (362, 993.8, 183.4),
        (181, 456.5, 56.5),
        (362, 927.3, 103.4),
        (181, 478.7, 85.7),
    ),
    "llama-3.2-3b": (
        (362, 2193.4, 190.2),
        (256, 1292.2, 217.4),
        (512, 1408.4, 179.5),
        (288, 835.9, 121.7),
        (512, 1346.0, 218.4),
        (256, 826.1, 117.6),
        (512, 1266.6, 125.9),
        (362, 788.6, 130.8),
    ),
    "llama-3.1-8b": (
        (512, 2974.4, 298.3),
        (256, 1309.4, 234.6),
        (724, 1763.3, 280.2),
        (362, 1112.8, 168.6),
        (724, 1659.8, 344.5),
        (362, 832.3, 171.0),
        (724, 1653.1, 211.4),
        (362, 771.7, 143.0),
    ),
}
LENGTHS = (4, 5, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024, 1448)
METHODS = {"grid": ("grid",), "search": ("search",), "both": ("grid", "search")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; with `seeds` 1 an own `m` is tried from as many seeds as the preset says."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: tuple[str, ...] = ("random", "fanfics", "pg19", "gen:pg19")
    count: int = 50
    lengths: tuple[int, ...] = LENGTHS
    m: tuple[str, ...] = ("own", "shared")
    method: str = "grid"
    seeds: int = 3
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        budget: dict[str, Any] = {"seeds": 1, "preset": "fast", "steps": 500}
        return Config("default", ("demo",), count=4, lengths=(4, 5, 8), method="both", **budget)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    budget: dict[str, Any] = {"seeds": 1, "preset": "fast", "steps": 500}
    return Config("default", ("random", "gen"), count=12, lengths=LENGTHS[:10], method="both", **budget)


def run(config: Config, study: Study) -> None:
    """Find the capacity of every text of every kind, with an `m` of its own and with a shared one."""
    check_known("method", [config.method], METHODS)
    check_known("m", config.m, ["own", "shared"])
    rows, texts, compared = [], [], []
    for source in config.texts:
        tokens = study.texts(source, config.count, max(config.lengths), config.seed)
        tables: dict[str, PrefixTable] = {}
        for m in config.m:
            for method in METHODS[config.method] if m == "own" else ("grid",):
                table = _fit(config, study, source, tokens, m, method)
                capacities = _best_copies(table.capacities(nested=method == "search"), config.count)
                labels = {"texts from": source, "m": m, "method": method}
                rows.append(labels | _summary(capacities, table) | _paper(config.model, source, m))
                texts += [labels | row for row in _by_text(capacities)]
                if m == "own":
                    tables[method] = table
        if len(tables) == 2:
            compared.append({"texts from": source} | _compare(tables["grid"], tables["search"]))
    study.table("table3", rows)
    study.table("table3_texts", texts)
    if compared:
        study.table("table3_search", compared)
    _draw(config, study, rows)


def _fit(config: Config, study: Study, source: str, tokens: list[np.ndarray], m: str, method: str) -> PrefixTable:
    """Fits of the prefixes of all texts of a kind; with a shared `m`, of as many copies of them as there are seeds."""
    name = "-".join([str(config.texts.index(source)), source.partition(":")[0], m, method])
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed, "progress": study.progress}
    options |= {"run": study.run_folder(name)}
    if m == "shared":
        copies = [ids.tolist() for ids in tokens * config.seeds]
        return grid(study.model, copies, config.lengths, scheme=OneStep(share="m", group=len(copies)), **options)
    find = grid if method == "grid" else search
    seeds = None if config.seeds == 1 else config.seeds
    own = [ids.tolist() for ids in tokens]
    return find(study.model, own, config.lengths, scheme=OneStep(), seeds=seeds, **options)


def _best_copies(capacities: list[Capacity], count: int) -> list[Capacity]:
    """The copy of each text that holds most; copies come after the whole list of texts."""
    return [max(capacities[i::count], key=lambda c: (c.tokens, c.exact_tokens, c.exact_horizon)) for i in range(count)]


def _summary(capacities: list[Capacity], table: PrefixTable) -> dict[str, Any]:
    """A cell of Table 3."""
    found = summarise_capacities(capacities)
    return {
        "texts": found.texts,
        "C_tokens max": found.c_tokens_max,
        "C_tokens median": found.c_tokens_median,
        "C_tokens mean": found.c_tokens_mean,
        "H_LM mean, nats": found.h_lm_mean,
        "H_LM std, nats": found.h_lm_std,
        "exact tokens max": found.exact_tokens_max,
        "exact tokens mean": found.exact_tokens_mean,
        "exact H_LM mean, nats": found.exact_h_lm_mean,
        "exact H_LM std, nats": found.exact_h_lm_std,
        "exact horizon mean": np.mean([text.exact_horizon for text in capacities]),
        "at the longest length": found.at_longest,
        "gradient evaluations": table.evaluations,
    }


def _paper(model: str, source: str, m: str) -> dict[str, float | None]:
    """The paper's cell for a model, kind of text and m; a copy of a source counts as the source."""
    kind = ":".join(source.split(":")[: 2 if source.startswith("gen:") else 1])
    cells = dict(zip(ITEMS, PAPER.get(model.rsplit("/", 1)[-1].lower(), ()), strict=False))
    names = ("paper C_tokens", "paper H_LM mean", "paper H_LM std")
    return dict(zip(names, cells.get((kind, m), (None, None, None)), strict=True))


def _by_text(capacities: list[Capacity]) -> list[dict[str, Any]]:
    """A row a text."""
    return [
        {
            "text": i,
            "tokens": text.tokens,
            "C_tokens": text.c_tokens,
            "H_LM, nats": text.h_lm,
            "exact tokens": text.exact_tokens,
            "horizon": text.horizon,
            "exact horizon": text.exact_horizon,
            "gradient evaluations": text.evaluations,
        }
        for i, text in enumerate(capacities)
    ]


def _compare(full: PrefixTable, quick: PrefixTable) -> dict[str, Any]:
    """How the search does against the grid: shares of texts, and of the grid's work."""
    found = agreement(full, quick)
    return {
        "texts": found.texts,
        "same capacity": found.equal,
        "no smaller capacity": found.at_least,
        "work, gradient evaluations": found.evaluations,
        "work, evaluations × tokens": found.token_positions,
        "fits of the grid": len(full.found),
        "fits of the search": len(quick.found),
    }


def _draw(config: Config, study: Study, rows: list[dict[str, Any]]) -> None:
    """Bars of Figure 1: capacity in tokens, and in nats, for each kind of text."""
    shown = [row for row in rows if row["method"] == METHODS[config.method][0] or row["m"] == "shared"]
    with study.figure("table3", columns=2, size=(4.2, 3.8)) as (tokens, nats):
        for place, m in enumerate(config.m):
            own = [row for row in shown if row["m"] == m]
            x = np.arange(len(own)) + 0.4 * (place - (len(config.m) - 1) / 2)
            tokens.bar(x, [row["C_tokens max"] for row in own], 0.38, color=f"C{place}", label=f"m {m}")
            tokens.plot(x, [row["C_tokens mean"] for row in own], "k_", label=None if place else "mean over texts")
            mean, std = ([row[f"H_LM {which}, nats"] for row in own] for which in ("mean", "std"))
            nats.bar(x, mean, 0.38, yerr=std, capsize=3, color=f"C{place}", label=f"m {m}")
        tokens.set(ylabel="capacity, tokens (longest text)")
        nats.set(ylabel="capacity, nats (mean ± std over texts)")
        for axis in (tokens, nats):
            axis.set_xticks(range(len(config.texts)), [source.partition(":")[0] for source in config.texts])
            axis.set_axisbelow(True)
            axis.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)

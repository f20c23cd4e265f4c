"""Figure 3: how much of the information that vectors carry autoregressively do they carry in one forward pass?

    onestep experiment figure3_information --model meta-llama/Llama-3.2-1B

For each text and method the longest prefix, among the tried lengths, that is reconstructed (accuracy of at least 0.99),
and its H_LM (Eq. 3): in one forward pass from [e, m, …, m], and autoregressively from [mem]×K (Kuratov et al.). With
one trainable vector a text (left) `e` alone is its own and `m` is shared by all; with two (right) both are its own.

    trainable vectors a text    one pass / autoregressive, the paper
    1 and 2                     about 0.5, sometimes 0.2

Accuracy of the autoregressive fits is teacher-forced, as in the papers; beside it stands how far greedy generation from
the vectors alone gets (its longest prefix of accuracy 0.99), which one early error ends. `way` is "grid", all lengths
as in the paper, or "search", fewer (`onestep_jax.analysis.capacity`); then a longer solution answers for shorter ones.
A capacity at the longest tried length is a lower bound; the summary counts them. How many texts and restarts the paper
takes here, our notes on it do not say.

Writes figure3.csv (a row a text and number of vectors), figure3_summary.csv and figure3.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onestep_jax import OneStep, generate
from onestep_jax.analysis import horizon
from onestep_jax.analysis.capacity import grid, search
from onestep_jax.analysis.text_capacity import Capacity
from onestep_jax.errors import check_known
from onestep_jax.experiment.study import Study
from onestep_jax.prototokens.reconstruction import behind_prefix
from onestep_jax.prototokens.schemes import Cramming, Scheme

PAPER = {"typical": 0.5, "least": 0.2}  # H_LM in one pass over H_LM autoregressively, about


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment figure3_information --card`.

    `preset` is that of the one-pass fits, `autoregressive` that of the others; `seeds` 1 stands for what they say.
    """

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    lengths: tuple[int, ...] = (4, 5, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024, 1448)
    way: str = "grid"
    preset: str = "paper"
    autoregressive: str = "cramming"
    steps: int = 5000
    seeds: int = 1
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        return Config("default", "demo", count=4, lengths=(2, 8), preset="fast", autoregressive="fast", steps=150)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    lengths = (2, 4, 5, 8, 11, 16, 22, 32, 45)
    fast: dict[str, Any] = {"preset": "fast", "autoregressive": "fast", "steps": 1000}
    return Config("default", "gen", count=6, lengths=lengths, way="search", **fast)


def run(config: Config, study: Study) -> None:
    """Measure capacities with one and with two vectors a text, in both ways."""
    check_known("value of --way", [config.way], ["grid", "search"])
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    shared = OneStep(share="m", group=config.count)
    rows = []
    for vectors, scheme in ((1, shared), (2, OneStep())):
        one_pass = capacities(config, study, f"one-pass-{vectors}", whole, scheme, config.preset)
        mem = Cramming(vectors)
        autoregressive = capacities(config, study, f"autoregressive-{vectors}", whole, mem, config.autoregressive)
        far = generated(study, autoregressive)
        for i, (ours, theirs) in enumerate(zip(one_pass, autoregressive, strict=True)):
            notation = scheme.notation + (", m shared" if scheme.share else "")
            row: dict[str, Any] = {"vectors": vectors, "text": i, "one pass": notation, "tokens": ours.tokens}
            row |= {"nats": ours.h_lm, "autoregressive": mem.notation, "autoregressive tokens": theirs.tokens}
            row |= {"autoregressive nats": theirs.h_lm, "generated tokens": far[i]}
            rows.append(row | {"ratio": ours.h_lm / theirs.h_lm if theirs.h_lm else None})
    study.table("figure3", rows)
    study.table("figure3_summary", [_summary(rows, vectors, max(config.lengths)) for vectors in (1, 2)])
    draw(rows, study)


def capacities(
    config: Config, study: Study, name: str, texts: Sequence[np.ndarray], scheme: Scheme, preset: str
) -> list[Capacity]:
    """Capacity of each text; texts that share a vector can only go through the whole grid."""
    way = grid if config.way == "grid" or scheme.group > 1 else search
    options = {"scheme": scheme, "preset": preset, "steps": config.steps, "seed": config.seed}
    options["seeds"] = None if config.seeds == 1 else config.seeds
    ids = [text.tolist() for text in texts]
    run = study.run_folder(name)
    table = way(study.model, ids, config.lengths, run=run, progress=study.progress, **options)
    return table.capacities(nested=config.way == "search")


def generated(study: Study, found: Sequence[Capacity]) -> list[int]:
    """How far greedy generation from each text's best vectors gets, in tokens."""
    fits = [capacity.best for capacity in found]
    count = max(len(fit.tokens) for fit in fits)
    prompts = [behind_prefix(study.model, fit, fit.vectors["mem"]) for fit in fits]
    new = generate(study.model, prompts, count=count, stop=())
    return [horizon(made.tokens[: len(fit.tokens)], fit.tokens) for fit, made in zip(fits, new, strict=True)]


def _summary(rows: Sequence[Mapping[str, Any]], vectors: int, longest: int) -> dict[str, Any]:
    """Over the texts, for one number of vectors."""
    own = [row for row in rows if row["vectors"] == vectors]
    ratios = [row["ratio"] for row in own if row["ratio"] is not None]
    found: dict[str, Any] = {"vectors": vectors, "texts": len(own)}
    for name in ("nats", "autoregressive nats"):
        nats = np.array([row[name] for row in own])
        found |= {f"{name} mean": nats.mean(), f"{name} std": nats.std()}
    for name in ("tokens", "autoregressive tokens"):
        found |= {f"{name} at the longest length": sum(row[name] == longest for row in own)}
    found |= {"ratios": len(ratios), "ratio median": np.median(ratios) if ratios else None}
    found |= {"ratio min": min(ratios, default=None), "ratio max": max(ratios, default=None)}
    return found | {f"paper ratio {name}": value for name, value in PAPER.items()}


def draw(rows: Sequence[Mapping[str, Any]], study: Study) -> None:
    """One pass against autoregressive, a point a text, a panel a number of vectors."""
    with study.figure("figure3", columns=2) as axes:
        for axis, vectors in zip(axes, (1, 2), strict=True):
            own = [row for row in rows if row["vectors"] == vectors]
            x, y = (np.array([row[name] for row in own]) for name in ("autoregressive nats", "nats"))
            end = 1.05 * max(x.max(), y.max())
            axis.plot([0, end], [0, end], color="0.6", linewidth=1, label="equal")
            axis.plot([0, end], [0, end / 2], color="0.6", linewidth=1, linestyle="--", label="half")
            axis.scatter(x, y, s=24, alpha=0.7, color="tab:blue", zorder=3, label=f"a text ({len(own)})")
            vector = "vector" if vectors == 1 else "vectors"
            axis.set(xlabel=f"H_LM autoregressively, nats ([mem]×{vectors})", xlim=(0, None), ylim=(0, None))
            axis.set(ylabel=f"H_LM in one pass, nats ({vectors} {vector} a text)")
            axis.legend(frameon=False, fontsize="small")

"""Seed stability: which of e and m says what the text is, and can they be exchanged between solutions of a text?

    onestep experiment seed_stability --model meta-llama/Llama-3.2-1B

Each text is fitted from several independent starts. Per leaf: cosine distances between solutions of one text and of
different texts; the share of the variance that lies between texts, beside what vectors that know no text would give;
and how often the nearest other solution is of the same text. Then e of one solution is decoded with m of another one of
the same text. The paper (Figure 6, 50 contexts of PG-19, ten seeds) says of e:

    cosine distance, same text, different seeds    about 0.7–0.9
    nearest                                        same text, before same context, before different contexts

Only solutions of accuracy 0.99 or better count.

Writes seed_stability.csv (a row a leaf), exchange.csv (a row for the pairs as fitted and one for the exchanged) and
seed_stability.png.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onestep_jax.analysis.stability import Exchange, Stability, exchange, stability
from onestep_jax.experiment.study import Study

# leaf → (least, greatest) cosine distance of solutions of one text, as read off Figure 6.
PAPER = {"e": (0.7, 0.9)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `copies` independent solutions of each text."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "gen:pg19"
    count: int = 50
    length: int = 128
    copies: int = 10
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of the paper's Figure 6, or seconds."""
    if smoke:
        return Config("default", "demo", count=4, length=8, copies=3, preset="fast", steps=250)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=8, length=24, copies=10, preset="fast", steps=1500)


def run(config: Config, study: Study) -> None:
    """Fit every text from several starts, compare and exchange the solutions."""
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    texts = study.texts(config.texts, config.count, config.length, config.seed)
    results = study.fit("copies", texts, copies=config.copies, **options)
    leaves = stability(results)
    study.table("seed_stability", [_leaf(name, found) for name, found in leaves.items()])
    mixed = exchange(study.model, results)
    study.table("exchange", _exchanged(mixed))
    _draw(study, leaves, mixed)


def _leaf(name: str, found: Stability) -> dict[str, Any]:
    row = {"leaf": name, "texts": found.texts, "solutions": found.solutions}
    for what, distances in (("within", found.within), ("between", found.between)):
        row |= {f"{what} pairs": len(distances), f"{what} mean": distances.mean(), f"{what} std": distances.std()}
    row |= {"auc": found.auc, "nearest same text": found.nearest, "nearest by chance": found.nearest_chance}
    row |= {"variance between texts": found.share, "by chance": found.share_chance, "icc": found.icc}
    row |= {"norm mean": found.norms.mean(), "norm std": found.norms.std()}
    paper = PAPER.get(name, (None, None))
    return row | {"paper within from": paper[0], "paper within to": paper[1]}


def _exchanged(found: Exchange) -> list[dict[str, Any]]:
    rows = []
    for what, chosen in (("as fitted", found.e == found.m), ("m of another seed", found.e != found.m)):
        accuracy = found.accuracy[chosen]
        row = {"m": what, "pairs": len(accuracy), "accuracy mean": accuracy.mean(), "accuracy std": accuracy.std()}
        rows.append(row | {"accuracy max": accuracy.max(), "exact": np.mean(accuracy == 1)})
    return rows


def _draw(study: Study, leaves: dict[str, Stability], mixed: Exchange) -> None:
    with study.figure("seed_stability", columns=len(leaves) + 1, size=(3.4, 3.2)) as axes:
        for axis, (name, found) in zip(axes, leaves.items(), strict=False):
            edges = np.linspace(*_range([found.within, found.between]), 31)
            for distances, label in ((found.within, "same text"), (found.between, "different texts")):
                axis.hist(distances, edges, density=True, alpha=0.6, label=label)
            axis.set(xlabel=f"cosine distance between {name}", ylabel="density of pairs")
            axis.legend(frameon=False, fontsize="small")
        edges = np.linspace(0, 1, 21)
        for chosen, label in ((mixed.e == mixed.m, "as fitted"), (mixed.e != mixed.m, "m of another seed")):
            share = np.full(int(chosen.sum()), 1 / chosen.sum())
            axes[-1].hist(mixed.accuracy[chosen], edges, weights=share, alpha=0.6, label=label)
        axes[-1].set(xlabel="accuracy of the pair (e, m)", ylabel="share of pairs")
        axes[-1].legend(frameon=False, fontsize="small")


def _range(columns: list[np.ndarray]) -> tuple[float, float]:
    return min(column.min() for column in columns), max(column.max() for column in columns)

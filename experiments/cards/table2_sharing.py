"""Table 2: how many texts can share one of the two vectors before reconstruction suffers.

    onestep experiment table2_sharing --model meta-llama/Llama-3.2-1B

The texts are cut into groups of S_g; the texts of a group share `e` or `m`, each keeps the other vector to itself, and
a group is optimised as one. The paper: Llama-3.2-1B, 256 texts of PG-19, N = 256, S_g = 1, 4, 16, 64, 256, 10 seeds.
"max" takes the best seed of each text, "avg" all of them; then mean ± standard deviation of the accuracy.

    shared      S_g = 1      S_g = 16     S_g = 256
    e      max  1.00 ± 0.00  0.99 ± 0.01  0.99 ± 0.02
           avg  0.98 ± 0.08  0.90 ± 0.17  0.86 ± 0.20
    m      max  1.00 ± 0.00  1.00 ± 0.00  1.00 ± 0.01
           avg  0.98 ± 0.07  0.86 ± 0.19  0.83 ± 0.18

Read here: a group holds S_g texts and no text twice, and a seed fits all groups anew from start vectors of its own, so
that S_g = 1 shares nothing; one fit then serves the rows of both vectors. The paper shares over seeds as well only in
what follows its Table 2.

Token 1 is read at `e`, which sees nothing but itself, so texts that share `e` have the same first token. Where a share
p of them begins with it, the accuracy is at most 1 − (1 − p)/N: 0.996 at the paper's N = 256 for a small p, but 0.9 at
N = 8. So "first" is the accuracy of token 1 and "rest" that of tokens 2 to N, which such a bound does not hold down.
The best seed of "max rest" is that by the rest alone.

Writes table2.csv (a row a vector and S_g), table2_seeds.csv (a row a seed of those) and table2.png.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onestep_jax import OneStep, Results, UserError
from onestep_jax.experiment.study import Study

PAPER_LENGTH = 256
# shared leaf, S_g → mean and standard deviation of "max", then of "avg", in the paper.
PAPER = {
    ("e", 1): (1.00, 0.00, 0.98, 0.08),
    ("e", 16): (0.99, 0.01, 0.90, 0.17),
    ("e", 256): (0.99, 0.02, 0.86, 0.20),
    ("m", 1): (1.00, 0.00, 0.98, 0.07),
    ("m", 16): (1.00, 0.00, 0.86, 0.19),
    ("m", 256): (1.00, 0.01, 0.83, 0.18),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment table2_sharing --card`."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 256
    length: int = 256
    groups: tuple[int, ...] = (1, 4, 16, 64, 256)
    seeds: int = 10
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        return Config("default", "demo", count=4, length=8, groups=(1, 4), seeds=2, preset="fast", steps=120)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=16, length=8, groups=(1, 4, 16), seeds=3, preset="fast", steps=600)


def run(config: Config, study: Study) -> None:
    """Fit every text in groups of every size, once a seed, sharing `e` and then `m`."""
    for group in config.groups:
        if config.count % group:
            raise UserError(f"--groups {group}: {config.count} texts make no groups of {group}; give a divisor")
    texts = study.texts(config.texts, config.count, config.length, config.seed)
    rows, seeds = [], []
    for leaf in ("e", "m"):
        for group in config.groups:
            results = _fit(config, study, texts, leaf, group)
            right_STN = _right(results).reshape(config.seeds, config.count, config.length)
            paper = PAPER.get((leaf, group)) if config.length == PAPER_LENGTH else None
            labels = {"shared": leaf, "texts a group": group, "texts": config.count, "length": config.length}
            rows.append(labels | {"seeds": config.seeds} | _summary(results, right_STN, group, paper))
            seeds += [labels | {"seed": s} | _of_seed(right_TN) for s, right_TN in enumerate(right_STN)]
    study.table("table2", rows)
    study.table("table2_seeds", seeds)
    _draw(config, study, rows)


def _fit(config: Config, study: Study, texts: list[np.ndarray], leaf: str, group: int) -> Results:
    """Every seed of every text, seed by seed, in one run.

    The texts are repeated once a seed: each repeat starts at vectors of its own, and groups do not mix seeds.
    """
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    if group == 1:
        return study.fit("own", texts * config.seeds, **options)
    return study.fit(f"{leaf}-{group}", texts * config.seeds, scheme=OneStep(share=leaf, group=group), **options)


def _right(results: Results) -> np.ndarray:
    """Which tokens of each fit come out right, (fits, N)."""
    return np.stack([text.predicted == text.tokens for text in results])


def _summary(results: Results, right_STN: np.ndarray, group: int, paper: tuple[float, ...] | None) -> dict[str, Any]:
    """The numbers of a row, over seeds (S) and texts (T)."""
    accuracy_ST = right_STN.mean(axis=-1)
    row = _accuracy("max ", accuracy_ST.max(axis=0)) | _accuracy("avg ", accuracy_ST)
    row |= {"max rest mean": None, "avg rest mean": None, "avg first mean": right_STN[..., 0].mean()}
    if right_STN.shape[-1] > 1:
        rest_ST = right_STN[..., 1:].mean(axis=-1)
        row |= {"max rest mean": rest_ST.max(axis=0).mean(), "avg rest mean": rest_ST.mean()}
    row |= {"steps of a group": np.mean(results.steps), "vectors a text": 1 + 1 / group}
    names = ("paper max mean", "paper max std", "paper avg mean", "paper avg std")
    return row | dict(zip(names, paper or (None,) * len(names), strict=True))


def _of_seed(right_TN: np.ndarray) -> dict[str, Any]:
    rest = right_TN[:, 1:].mean() if right_TN.shape[1] > 1 else None
    return _accuracy("", right_TN.mean(axis=1)) | {"first mean": right_TN[:, 0].mean(), "rest mean": rest}


def _accuracy(prefix: str, accuracy: np.ndarray) -> dict[str, float]:
    exact = float((accuracy == 1).mean())
    return {f"{prefix}mean": accuracy.mean(), f"{prefix}std": accuracy.std(), f"{prefix}exact": exact}


def _draw(config: Config, study: Study, rows: list[dict[str, Any]]) -> None:
    """Mean accuracy against S_g, best seed and all seeds."""
    with study.figure("table2", size=(6, 4)) as (axis,):
        for leaf, color in (("e", "C0"), ("m", "C1")):
            own = [row for row in rows if row["shared"] == leaf]
            for which, style in (("max", "o-"), ("avg", "s--")):
                label = f"{leaf} shared, {'best' if which == 'max' else 'all'} of {config.seeds} seeds"
                axis.plot(config.groups, [row[f"{which} mean"] for row in own], style, color=color, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.groups, [str(group) for group in config.groups])
        axis.set(xlabel="texts that share the vector, $S_g$", ylabel="mean accuracy", ylim=(-0.02, 1.02))
        axis.legend(frameon=False, fontsize="small")

"""Table 1: which arrangement of one or two vectors lets a text of N tokens out in one forward pass.

    onestep experiment table1_arrangements --model meta-llama/Llama-3.2-1B

Each text is fitted under each arrangement at each length, with the paper's protocol. The paper: Llama-3.2-1B, 50 texts
of PG-19, lengths 1, 2, 4, …, 1024, mean accuracy ± standard deviation over the texts.

    arrangement          N=1          N=2          N=4          N=256
    [e]×N                1.00 ± 0.00  0.45 ± 0.31  0.17 ± 0.18  0.01 ± 0.01
    [e]×N/2 [m]×N/2      1.00 ± 0.00  1.00 ± 0.00  0.12 ± 0.13  0.01 ± 0.01
    [e,m]×N/2            1.00 ± 0.00  1.00 ± 0.00  1.00 ± 0.00  0.17 ± 0.34
    [e] [m]×N            1.00 ± 0.00  1.00 ± 0.00  1.00 ± 0.00  0.97 ± 0.15
    [e] [m]×(N−1)        1.00 ± 0.00  1.00 ± 0.00  1.00 ± 0.00  0.99 ± 0.10

Where positions enter by rotation only, N equal inputs give N equal outputs: [e]×N gets one kind of token right, and the
first half of [e]×N/2 [m]×N/2 too, so that for distinct tokens their accuracies are at most 1/N and (1 + N/2)/N. Behind
a frozen prefix, which the preset "fast" has where the first position is an attention sink, this does not hold: equal
inputs differ in how much of the prefix they see.

Writes table1.csv (a row an arrangement and length) and table1.png.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onestep_jax import OneStep
from onestep_jax.experiment.study import Study
from onestep_jax.prototokens.schemes import ARRANGEMENTS

# arrangement → {N: (mean, standard deviation)} of the paper.
PAPER = {
    "one-vector": {1: (1.00, 0.00), 2: (0.45, 0.31), 4: (0.17, 0.18), 256: (0.01, 0.01)},
    "halves": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (0.12, 0.13), 256: (0.01, 0.01)},
    "alternating": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (1.00, 0.00), 256: (0.17, 0.34)},
    "unguided-e": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (1.00, 0.00), 256: (0.97, 0.15)},
    "one-step": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (1.00, 0.00), 256: (0.99, 0.10)},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment table1_arrangements --card`."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    lengths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        return Config("default", "demo", count=4, lengths=(4, 8), preset="fast", steps=120)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=8, lengths=(1, 2, 4, 8, 16, 32), preset="fast", steps=1000)


def run(config: Config, study: Study) -> None:
    """Fit every text under every arrangement at every length."""
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    prefixes = [ids[:length] for length in config.lengths for ids in whole]
    rows = []
    for name, arrangement in ARRANGEMENTS.items():
        options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
        results = study.fit(name, prefixes, scheme=OneStep(name), **options)
        for length in config.lengths:
            found = [text for text in results if len(text.tokens) == length]
            accuracy = np.array([text.accuracy for text in found])
            paper = PAPER[name].get(length, (None, None))
            row = {"arrangement": arrangement.notation, "length": length, "texts": len(found)}
            row |= {"accuracy mean": accuracy.mean(), "accuracy std": accuracy.std(), "exact": np.mean(accuracy == 1)}
            row |= {"steps mean": np.mean([text.steps for text in found])}
            rows.append(row | {"paper mean": paper[0], "paper std": paper[1]})
    study.table("table1", rows)
    with study.figure("table1", size=(6, 4)) as (axis,):
        for arrangement in ARRANGEMENTS.values():
            own = [row for row in rows if row["arrangement"] == arrangement.notation]
            axis.plot(config.lengths, [row["accuracy mean"] for row in own], marker="o", label=arrangement.notation)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="tokens N", ylabel="mean accuracy", ylim=(-0.02, 1.02))
        axis.legend(frameon=False, fontsize="small")

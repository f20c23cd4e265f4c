"""Figure 7: are the solutions of one text connected by a curve along which the text is still reconstructed?

    onestep experiment figure7_connectivity --model meta-llama/Llama-3.2-1B

Each text is fitted from several independent starts; between every two of its solutions p1 and p2, accuracy (Eq. 2) is
measured along the straight line and along a quadratic Bézier curve φ(τ) = (1−τ)² p1 + 2τ(1−τ) π + τ² p2 (Eq. 4), whose
control point π is trained with Adam on the expected loss over τ ~ U[0, 1] (Eq. 5). The paper: 5 texts, 10 solutions
each, all pairs.

    way                  accuracy                        length / straight length
    straight line        falls far below 1 in between    1
    Bézier curve         stays near 1                    at most 1.2

How long the texts are and how π is trained, our notes on the paper do not say; 128 tokens, 1,000 updates with a
learning rate that decays to zero as a cosine, from a thirtieth of the distance of the two solutions (root mean square
of their components), and four τ in each are taken here. A point is e and m together, both of the text's own. Solutions
that are not exact are left out, and counted.

Writes figure7.csv (a row a way), figure7_pairs.csv (a row a pair), figure7_tau.csv (a row a point between the ends) and
figure7.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onestep_jax import OneStep
from onestep_jax.analysis.connectivity import Connection, Progress, connect, solution_pairs
from onestep_jax.errors import UserError
from onestep_jax.experiment.study import Study

PAPER_RATIO = {"line": 1.0, "curve": 1.2}  # lengths of the way over that of the straight line, at most
WAYS = {"line": "straight line", "curve": "Bézier curve"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment figure7_connectivity --card`.

    `temperature` is that of the softmax in the loss by which π is trained; Eq. 5 has 1.
    """

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 5
    solutions: int = 10
    length: int = 128
    preset: str = "paper"
    steps: int = 5000
    curve_steps: int = 1000
    temperature: float = 1.0
    points: int = 33
    batch: int = 8
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        fast: dict[str, Any] = {"preset": "fast", "steps": 200, "curve_steps": 300, "temperature": 0.1}
        return Config("default", "demo", count=2, solutions=2, length=8, points=9, **fast)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    fast: dict[str, Any] = {"preset": "fast", "steps": 1500, "temperature": 0.1}
    return Config("default", "gen", count=4, solutions=5, length=16, **fast)


def run(config: Config, study: Study) -> None:
    """Fit the solutions, connect all pairs, look along both ways."""
    texts = study.texts(config.texts, config.count, config.length, config.seed)
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    results = study.fit("solutions", texts, copies=config.solutions, **options)
    pairs = solution_pairs(results)
    if not pairs:
        raise UserError("no text has two exact solutions to connect; give a smaller --length, or more --steps")
    study.say(f"{results.solved} of {len(results)} solutions are exact: {len(pairs)} pairs")

    def tell(progress: Progress) -> None:
        if progress.step == progress.steps:
            done = min(progress.pairs_done + config.batch, progress.pairs)
            study.say(
                f"{done} of {progress.pairs} pairs connected, {progress.loss:.3g} nats a token on the last curves"
            )

    options = {"steps": config.curve_steps, "temperature": config.temperature, "points": config.points}
    options |= {"batch": config.batch, "seed": config.seed}
    connections = connect(study.model, OneStep(), pairs, progress=tell, **options)
    study.table("figure7", [_summary(way, connections, len(results), results.solved) for way in WAYS])
    study.table("figure7_pairs", [connection.row() for connection in connections])
    between = _between(connections)
    study.table("figure7_tau", between)
    draw(between, study)


def _summary(way: str, connections: Sequence[Connection], solutions: int, exact: int) -> dict[str, Any]:
    """One way over all pairs."""
    accuracy_PT = np.stack([getattr(connection, f"{way}_accuracy") for connection in connections])
    lengths = np.array([getattr(connection, f"{way}_length") / connection.line_length for connection in connections])
    least_P = accuracy_PT.min(axis=1)
    row: dict[str, Any] = {"way": WAYS[way], "solutions": solutions, "exact solutions": exact}
    row |= {"pairs": len(connections), "accuracy mean": accuracy_PT.mean(), "least accuracy mean": least_P.mean()}
    row |= {"least accuracy min": least_P.min(), "exact throughout": np.mean(least_P == 1)}
    row |= {"length ratio mean": lengths.mean(), "length ratio max": lengths.max()}
    return row | {"paper length ratio max": PAPER_RATIO[way]}


def _between(connections: Sequence[Connection]) -> list[dict[str, Any]]:
    """Mean and least accuracy over the pairs, at each τ."""
    rows = []
    for i, tau in enumerate(connections[0].tau):
        row: dict[str, Any] = {"tau": tau, "pairs": len(connections)}
        for way in WAYS:
            accuracy = np.array([getattr(connection, f"{way}_accuracy")[i] for connection in connections])
            row |= {f"{way} mean": accuracy.mean(), f"{way} min": accuracy.min()}
        rows.append(row)
    return rows


def draw(rows: Sequence[dict[str, Any]], study: Study) -> None:
    """Mean and least accuracy against τ."""
    tau = [row["tau"] for row in rows]
    with study.figure("figure7", size=(6, 4)) as (axis,):
        for way, colour in zip(WAYS, ("tab:red", "tab:blue"), strict=True):
            mean, least = ([row[f"{way} {what}"] for row in rows] for what in ("mean", "min"))
            axis.plot(tau, mean, color=colour, label=f"{WAYS[way]}, mean of pairs")
            axis.plot(tau, least, color=colour, linestyle="--", label=f"{WAYS[way]}, worst pair")
        axis.set(xlabel="place τ between the two solutions", ylabel="accuracy", ylim=(-0.02, 1.02))
        axis.legend(frameon=False, fontsize="small")

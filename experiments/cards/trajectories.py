"""Trajectories: which way do the vectors go, and do seeds of one text arrive at the same place?

    onestep experiment trajectories --model meta-llama/Llama-3.2-1B

Texts are fitted from several starts and the vectors recorded on the way. The paths of a text are looked at in the plane
in which their points vary most (principal components), for e, for m and for both end to end. A plane explains much of
any walk through many dimensions, so the same is computed for random walks: the same starts and the same lengths of the
steps, in random directions. Path length is set against displacement: their quotient is 1 for a straight way. The paper
gives no number for this; its Figure 6 finds solutions of different seeds far apart.

Writes trajectories.csv (a row a text, leaf and seed), trajectories_planes.csv (a row a text and leaf),
trajectories_points.csv (every recorded point, both leaves in one plane) and trajectories.png (up to three texts, colour
for accuracy, a circle at the first recorded point, a star at the last).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onestep_jax.analysis.trajectories import Path, Plane, flatten, principal_plane, rows, travel
from onestep_jax.experiment.study import Study
from onestep_jax.store.results import TextResult, Trial

LEAVES = {"e": ("e",), "m": ("m",), "e and m": ("e", "m")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `copies` starts of each text, vectors recorded `every` so many steps."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 3
    length: int = 128
    copies: int = 10
    every: int = 10
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """A size for the paper's model, or seconds."""
    if smoke:
        return Config("default", "demo", count=2, length=8, copies=3, every=5, preset="fast", steps=250)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=3, length=32, copies=8, preset="fast", steps=2000)


def run(config: Config, study: Study) -> None:
    """Fit and record, then look at the paths of each text."""
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed, "chunk": config.every}
    texts = study.texts(config.texts, config.count, config.length, config.seed)
    results = study.fit("paths", texts, copies=config.copies, record=True, **options)
    paths, planes, points, drawn = [], [], [], []
    for number in range(config.count):
        solutions = list(results)[number * config.copies : (number + 1) * config.copies]
        trials = [_kept(solution) for solution in solutions]
        for leaf, names in LEAVES.items():
            plane = principal_plane([_path(trial) for trial in trials], leaves=names)
            planes.append({"text": number, "leaf": leaf, **_explained(plane, trials, config.seed)})
            paths += [
                {"text": number, "leaf": leaf, "copy": copy, **_travelled(trial, names)}
                for copy, trial in enumerate(trials)
            ]
        both = principal_plane([_path(trial) for trial in trials])
        points += [{"text": number} | row for row in rows(both, [trial.trace for trial in trials])]
        drawn.append((both, trials))
    study.table("trajectories", paths)
    study.table("trajectories_planes", planes)
    study.table("trajectories_points", points)
    _draw(study, drawn[:3])


def _kept(result: TextResult) -> Trial:
    return next(trial for trial in result.trials if trial.seed == result.seed)


def _path(trial: Trial) -> Path:
    assert trial.path is not None
    return trial.path


def _travelled(trial: Trial, leaves: tuple[str, ...]) -> dict[str, Any]:
    way = travel(_path(trial), leaves=leaves)
    row = {"status": trial.status, "accuracy": trial.accuracy, "steps": trial.steps, "points": len(trial.trace)}
    row |= {"length": way.length, "displacement": way.displacement, "reach": way.reach}
    return row | {"displacement / length": way.straightness}


def _explained(plane: Plane, trials: list[Trial], seed: int) -> dict[str, Any]:
    """Shares of the variance on the two axes, of the paths and of random walks that are like them."""
    generator = np.random.default_rng(seed)
    walks = [{"walk": _random_walk(flatten(_path(trial), plane.leaves), generator)} for trial in trials]
    walked = principal_plane(walks)
    row = {"paths": len(trials), "points": sum(len(trial.trace) for trial in trials)}
    row |= {f"variance of axis {i + 1}": share for i, share in enumerate(plane.variance_ratio)}
    return row | {f"axis {i + 1} of random walks": share for i, share in enumerate(walked.variance_ratio)}


def _random_walk(points_PD: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A walk from the same start, with steps of the same lengths in random directions."""
    lengths_P = np.linalg.norm(np.diff(points_PD, axis=0), axis=1)
    directions_PD = generator.standard_normal((len(lengths_P), points_PD.shape[1]))
    directions_PD *= (lengths_P / np.linalg.norm(directions_PD, axis=1))[:, None]
    return points_PD[0][None] + np.concatenate([np.zeros_like(points_PD[:1]), np.cumsum(directions_PD, axis=0)])


def _draw(study: Study, drawn: list[tuple[Plane, list[Trial]]]) -> None:
    with study.figure("trajectories", columns=len(drawn), size=(4, 3.6)) as axes:
        for axis, (plane, trials) in zip(axes, drawn, strict=True):
            for place, trial in zip(plane.coordinates, trials, strict=True):
                axis.plot(*place.T, color="0.75", linewidth=0.8, zorder=1)
                axis.scatter(*place.T, c=trial.trace[:, 2], s=8, vmin=0, vmax=1, cmap="viridis", zorder=2)
                axis.scatter(*place[0], marker="o", facecolors="white", edgecolors="black", s=24, zorder=3)
                axis.scatter(*place[-1], marker="*", color="C3", s=60, zorder=3)
            first, second = (f"component {i + 1} ({share:.0%})" for i, share in enumerate(plane.variance_ratio))
            axis.set(xlabel=first, ylabel=second)
        accuracy = axes[-1].figure.colorbar(axes[-1].collections[0], ax=axes[-1])
        accuracy.set_label("accuracy")

"""Paths of the optimisation: in the plane where they vary most, and their length against their displacement.

A path is a `Trial.path`: leaf → (points, D), the vectors at each point of the trial's trace. Trials of one text or of
several are shown in one plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import UserError, check_known

Path = Mapping[str, np.ndarray]


class Plane(NamedTuple):
    """Principal axes of paths, and the coordinates of the paths.

    Attributes:
      centre: (D,) float64, the mean of all points; leaves are concatenated in the order of `leaves`.
      axes: (dims, D) float64, orthonormal, the largest component of each positive.
      variance_ratio: (dims,) float64, each axis's share of the variance of the points.
      coordinates: (points, dims) float64 for each path.
      leaves: names of the leaves that the points consist of.
    """

    centre: np.ndarray
    axes: np.ndarray
    variance_ratio: np.ndarray
    coordinates: tuple[np.ndarray, ...]
    leaves: tuple[str, ...]


class Travel(NamedTuple):
    """Length and extent of a path, Euclidean.

    Attributes:
      length: sum of its steps between recorded points.
      displacement: from its first point to its last.
      reach: from its first point to the farthest.
    """

    length: float
    displacement: float
    reach: float

    @property
    def straightness(self) -> float:
        """Displacement divided by length: 1 for a straight path; NaN for one that never moved."""
        return self.displacement / self.length if self.length else float("nan")


def flatten(path: Path, leaves: Sequence[str] | None = None) -> np.ndarray:
    """Points of a path as vectors, (points, D) float64; leaves are concatenated alphabetically or in the order given.

    Raises:
      UserError: for a leaf that the path does not have, leaves with different numbers of points, or no leaf.
    """
    names = sorted(path) if leaves is None else list(leaves)
    check_known("leaf", names, path)
    counts = {name: len(path[name]) for name in names}
    if len(set(counts.values())) != 1:
        raise UserError(f"a path whose leaves have {counts or 'no'} points; expected equally many, at least one")
    return np.concatenate([np.asarray(path[name], np.float64).reshape(counts[name], -1) for name in names], axis=1)


def principal_plane(paths: Sequence[Path], *, leaves: Sequence[str] | None = None, dims: int = 2) -> Plane:
    """Find the principal components of all points of all paths, each point counting once.

    A path with more points has more weight; to change that, give every second point of it.

    Args:
      paths: leaf → (points, D) each, such as `[trial.path for trial in text.trials]`.
      leaves: which to use; None for all.
      dims: number of axes.

    Raises:
      UserError: for paths of different widths, or fewer points than axes.
    """
    given = [flatten(path, leaves) for path in paths]
    widths = {points.shape[1] for points in given}
    if len(widths) != 1:
        raise UserError(f"paths of widths {sorted(widths)}: expected at least one path, and one width")
    points_PD = np.concatenate(given)
    if not 1 <= dims <= min(len(points_PD) - 1, points_PD.shape[1]):
        limit = f"at least 1, at most the width and one less than the points, {points_PD.shape[::-1]}"
        raise UserError(f"dims = {dims}: expected {limit}")
    if not np.isfinite(points_PD).all():
        raise UserError("a value of a path is not finite; leave failed trials out")
    centre = points_PD.mean(axis=0)
    _, singular, axes = np.linalg.svd(points_PD - centre, full_matrices=False)
    axes = axes[:dims]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    total = np.square(singular).sum()
    ratio = np.square(singular[:dims]) / total if total else np.zeros(dims)
    names = tuple(sorted(paths[0]) if leaves is None else leaves)
    return Plane(
        centre=centre,
        axes=axes,
        variance_ratio=ratio,
        coordinates=tuple((points - centre) @ axes.T for points in given),
        leaves=names,
    )


def travel(path: Path, *, leaves: Sequence[str] | None = None) -> Travel:
    """Measure length, displacement and reach of one path, leaves concatenated."""
    points = flatten(path, leaves)
    steps, away = np.linalg.norm(np.diff(points, axis=0), axis=1), np.linalg.norm(points - points[0], axis=1)
    return Travel(length=float(steps.sum()), displacement=float(away[-1]), reach=float(away.max()))


def rows(plane: Plane, traces: Sequence[np.ndarray], names: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """One row for each recorded point: its coordinates in the plane, and steps, loss and accuracy there.

    Args:
      plane: of `principal_plane`.
      traces: (points, 3) of each path, `Trial.trace`: steps, loss, accuracy.
      names: of the paths, such as seeds; by default their numbers.

    Raises:
      UserError: if a trace and its path have different numbers of points.
    """
    if names is None:
        names = range(len(traces))
    if not len(plane.coordinates) == len(traces) == len(names):
        raise UserError(
            f"{len(traces)} traces and {len(names)} names for {len(plane.coordinates)} paths: expected one each"
        )
    found = []
    for name, place, trace in zip(names, plane.coordinates, traces, strict=True):
        if len(place) != len(trace):
            raise UserError(f"path {name!r}: {len(place)} points, its trace has {len(trace)}; give paths as recorded")
        for (step, loss, accuracy), coordinates in zip(np.asarray(trace).tolist(), place.tolist(), strict=True):
            axes = {f"axis_{i + 1}": value for i, value in enumerate(coordinates)}
            found.append({"path": name, "step": int(step), "loss": loss, "accuracy": accuracy} | axes)
    return found

"""Paths of the optimisation: in the plane where they vary most, and how far they went for how near they came.

A path is what `Trial.path` holds: leaf → (points, D), the vectors at each point of the trial's trace. Several trials of
one text, or of several, are looked at in one plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import UserError, check_known

Path = Mapping[str, np.ndarray]


class Plane(NamedTuple):
    """Principal axes of paths and the paths in them.

    Attributes:
      centre: (D,) float64, the mean of all points; leaves are put end to end in the order of `leaves`.
      axes: (dims, D) float64, orthonormal, the largest component of each positive.
      variance_ratio: (dims,) float64, each axis's share of the variance of the points.
      coordinates: (points, dims) float64 for each path.
      leaves: names of the leaves looked at.
    """

    centre: np.ndarray
    axes: np.ndarray
    variance_ratio: np.ndarray
    coordinates: tuple[np.ndarray, ...]
    leaves: tuple[str, ...]


class Travel(NamedTuple):
    """How a path went, in Euclidean lengths.

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
        """Displacement in lengths of the path: 1 for a straight one; NaN for one that never moved."""
        return self.displacement / self.length if self.length else float("nan")


def flatten(path: Path, leaves: Sequence[str] | None = None) -> np.ndarray:
    """(points, D) float64, leaves end to end in alphabetical order, or in the order given.

    Raises:
      UserError: for a leaf that the path does not have, leaves of different numbers of points, or none at all.
    """
    names = sorted(path) if leaves is None else list(leaves)
    check_known("leaf", names, path)
    counts = {name: len(path[name]) for name in names}
    if len(set(counts.values())) != 1:
        raise UserError(f"a path whose leaves have {counts or 'no'} points; expected as many of each, at least one")
    return np.concatenate([np.asarray(path[name], np.float64).reshape(counts[name], -1) for name in names], axis=1)


def principal_plane(paths: Sequence[Path], *, leaves: Sequence[str] | None = None, dims: int = 2) -> Plane:
    """Principal component analysis of all points of all paths together, each point counting once.

    A longer path has more points and so more say; give every second point of it to change that.

    Args:
      paths: leaf → (points, D) each, such as `[trial.path for trial in text.trials]`.
      leaves: which to look at, put end to end; None for all.
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
        raise UserError("a path with a value that is not finite; leave failed trials out")
    centre = points_PD.mean(axis=0)
    _, singular, axes = np.linalg.svd(points_PD - centre, full_matrices=False)
    axes = axes[:dims]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    total = np.square(singular).sum()
    ratio = np.square(singular[:dims]) / total if total else np.zeros(dims)
    names = tuple(sorted(paths[0]) if leaves is None else leaves)
    return Plane(centre, axes, ratio, tuple((points - centre) @ axes.T for points in given), names)


def project(plane: Plane, path: Path) -> np.ndarray:
    """Coordinates (points, dims) of another path, or of single points, in a plane."""
    return (flatten(path, plane.leaves) - plane.centre) @ plane.axes.T


def travel(path: Path, *, leaves: Sequence[str] | None = None) -> Travel:
    """Length, displacement and reach of one path, leaves put end to end."""
    points = flatten(path, leaves)
    steps, away = np.linalg.norm(np.diff(points, axis=0), axis=1), np.linalg.norm(points - points[0], axis=1)
    return Travel(float(steps.sum()), float(away[-1]), float(away.max()))


def rows(plane: Plane, traces: Sequence[np.ndarray], names: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """One row a recorded point: where it lies in the plane, beside steps, loss and accuracy there.

    Args:
      plane: of `principal_plane`.
      traces: (points, 3) of each path, `Trial.trace`: steps, loss, accuracy.
      names: of the paths, such as seeds; by default their numbers.

    Raises:
      UserError: if a trace has not the points of its path.
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

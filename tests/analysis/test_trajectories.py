"""Paths of the optimisation: planar paths, lengths by formula, paths and traces together."""

from __future__ import annotations

import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.analysis.trajectories import flatten, principal_plane, rows, travel


def planar(points: int = 40, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A path (points, width) in a plane, its coordinates there, and the plane's axes, the first of more variance."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    angle = np.linspace(0, 5, points)
    inside = np.stack([5 * np.cos(angle), np.sin(angle)], axis=1)
    inside -= inside.mean(axis=0)
    inside = inside @ np.linalg.svd(inside, full_matrices=False)[2].T
    return inside @ axes + rng.normal(size=width), inside, axes


def split(points: np.ndarray) -> dict[str, np.ndarray]:
    """Points as the leaves of a path, one of them of several vectors."""
    return {"mem": points[:, :8].reshape(len(points), 2, 4), "m": points[:, 8:]}


def test_a_planar_path_is_recovered():
    points, inside, axes = planar()
    plane = principal_plane([{"e": points}])
    np.testing.assert_allclose(plane.variance_ratio.sum(), 1, atol=1e-12)
    np.testing.assert_allclose(plane.variance_ratio, inside.var(axis=0) / inside.var(axis=0).sum())
    np.testing.assert_allclose(plane.coordinates[0] @ plane.axes + plane.centre, points, atol=1e-12)
    np.testing.assert_allclose(np.abs(plane.axes @ axes.T), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(plane.centre, points.mean(axis=0))
    assert all(axis[np.abs(axis).argmax()] > 0 for axis in plane.axes)


def test_the_sign_of_an_axis_does_not_depend_on_the_direction_of_the_path():
    points, *_ = planar()
    forward, mirrored = principal_plane([{"e": points}]), principal_plane([{"e": -points}])
    np.testing.assert_allclose(mirrored.axes, forward.axes, atol=1e-12)
    np.testing.assert_allclose(mirrored.coordinates[0], -forward.coordinates[0], atol=1e-12)


def test_several_paths_share_one_plane():
    points, *_ = planar(60)
    whole = principal_plane([{"e": points}])
    parts = principal_plane([{"e": points[:13]}, {"e": points[13:]}])
    np.testing.assert_allclose(np.concatenate(parts.coordinates), whole.coordinates[0], atol=1e-12)
    assert [len(path) for path in parts.coordinates] == [13, 47]


def test_leaves_are_taken_together_or_alone():
    points, *_ = planar()
    path = split(points)
    both = principal_plane([path])
    assert both.leaves == ("m", "mem")
    np.testing.assert_allclose(both.variance_ratio.sum(), 1, atol=1e-12)
    np.testing.assert_array_equal(flatten(path), np.concatenate([points[:, 8:], points[:, :8]], axis=1))
    alone = principal_plane([path], leaves=["mem"], dims=1)
    expected = np.linalg.eigvalsh(np.cov(points[:, :8].T))[::-1]
    np.testing.assert_allclose(alone.variance_ratio, expected[:1] / expected.sum())
    coordinates = (flatten(path, alone.leaves) - alone.centre) @ alone.axes.T
    np.testing.assert_allclose(coordinates, alone.coordinates[0])


def test_paths_that_never_move_have_no_variance():
    plane = principal_plane([{"e": np.ones((3, 4))}])
    np.testing.assert_array_equal(plane.variance_ratio, 0)
    still = travel({"e": np.ones((3, 4))})
    assert (still.length, still.displacement, still.reach) == (0, 0, 0)
    assert np.isnan(still.straightness)


def test_length_displacement_and_reach():
    there_and_back = {"e": np.array([[0.0, 0], [3, 4], [3, 10], [3, 4]]), "m": np.zeros((4, 2))}
    went = travel(there_and_back)
    np.testing.assert_allclose(went[:3], [5 + 6 + 6, 5, np.hypot(3, 10)])
    np.testing.assert_allclose(went.straightness, 5 / 17)
    straight = travel({"e": np.outer(np.linspace(0, 1, 9), [3.0, 4]), "m": np.outer(np.linspace(0, 1, 9), [12.0])})
    np.testing.assert_allclose([straight.length, straight.displacement, straight.straightness], [13, 13, 1])
    np.testing.assert_allclose(travel(there_and_back, leaves=["m"]).length, 0)


def test_rows_put_places_beside_steps_loss_and_accuracy():
    points, *_ = planar(5)
    plane = principal_plane([{"e": points[:2]}, {"e": points[2:]}])
    trace = np.array([[10, 2.5, 0.25], [20, 1.5, 0.5], [30, 0.5, 1.0]])
    got = rows(plane, [trace[:2], trace], names=["seed 0", "seed 1"])
    assert len(got) == 5
    expected = {"path": "seed 1", "step": 20, "loss": 1.5, "accuracy": 0.5}
    assert got[3] == expected | {"axis_1": plane.coordinates[1][1, 0], "axis_2": plane.coordinates[1][1, 1]}
    assert [row["path"] for row in rows(plane, [trace[:2], trace])] == [0, 0, 1, 1, 1]


def test_refusals():
    path = {"e": np.ones((3, 4))}
    with pytest.raises(UserError, match="unknown leaf 'f'"):
        principal_plane([path], leaves=["f"])
    with pytest.raises(UserError, match="dims = 3"):
        principal_plane([path], dims=3)
    with pytest.raises(UserError, match="widths"):
        principal_plane([path, {"e": np.ones((3, 5))}])
    with pytest.raises(UserError, match="widths"):
        principal_plane([])
    with pytest.raises(UserError, match="not finite"):
        principal_plane([{"e": np.full((3, 4), np.nan)}])
    with pytest.raises(UserError, match="leaves have"):
        flatten({"e": np.ones((3, 4)), "m": np.ones((2, 4))})
    plane = principal_plane([path])
    with pytest.raises(UserError, match="3 points, its trace has 2"):
        rows(plane, [np.zeros((2, 3))])
    with pytest.raises(UserError, match="0 traces"):
        rows(plane, [])

"""Curves between solutions: geometry, what is trained and what is not, independence of batch and padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Model, UserError, fit
from onestep_jax.analysis import bezier
from onestep_jax.analysis.bezier import curve_length, line_length, quadratic, segment
from onestep_jax.analysis.connectivity import Connection, Pair, Progress, connect, pair_of, solution_pairs
from onestep_jax.devices.placement import Pmap
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.schemes import OneStep
from onestep_jax.store.results import TextResult

SETTINGS = {"steps": 60, "learning_rate": 0.03, "samples": 4, "points": 9, "temperature": 0.25, "chunk": 20}
ONE = OneStep()


@pytest.fixture(scope="module")
def solutions(tiny: Model, token_lists: list[list[int]]) -> list[TextResult]:
    """Two texts, three solutions each: of the first, then of the second."""
    texts = [tokens for tokens in token_lists[:2] for _ in range(3)]
    results = fit(tiny, texts, steps=600, scheme=OneStep(), slots=6, placement=Pmap(jax.local_devices()[:1]))
    assert results.solved == 6
    return list(results)


@pytest.fixture(scope="module")
def pair(solutions: list[TextResult]) -> Pair:
    return pair_of(solutions[0], solutions[1])


@pytest.fixture(scope="module")
def found(tiny: Model, pair: Pair) -> Connection:
    """The pair, connected alone."""
    return connect(tiny, ONE, [pair], **SETTINGS)[0]


def shortened(pair: Pair, length: int) -> Pair:
    """A solution is one for every prefix of its text."""
    return pair._replace(tokens=pair.tokens[:length], words=pair.words + np.uint32(1))


def scores(model: Model, pair: Pair, points: list) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy of each point, one forward pass each."""
    scored = [score_text(model, ONE, model.params, point, pair.tokens, len(pair.tokens)) for point in points]
    return np.array([float(nats) for nats, *_ in scored]), np.array([float(hits.mean()) for _, hits, *_ in scored])


def same(one: Connection, other: Connection) -> None:
    """Two connections agree up to the rounding of another batch shape, carried along the training."""
    assert one.names == other.names
    np.testing.assert_array_equal(one.curve_accuracy, other.curve_accuracy)
    np.testing.assert_array_equal(one.line_accuracy, other.line_accuracy)
    np.testing.assert_allclose(one.curve_loss, other.curve_loss, atol=1e-3)
    for leaf in one.control:
        np.testing.assert_allclose(one.control[leaf], other.control[leaf], atol=1e-3)


# --- geometry ---


def test_curves_end_exactly_at_the_solutions(pair: Pair):
    rng = np.random.default_rng(0)
    control = {name: rng.normal(size=vector.shape).astype(np.float32) for name, vector in pair.first.items()}
    for way in (lambda tau: quadratic(pair.first, control, pair.second, tau), lambda tau: segment(*pair[1:3], tau)):
        for tau, end in ((0.0, pair.first), (1.0, pair.second)):
            for name, vector in way(jnp.float32(tau)).items():
                np.testing.assert_array_equal(vector, end[name])


def test_a_bezier_curve_leaves_towards_the_control_point():
    first, control, second = ({"e": np.array(point)} for point in ([0.0, 0], [1.0, 2], [4.0, 0]))
    np.testing.assert_allclose(quadratic(first, control, second, 0.5)["e"], [1.5, 1.0])
    step = 1e-6
    np.testing.assert_allclose(quadratic(first, control, second, step)["e"] / step, [2, 4], rtol=1e-5)


def test_length_of_a_curve():
    first, second = {"e": np.array([0.0, 0]), "m": np.array([1.0])}, {"e": np.array([3.0, 0]), "m": np.array([5.0])}
    middle = segment(first, second, 0.5)
    assert line_length(first, second) == 5
    np.testing.assert_allclose(curve_length(first, middle, second), 5, rtol=1e-14)
    rng = np.random.default_rng(1)
    control = {"e": rng.normal(size=2) * 3, "m": rng.normal(size=1) * 3}
    tau = np.linspace(0, 1, 20001)[:, None]
    walk = np.concatenate(list(quadratic(first, control, second, tau).values()), axis=1)
    np.testing.assert_allclose(
        curve_length(first, control, second), np.linalg.norm(np.diff(walk, axis=0), axis=1).sum(), rtol=1e-8
    )
    # There and back: half of it out, φ(τ) = 2τ(1 − τ) π.
    np.testing.assert_allclose(curve_length(first, second, first), 5, rtol=1e-4)


# --- training ---


def test_the_untrained_curve_is_the_straight_line(tiny: Model, pair: Pair):
    (found,) = connect(tiny, ONE, [pair], **SETTINGS | {"steps": 0})
    np.testing.assert_array_equal(found.curve_accuracy, found.line_accuracy)
    np.testing.assert_allclose(found.curve_loss, found.line_loss, atol=1e-4)
    np.testing.assert_allclose(found.ratio, 1, rtol=1e-6)
    assert found.best_step == 0
    assert found.line_accuracy.min() < 1, "the pair is connected by the line: the other tests need one that is not"


def test_reported_numbers_are_those_of_one_forward_pass_each(tiny: Model, pair: Pair, found: Connection):
    taus = np.linspace(0, 1, 9)
    np.testing.assert_array_equal(found.tau, taus)
    loss, accuracy = scores(tiny, pair, [segment(pair.first, pair.second, tau) for tau in taus])
    np.testing.assert_array_equal(found.line_accuracy, accuracy)
    np.testing.assert_allclose(found.line_loss, loss, atol=1e-5)
    loss, accuracy = scores(tiny, pair, [quadratic(pair.first, found.control, pair.second, tau) for tau in taus])
    np.testing.assert_array_equal(found.curve_accuracy, accuracy)
    np.testing.assert_allclose(found.curve_loss, loss, atol=1e-5)
    assert found.curve_accuracy[0] == found.curve_accuracy[-1] == 1
    assert found.ratio == curve_length(pair.first, found.control, pair.second) / line_length(pair.first, pair.second)


def test_training_lowers_the_expected_loss(tiny: Model, pair: Pair, found: Connection):
    taus = np.random.default_rng(7).random(64).astype(np.float32)
    middle = segment(pair.first, pair.second, 0.5)

    def expected_loss(control) -> float:
        """Eq. 5 at the temperature of training, at other τ than it saw."""
        at = jax.vmap(lambda tau: quadratic(pair.first, control, pair.second, tau))(taus)
        score = lambda point: score_text(tiny, ONE, tiny.params, point, pair.tokens, 8, 0.25)[0]  # noqa: E731
        return float(jnp.mean(jax.vmap(score)(at)))

    assert expected_loss(found.control) < 0.7 * expected_loss(middle)
    assert found.curve_accuracy.mean() > found.line_accuracy.mean()
    assert 1 < found.ratio < 2


def test_the_temperature_is_that_of_training(tiny: Model, pair: Pair, found: Connection):
    (plain,) = connect(tiny, ONE, [pair], **SETTINGS | {"temperature": 1.0})
    np.testing.assert_allclose(plain.line_loss, found.line_loss, atol=1e-6)
    assert np.abs(plain.control["e"] - found.control["e"]).max() > 0.01
    assert plain.curve_loss.mean() < found.curve_loss.mean() < found.line_loss.mean()


def test_only_the_control_point_is_trained(tiny: Model, solutions: list[TextResult], pair: Pair):
    before = jax.tree.map(np.copy, (pair.first, pair.second))
    (found,) = connect(tiny, ONE, [pair], **SETTINGS | {"steps": 20})
    jax.tree.map(np.testing.assert_array_equal, before, (pair.first, pair.second))
    own = scores(tiny, pair, [solutions[0].vectors, solutions[1].vectors])[0]
    np.testing.assert_allclose([found.curve_loss[0], found.curve_loss[-1]], own, atol=1e-5)
    middle = segment(pair.first, pair.second, 0.5)
    assert all(np.abs(found.control[name] - middle[name]).max() > 0.01 for name in ("e", "m"))


def test_an_update_is_in_units_of_the_distance_of_the_ends(tiny: Model, pair: Pair):
    (found,) = connect(tiny, ONE, [pair], **SETTINGS | {"steps": 1, "learning_rate": 0.01})
    middle, distances = segment(pair.first, pair.second, 0.5), [pair.second[name] - pair.first[name] for name in "em"]
    unit = np.sqrt(np.mean(np.square(np.concatenate([leaf.ravel() for leaf in distances]))))
    for name in "em":  # the first update of Adam has the size of the rate in each component
        np.testing.assert_allclose(np.abs(found.control[name] - middle[name]), 0.01 * unit, rtol=1e-2)


def test_the_best_control_point_is_kept(tiny: Model, pair: Pair):
    losses: list[float] = []
    settings = SETTINGS | {"learning_rate": lambda step: jnp.where(step < 60, 0.03, 30.0), "steps": 100}
    (found,) = connect(tiny, ONE, [pair], progress=lambda at: losses.append(at.loss), **settings)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert 0 < found.best_step <= 60
    assert found.curve_loss.mean() < found.line_loss.mean()


@pytest.mark.long
def test_a_pair_does_not_depend_on_its_batch_or_padding(
    tiny: Model, pair: Pair, found: Connection, solutions: list[TextResult]
):
    pairs = [pair_of(solutions[3], solutions[4]), shortened(pair, 5), pair]
    together = connect(tiny, ONE, pairs, batch=3, **SETTINGS)
    same(together[2], found)
    for one, other in zip(together, connect(tiny, ONE, pairs, batch=2, **SETTINGS), strict=True):
        same(one, other)
    # A text of 5 tokens is padded to 8 in company and not at all alone.
    same(together[1], connect(tiny, ONE, [pairs[1]], **SETTINGS)[0])


def test_seed_and_identities_decide(tiny: Model, pair: Pair, found: Connection):
    stranger = pair._replace(words=pair.words + np.uint32(1))
    for same_seed, first in ((True, found), (False, connect(tiny, ONE, [pair], seed=1, **SETTINGS)[0])):
        other = connect(tiny, ONE, [stranger], **SETTINGS)[0] if same_seed else found
        assert np.abs(first.control["m"] - other.control["m"]).max() > 1e-4


@pytest.mark.long
def test_all_pairs_of_a_padded_length_share_three_programs(tiny: Model, pair: Pair, monkeypatch: pytest.MonkeyPatch):
    traced: list[int] = []

    def counting(model, scheme, params, leaves, tokens_T, *rest, **more):
        traced.append(tokens_T.shape[0])
        assert isinstance(params["embed"]["embedding"], jax.core.Tracer), "weights would be constants of the program"
        return score_text(model, scheme, params, leaves, tokens_T, *rest, **more)

    monkeypatch.setattr(bezier, "score_text", counting)
    seen: list[Progress] = []
    connect(tiny, ONE, [pair], **SETTINGS | {"steps": 1})
    once = len(traced)
    traced.clear()
    pairs = [shortened(pair, 5 + i % 4) for i in range(5)]
    connect(tiny, ONE, pairs, batch=2, progress=seen.append, **SETTINGS | {"steps": 50})
    assert traced == [8] * once
    places = [(at.pairs_done, at.pairs, at.step, at.steps) for at in seen]
    assert places == [(done, 5, step, 50) for done in (0, 2, 4) for step in (20, 40, 50)]


# --- pairs, tables, refusals ---


def test_all_pairs_of_solutions_of_the_same_text(solutions: list[TextResult]):
    pairs = solution_pairs(solutions)
    assert len(pairs) == 2 * 3
    assert len({pair.names for pair in pairs}) == 6
    ids = [text.text_id for text in solutions]
    assert pairs[0].names == (f"{ids[0]}:0", f"{ids[1]}:0")
    assert pairs[0].words.shape == (8,)
    assert len({pair.words.tobytes() for pair in pairs}) == 6
    assert solution_pairs(solutions, accuracy=1.1) == []
    with pytest.raises(UserError, match="a curve joins solutions of the same text"):
        pair_of(solutions[0], solutions[3])


def test_rows_are_the_numbers(pair: Pair, found: Connection):
    row = found.row()
    assert (row["first"], row["second"]) == pair.names
    for way, accuracy in (("line", found.line_accuracy), ("curve", found.curve_accuracy)):
        got = [row[f"{way}_accuracy_{name}"] for name in ("min", "mean", "max")]
        np.testing.assert_allclose(got, [accuracy.min(), accuracy.mean(), accuracy.max()])
    assert row["ratio"] == found.curve_length / found.line_length
    rows = found.rows()
    assert len(rows) == 9
    for name in ("tau", "line_accuracy", "curve_accuracy", "line_loss", "curve_loss"):
        np.testing.assert_array_equal([row[name] for row in rows], getattr(found, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"points": 1}, "points = 1: expected at least 2"),
        ({"batch": 0}, "batch = 0"),
        ({"chunk": 0}, "chunk = 0"),
        ({"steps": -1}, "steps = -1"),
        ({"temperature": 0.0}, "temperature = 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(tiny: Model, pair: Pair, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        connect(tiny, ONE, [pair], **SETTINGS | change)


def test_pairs_that_cannot_be_joined_are_refused(tiny: Model, pair: Pair):
    with pytest.raises(UserError, match="both solutions are the same point"):
        connect(tiny, ONE, [pair._replace(second=pair.first)], **SETTINGS)
    other = {**pair.second, "e": np.zeros(31, np.float32)}
    with pytest.raises(UserError, match=r"leaf 'e' has shapes \(32,\) and \(31,\)"):
        connect(tiny, ONE, [pair._replace(second=other)], **SETTINGS)
    assert connect(tiny, ONE, [], **SETTINGS) == []

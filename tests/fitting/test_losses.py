"""Losses beside Eq. 1: their values and gradients, what a fit makes of them, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from store_runs import finished, interrupted

from onestep_jax import Anchor, ManyVectors, OneStep, Relational, UserError, fit
from onestep_jax.fitting import programs, slots
from onestep_jax.fitting.plan import resolve
from onestep_jax.prototokens.auxiliary import Context, anchor_points, auxiliary_loss
from onestep_jax.prototokens.objective import group_loss, score_group

RNG = np.random.default_rng(5)
POINTS = RNG.normal(size=(12, 32)).astype(np.float32)
TEACHER = RNG.normal(size=(12, 5)).astype(np.float32)


def cosines(a, b):
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True) for x in (a, b))
    return np.sum(a * b, axis=-1)


def of_group(rows, lengths):
    return Context({name: jnp.asarray(array) for name, array in rows.items()}, jnp.array(lengths, jnp.int32))


@pytest.mark.parametrize("shape", [(3, 32), (3, 4, 8)], ids=["e", "four e"])
def test_an_anchor_is_a_mean_of_cosine_distances(shape):
    e = RNG.normal(size=shape).astype(np.float32)
    loss = Anchor(2.0)({"e": jnp.asarray(e)}, of_group({"anchor": POINTS[:3]}, [4, 0, 2]))
    flat = e.reshape(3, 32)[[0, 2]]
    assert loss == pytest.approx(2 * np.mean(1 - cosines(flat, POINTS[[0, 2]])), rel=1e-5)


def test_relations_are_a_mean_over_pairs_of_squares():
    e = RNG.normal(size=(4, 32)).astype(np.float32)
    loss = Relational(3.0)({"e": jnp.asarray(e)}, of_group({"teacher": TEACHER[:4]}, [1, 5, 0, 2]))
    pairs = [(0, 1), (0, 3), (1, 3)]
    expected = [(cosines(e[i], e[j]) - cosines(TEACHER[i], TEACHER[j])) ** 2 for i, j in pairs]
    assert loss == pytest.approx(3 * np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("loss", [Anchor(1.0), Relational(1.0)])
def test_an_empty_place_or_a_single_text_leaves_gradients_finite(loss):
    rows = {"anchor": np.zeros((2, 32), np.float32), "teacher": np.zeros((2, 5), np.float32)}
    rows = {name: np.concatenate([array[:1] + 1, array[1:]]) for name, array in rows.items()}
    e = jnp.concatenate([jnp.ones((1, 32)), jnp.zeros((1, 32))])
    value, gradient = jax.value_and_grad(lambda e: loss({"e": e}, of_group(rows, [3, 0])))(e)
    assert value == pytest.approx(0.0, abs=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("features", "size"), [(5, 32), (32, 32), (48, 32)])
def test_a_fixed_map_takes_a_teacher_to_points(features, size):
    teacher = np.random.default_rng(1).normal(size=(300, features))
    points = anchor_points(teacher, size)
    assert (points.shape, points.dtype) == ((300, size), np.float32)
    np.testing.assert_array_equal(points, anchor_points(teacher, size))
    assert not np.allclose(points, anchor_points(teacher, size, seed=1))
    off = cosines(points[:-1], points[1:]) - cosines(teacher[:-1], teacher[1:])
    if features <= size:
        np.testing.assert_allclose(off, 0, atol=1e-6)
    else:  # of a projection to 32 of 48 dimensions
        assert 0 < np.abs(off).mean() < 0.15


@pytest.mark.parametrize("teacher", [np.zeros(3), "words", [[1.0], [1.0, 2.0]]])
def test_embeddings_that_are_no_matrix(teacher):
    with pytest.raises(UserError, match="a teacher's embeddings"):
        anchor_points(teacher, 32)


def test_an_update_follows_the_sum_and_what_is_kept_the_reconstruction(tiny, token_lists):
    import optax

    beside = {"relations": Relational(4.0), "anchor": Anchor(0.5), "mine": third}
    plan = resolve(
        tiny,
        token_lists[:3],
        scheme=OneStep(share="m", group=3),
        optimizer=optax.sgd(1.0),
        losses=beside,
        context={"anchor": POINTS[:3], "teacher": TEACHER[:3]},
    )
    assert [name for name, _ in plan.problem.losses] == ["anchor", "mine", "relations"]
    problem, frozen = plan.problem, slots.Frozen(tiny.params)
    tokens_GT, lengths_G = jnp.array(token_lists[:3], jnp.int32), jnp.array([8, 8, 8], jnp.int32)
    ids_G4 = jnp.arange(12, dtype=jnp.uint32).reshape(3, 4)
    context = {name: jnp.asarray(rows) for name, rows in plan.context.items()}
    slot = slots.fresh(problem, jnp.int32(9), tokens_GT, lengths_G, ids_G4)._replace(context=context)

    def by_hand(leaves):
        score = score_group(
            tiny.network, problem.scheme, tiny.params, leaves, tokens_GT, lengths_G, problem.temperature
        )
        loss = group_loss(score.nats_G, lengths_G)
        beside_it = auxiliary_loss(problem.losses, leaves, Context(context, lengths_G))
        return loss + beside_it, (loss, beside_it)

    (_, (loss, beside_it)), gradient = jax.value_and_grad(by_hand, has_aux=True)(slot.leaves)
    after, info = jax.jit(programs.step, static_argnums=0)(problem, frozen, slot)
    assert beside_it > 1
    assert info.loss == pytest.approx(float(loss), rel=1e-5)
    assert after.best_loss == info.loss
    for name in ("e", "m"):
        moved = slot.leaves[name] - after.leaves[name]
        np.testing.assert_allclose(moved, gradient[name], rtol=1e-3, atol=1e-5)


def third(leaves, context):
    return jnp.mean(jnp.square(leaves["m"])) + jnp.sum(context.lengths_G) / 3


@pytest.mark.long
def test_vectors_turn_to_their_points_and_texts_are_solved(tiny, token_lists):
    def nearness(weight):
        losses = {"anchor": Anchor(weight)} if weight else {}
        context = {"anchor": POINTS[:4]} if weight else None
        results = fit(tiny, token_lists[:4], scheme=OneStep(), losses=losses, context=context, slots=4)
        assert results.solved == 4
        return cosines(results.vectors["e"], POINTS[:4]).mean()

    assert nearness(3.0) > 0.5 > nearness(0) + 0.3


@pytest.mark.long
def test_the_similarities_of_a_group_are_those_of_the_teacher(tiny, token_lists):
    pairs = np.stack(np.triu_indices(4, k=1))

    def off(losses):
        context = {"teacher": TEACHER[:4]} if losses else None
        results = fit(
            tiny, token_lists[:4], scheme=OneStep(group=4), losses=losses, context=context, slots=1, steps=3000
        )
        assert results.solved == 4
        e = results.vectors["e"]
        found = cosines(e[pairs[0]], e[pairs[1]]) - cosines(TEACHER[pairs[0]], TEACHER[pairs[1]])
        return np.sqrt(np.mean(np.square(found)))

    assert off({"relational": Relational(30.0)}) < 0.5 * off({})


@pytest.mark.long
def test_the_context_of_a_text_goes_with_it(tiny, token_lists):
    """Whatever the order of the texts and the number of slots; copies of a text have the same."""
    how = {"scheme": OneStep(), "losses": {"anchor": Anchor(1.0)}, "steps": 40}
    one = fit(tiny, token_lists[:4], context={"anchor": POINTS[:4]}, slots=1, **how)
    turned = fit(tiny, token_lists[3::-1], context={"anchor": POINTS[3::-1]}, slots=4, **how)
    assert turned.steps[::-1].tolist() == one.steps.tolist()
    np.testing.assert_allclose(turned.vectors["e"][::-1], one.vectors["e"], atol=1e-3)
    plan = resolve(tiny, token_lists[:2], copies=2, losses=how["losses"], context={"anchor": POINTS[:2]})
    np.testing.assert_array_equal(plan.context["anchor"], POINTS[[0, 0, 1, 1]])


@pytest.mark.long
def test_a_last_group_of_one_text_has_no_relations(tiny, token_lists):
    """It is the fit without the loss, though the program has room for two."""
    how = {"scheme": OneStep(group=2), "slots": 1, "steps": 30}
    with_loss = fit(tiny, token_lists[:3], losses={"r": Relational(50.0)}, context={"teacher": TEACHER[:3]}, **how)
    without = fit(tiny, token_lists[:3], **how)
    np.testing.assert_allclose(with_loss.vectors["e"][2], without.vectors["e"][2], atol=1e-3)
    assert np.abs(with_loss.vectors["e"][0] - without.vectors["e"][0]).max() > 0.01


@pytest.mark.long
def test_a_resumed_fit_has_its_losses(tiny, token_lists, tmp_path):
    how = {"losses": {"anchor": Anchor(1.0, "mine")}, "context": {"anchor": POINTS}, "scheme": OneStep()}
    interrupted(tiny, token_lists, tmp_path / "run", **how)
    straight = finished(tiny, token_lists, tmp_path / "straight", **how)
    resumed = finished(tiny, token_lists, tmp_path / "run", **how)
    assert resumed.steps.tolist() == straight.steps.tolist()
    for leaf in ("e", "m"):
        np.testing.assert_array_equal(resumed.vectors[leaf], straight.vectors[leaf])
    for other in ({"losses": {"anchor": Anchor(2.0, "mine")}}, {"context": {"anchor": POINTS[::-1]}}):
        with pytest.raises(UserError, match=r"holds another run; (losses|context): "):
            finished(tiny, token_lists, tmp_path / "run", **{**how, **other})


def test_the_identity_names_losses_and_nothing_else(tiny, token_lists):
    plain = resolve(tiny, token_lists[:2], scheme=OneStep())
    beside = {"anchor": Anchor(1.0, "model"), "mine": third}
    pushed = resolve(tiny, token_lists[:2], scheme=OneStep(), losses=beside, context={"anchor": POINTS[:2]})
    described = {"loss": "Anchor", "weight": 1.0, "teacher": "model", "of": "anchor"}
    named = {"losses": {"anchor": described, "mine": {"object": True}}, "context": pushed.identity["context"]}
    assert pushed.identity == {**plain.identity, **named}
    assert plain.problem == dataclasses.replace(pushed.problem, losses=())


def test_a_step_without_losses_is_as_before(tiny):
    def step(losses):
        plan = resolve(tiny, [[1, 2]], scheme=OneStep(), losses=losses)
        slot = slots.shapes(plan.problem, 8)
        return str(jax.make_jaxpr(lambda *given: programs.step(plan.problem, *given))(slots.Frozen(tiny.params), slot))

    assert step({}) != step({"mine": third})
    assert len(step({}).splitlines()) < len(step({"nothing": nothing}).splitlines())


def nothing(leaves, context):
    del leaves, context
    return jnp.float32(0)


class Unhashable:
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __call__(self, leaves, context):
        del leaves, context
        return jnp.float32(0)


ANCHORED = {"losses": {"a": Anchor(1.0)}}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"losses": [Anchor(1.0)]}, r"losses = \[Anchor.*expected name → a function of \(leaves, context\)"),
        ({"losses": {"a": 3}}, r"loss a: expected a hashable function of \(leaves, context\), got int"),
        ({"losses": {"a": Unhashable()}}, "loss a: expected a hashable function .* got Unhashable"),
        ({"losses": {"a": lambda leaves, context: leaves["f"]}}, "loss a: cannot be traced for leaves .*KeyError"),
        ({"losses": {"a": lambda leaves, context: leaves["e"]}}, "loss a: expected one number, got .*32"),
        ({"losses": {"a": lambda leaves, context: 3}}, "loss a: expected one number"),
        (ANCHORED, r"loss a: needs context=\{'anchor': …\}, a row for each text"),
        ({**ANCHORED, "context": {"anchor": POINTS[:3]}}, r"context anchor has shape \(3, 32\); expected \(2, …\)"),
        ({**ANCHORED, "context": {"anchor": TEACHER[:2]}}, r"loss a: context anchor is \(2, 5\); expected \(texts, 32"),
        ({**ANCHORED, "context": {"anchor": "points"}}, "context anchor: expected numbers"),
        ({**ANCHORED, "context": {"anchor": POINTS[:2] * np.inf}}, "context anchor: row 0 holds a NaN or an infinity"),
        ({**ANCHORED, "context": 3}, "context = 3, of type int: expected name → an array"),
        ({"context": {"anchor": POINTS[:2]}}, r"context=\['anchor'\]: there is no loss to read it"),
        (
            {"losses": {"r": Relational(1.0)}, "context": {"teacher": TEACHER[:2]}},
            "loss r: matches the similarities inside a group: give groups of at least 2",
        ),
        (
            {**ANCHORED, "context": {"anchor": POINTS[:2]}, "scheme": OneStep(share="e", group=2)},
            "expected an e of each text's own",
        ),
        (
            {**ANCHORED, "context": {"anchor": POINTS[:2]}, "scheme": ManyVectors(e=2)},
            r"context anchor is \(2, 32\); expected \(texts, 64\)",
        ),
    ],
)
def test_losses_that_are_refused(tiny, token_lists, how, message):
    with pytest.raises(UserError, match=message):
        fit(tiny, token_lists[:2], **{"scheme": OneStep(), **how})


@pytest.mark.parametrize("kind", [Anchor, Relational])
@pytest.mark.parametrize("weight", [-1, float("nan"), "much"])
def test_weights_that_are_none(kind, weight):
    with pytest.raises(UserError, match=rf"{kind.__name__}: weight = .*expected a finite number, at least 0"):
        kind(weight)

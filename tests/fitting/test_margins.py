"""Fits with a margin: what counts as solved, what is kept and recorded, and that a fit without one is as before."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_runs import finished, interrupted

from onestep_jax import OneStep, UserError, fit, read_results
from onestep_jax.fitting import PRESETS, programs, slots
from onestep_jax.fitting.group_results import GivenText, text_results
from onestep_jax.fitting.plan import resolve
from onestep_jax.fitting.slots import FitProblem
from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.model.likelihood import TextNats
from onestep_jax.prototokens.objective import accuracies
from onestep_jax.prototokens.reconstruction import decode

MARGIN = 0.5


@functools.partial(jax.jit, static_argnums=0)
def worth_of(margin, lengths_G, hits_GT, leads_GT):
    return programs._worth(margin, lengths_G, accuracies(hits_GT, lengths_G), hits_GT, leads_GT)


def leads_of(model, text):
    """Lead of each token, from the logits of the plain forward pass of the kept vectors."""
    leaves = {name: jnp.asarray(vector) for name, vector in text.vectors.items()}
    x_TD = OneStep().inputs(leaves, jnp.zeros((len(text.tokens), 32)), jnp.int32(len(text.tokens)))
    logits_TV = np.asarray(model.head(model.params, model.hidden(model.params, x_TD)), np.float32)
    return np.array([row[t] - np.delete(row, t).max() for row, t in zip(logits_TV, text.tokens, strict=True)])


@pytest.fixture(scope="module")
def margined(tiny, token_lists):
    return fit(tiny, token_lists[:4], scheme=OneStep(), margin=MARGIN, slots=2)


def test_solved_texts_lead_by_the_margin(tiny, margined):
    assert margined.status == ["solved"] * 4
    for text in margined:
        leads_T = leads_of(tiny, text)
        assert text.margin == pytest.approx(leads_T.min(), abs=1e-4)
        assert text.margin >= MARGIN
    again = [one.margin for one in decode(tiny, margined)]
    np.testing.assert_allclose(again, margined.margin, atol=1e-4)


def test_every_fit_records_its_margins(tiny, token_lists):
    plain = fit(tiny, token_lists[:4], scheme=OneStep(), slots=2, steps=60)
    for text in plain:
        assert text.margin == pytest.approx(leads_of(tiny, text).min(), abs=1e-4)
        assert (text.margin > 0) == (text.accuracy == 1)
    assert 0 < plain.margin[plain.accuracy == 1].min() < MARGIN


def test_a_text_that_is_exact_without_the_margin_is_exhausted(tiny, token_lists):
    results = fit(tiny, token_lists[:2], scheme=OneStep(), margin=8.0, steps=400, preset="paper", slots=2)
    plain = fit(tiny, token_lists[:2], scheme=OneStep(), steps=400, preset="paper", slots=2)
    assert plain.solved > 0
    assert results.solved >= plain.solved  # exact vectors are not given up for others
    for text in results:
        assert (text.status, text.steps) == ("exhausted", 400)
        assert text.margin < 8
        assert (text.margin > 0) == (text.accuracy == 1)


def test_the_identity_names_a_margin_and_nothing_else(tiny, token_lists):
    plain = resolve(tiny, token_lists[:2], slots=2)
    pushed = resolve(tiny, token_lists[:2], slots=2, margin=1)
    assert "margin" not in plain.identity
    assert pushed.identity == {**plain.identity, "margin": 1.0}
    assert plain.problem == dataclasses.replace(pushed.problem, margin=0.0)


@pytest.mark.parametrize("margin", [-1, float("nan"), "wide", None])
def test_margins_that_are_none(tiny, token_lists, margin):
    with pytest.raises(UserError, match=r"margin = .*expected a finite number, at least 0 and at most 1000"):
        fit(tiny, token_lists[:1], margin=margin)


def test_a_step_without_a_margin_looks_for_no_runner_up(tiny):
    def step(margin):
        problem = FitProblem(tiny.network, OneStep(), PRESETS["paper"].optimizer.build(), 1.0, margin=margin)
        slot = slots.shapes(problem, 8)
        return str(jax.make_jaxpr(lambda *given: programs.step(problem, *given))(slots.Frozen(tiny.params), slot))

    assert step(1.0).count("reduce_max") > step(0.0).count("reduce_max")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(1, 3))
def test_what_vectors_are_worth(seed, first, second):
    rng = np.random.default_rng(seed)
    hits_GT = (rng.random((2, 3)) < 0.9) & (np.arange(3)[None] < np.array([[first], [second]]))
    leads_GT = np.where(hits_GT, rng.choice([0.0, 0.5, 1.0, 2.0], (2, 3), p=[0.05, 0.05, 0.45, 0.45]), -1.0)
    lengths_G = np.array([first, second])
    accuracy, exact = worth_of(0.0, lengths_G, hits_GT, leads_GT)
    worth, reached = worth_of(1.0, lengths_G, hits_GT, leads_GT)
    led = np.sum(hits_GT & (leads_GT >= 1))
    assert bool(exact) == (hits_GT.sum() == first + second) == (accuracy == 1)
    assert bool(reached) == (led == first + second) == (worth == 2)
    assert worth >= accuracy
    assert (worth >= 1) == bool(exact)


def test_of_equally_accurate_seeds_the_solved_one_is_kept():
    def outcome(status, accuracy, loss):
        shown = {"steps": 1, "best_step": 0, "predicted_GT": np.zeros((1, 2), np.int32), "leaves": {}}
        shown |= {"first_hit_GT": np.zeros((1, 2), np.int32), "margin_G": np.zeros(1), "task": task}
        return Outcome(status=status, accuracy_G=np.array([accuracy]), loss=loss, **shown)

    task = Task(texts=(0,), seed=0, budget=9, tokens=[], ids=np.zeros((1, 4), np.uint32))
    tokens = np.zeros(2, np.int32)
    text = GivenText(0, "0" * 16, tokens, tokens[:0], TextNats(np.zeros(2, np.float32), 0.0))
    seeds = [outcome("exhausted", 1.0, 0.1), outcome("solved", 1.0, 0.2), outcome("exhausted", 0.5, 0.0)]
    assert [one.status for margin in (1.0, 0.0) for one in text_results([text], seeds, frozenset(), margin)] == [
        "solved",
        "exhausted",
    ]


@pytest.mark.long
def test_bfloat16_solutions_lead_by_the_margin_in_the_decode_program(tiny, token_lists):
    half = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params))
    results = fit(half, token_lists[:4], preset="paper", margin=MARGIN, steps=1500, slots=4)
    assert "solved" in results.status
    for text in results:
        assert text.margin >= MARGIN or text.status != "solved"


@pytest.mark.long
def test_a_resumed_fit_is_the_straight_one(tiny, token_lists, tmp_path):
    interrupted(tiny, token_lists, tmp_path / "run", margin=MARGIN)
    straight = finished(tiny, token_lists, tmp_path / "straight", margin=MARGIN)
    resumed = finished(tiny, token_lists, tmp_path / "run", margin=MARGIN)
    np.testing.assert_array_equal(resumed.margin, straight.margin)
    np.testing.assert_array_equal(read_results(tmp_path / "run").margin, straight.margin)
    assert resumed.status == straight.status
    with pytest.raises(UserError, match=r"holds another run; margin: 0.5 there, None here"):
        finished(tiny, token_lists, tmp_path / "run")


def test_texts_of_a_group_have_margins_of_their_own(tiny, token_lists):
    results = fit(tiny, token_lists[:2], scheme=OneStep(share="m", group=2), margin=0.25, slots=1, steps=3000)
    assert results.status == ["solved"] * 2
    assert results.margin.min() >= 0.25
    assert results.margin[0] != results.margin[1]

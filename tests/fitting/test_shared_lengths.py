"""Padded lengths of few texts join a longer one: fewer programs, the same results, and states saved before that."""

import itertools

import numpy as np
import pytest

from onestep_jax import Interrupted, OneStep, fit
from onestep_jax.fitting import slot_ladder, sweep
from onestep_jax.fitting.plan import resolve
from onestep_jax.fitting.recorder import Recorder, RunRecorder
from onestep_jax.fitting.slot_ladder import shared_lengths
from onestep_jax.fitting.sweep import Sweep
from onestep_jax.store.status import read_status

PLAIN = {"scheme": OneStep(), "preset": "paper"}


def linear(positions):
    return 1e8 * positions


def test_a_length_of_few_groups_joins_the_next_longer_one():
    assert shared_lengths([8, 16, 16, 32], linear) == [32, 32, 32, 32]
    many = [8] * 3 + [16] * 500 + [32] * 4
    assert shared_lengths(many, linear) == [16] * 3 + [16] * 500 + [32] * 4
    assert shared_lengths(many, linear, "gpu") == [32] * 507
    assert shared_lengths([], linear) == []


def test_no_group_is_cut_and_only_lengths_that_exist_are_used():
    draw = np.random.default_rng(0)
    for flops in (1e5, 1e8, 1e11):
        padded = (8 * draw.integers(1, 9, size=40)).tolist()
        joined = shared_lengths(padded, lambda positions, flops=flops: flops * positions)
        assert all(new >= old for new, old in zip(joined, padded, strict=True))
        assert set(joined) <= set(padded)
        assert max(joined) == max(padded)


def test_padding_leads_no_text_across_a_boundary():
    assert shared_lengths([8, 16, 24, 32], linear, boundary=16) == [16, 16, 32, 32]


@pytest.fixture
def mixed(token_lists):
    """Nine texts of three lengths."""
    return [ids[:length] for length in (3, 6, 8) for ids in token_lists[:3]] + [token_lists[0] * 3]


def apart(monkeypatch):
    """Every length has a program of its own, as before lengths were shared."""
    monkeypatch.setattr(sweep, "shared_lengths", lambda padded, *_: list(padded))


@pytest.mark.long
def test_one_program_and_the_same_results(tiny, mixed, one_device, monkeypatch):
    given = {**PLAIN, "steps": 20, "slots": 10, "placement": one_device}
    plan = resolve(tiny, mixed, **given)
    assert Sweep(plan, Recorder(), None)._padded() == [24] * 10
    together = fit(tiny, mixed, **given)
    apart(monkeypatch)
    assert set(Sweep(plan, Recorder(), None)._padded()) == {8, 24}
    for one, other in zip(together, fit(tiny, mixed, **given), strict=True):
        assert one.steps == other.steps
        np.testing.assert_allclose(one.best_trial.trace, other.best_trial.trace, rtol=1e-4)


def test_where_padding_costs_more_lengths_stay_apart(tiny, mixed, one_device, monkeypatch):
    monkeypatch.setattr(slot_ladder, "COMPILING", {"cpu": 0.0})
    assert set(Sweep(resolve(tiny, mixed, placement=one_device), Recorder(), None)._padded()) == {8, 24}


@pytest.mark.long
def test_states_of_another_padding_are_resumed(tiny, mixed, one_device, monkeypatch, tmp_path):
    """A run that was stopped by an older version, in the middle of seeds and between them."""
    given = {**PLAIN, "steps": 30, "seeds": 3, "slots": 10, "chunk": 7, "placement": one_device}
    untouched = fit(tiny, mixed, **given)
    asked = itertools.count()
    with monkeypatch.context() as patch:
        apart(patch)
        patch.setattr(RunRecorder, "stop_is_asked", lambda _: next(asked) == 20)
        with pytest.raises(Interrupted):
            fit(tiny, mixed, run=tmp_path / "run", **given)
    saved = read_status(tmp_path / "run")
    assert (len(saved.recorded), len(saved.in_flight)) == (1, 5)
    resumed = fit(tiny, mixed, run=tmp_path / "run", **given)
    for one, other in zip(resumed, untouched, strict=True):
        assert (one.steps, one.seed, len(one.trials)) == (other.steps, other.seed, len(other.trials))
        np.testing.assert_allclose(one.best_trial.trace, other.best_trial.trace, rtol=1e-4)

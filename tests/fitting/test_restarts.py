"""A text that stagnates goes on from another seed within its budget; what a preset stood for goes with the run."""

import dataclasses
import itertools
import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import PRESETS, Interrupted, OneStep, Optimizer, Schedule, UserError, fit
from onestep_jax.fitting import preset_of, programs
from onestep_jax.fitting.optimizers import recorded_preset
from onestep_jax.fitting.slots import EXHAUSTED, RUNNING, FitProblem, fresh

BUDGET = 90
RESTARTING = dataclasses.replace(PRESETS["fast"], patience=8, patience_per_token=0.0, patience_growth=0.0)


@pytest.fixture(scope="module")
def restarted(tiny, token_lists, one_device):
    return fit(tiny, token_lists[:6], preset=RESTARTING, steps=BUDGET, slots=3, placement=one_device)


def test_seeds_follow_one_another_within_the_budget(tiny, token_lists, one_device, restarted):
    assert {text.status for text in restarted} == {"solved", "exhausted"}
    assert max(len(text.trials) for text in restarted) >= 3
    for text in restarted:
        assert [trial.seed for trial in text.trials] == list(range(len(text.trials)))
        assert text.steps == sum(trial.steps for trial in text.trials)
        assert text.steps == BUDGET if text.status == "exhausted" else text.steps <= BUDGET
        assert text.accuracy == max(trial.accuracy for trial in text.trials)
    number = next(text.index for text in restarted if len(text.trials) > 2)
    second = restarted[number].trials[1]
    alone = fit(
        tiny, [token_lists[number]], preset=RESTARTING, steps=BUDGET, seed=1, seeds=1, slots=1, placement=one_device
    )
    assert (alone[0].steps, alone[0].accuracy) == (second.steps, second.accuracy)


def test_an_interrupted_text_keeps_what_it_has_spent(tiny, token_lists, one_device, tmp_path):
    """Stopped while later seeds are under way, which end with the budget and not with the patience."""
    patient = dataclasses.replace(RESTARTING, patience=10, progress=0.2)
    options = {"preset": patient, "steps": 45, "slots": 6, "chunk": 4, "placement": one_device}
    whole = fit(tiny, token_lists[:6], **options)
    assert any(0 < text.trials[-1].steps < 10 for text in whole if text.status == "exhausted")
    seen, under_way = itertools.count(1), []

    def stop(_progress):
        if next(seen) == 11:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(tiny, token_lists[:6], progress=stop, run=tmp_path / "run", **options)
    for path in (tmp_path / "run" / "state").glob("*.json"):
        under_way += [task for task in json.loads(path.read_text())["state"]["record"]["tasks"] if task["seed"] > 0]
    assert under_way
    found = fit(tiny, token_lists[:6], run=tmp_path / "run", **options)
    for text, other in zip(found, whole, strict=True):
        assert [trial.steps for trial in text.trials] == [trial.steps for trial in other.trials]
        np.testing.assert_allclose(text.vectors["e"], other.vectors["e"], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_seeds_after_given_start_vectors_are_drawn(tiny, token_lists, one_device):
    options = {"steps": 12, "slots": 2, "placement": one_device, "preset": "paper"}
    for sharing in ({}, {"share": "m", "group": 2}):
        drawn = OneStep(**sharing)
        given = OneStep(**sharing, start={name: np.ones((2, 32), np.float32) for name in "em"})
        second = fit(tiny, token_lists[:2], scheme=drawn, seed=1, **options)
        both = fit(tiny, token_lists[:2], scheme=given, seeds=2, **options)
        for text, other in zip(both, second, strict=True):
            np.testing.assert_allclose(text.trials[1].trace[:, 1], other.trials[0].trace[:, 1], rtol=1e-5)
            assert text.trials[0].trace[0, 1] != text.trials[1].trace[0, 1]


@pytest.mark.parametrize(
    ("token", "growth", "improved", "steps", "status"),
    [(0, 0, 50, 59, RUNNING), (0, 0, 50, 60, EXHAUSTED), (0, 1, 50, 60, RUNNING), (0, 1, 50, 100, EXHAUSTED),
     (0, 1, 4, 13, RUNNING), (0, 1, 4, 14, EXHAUSTED), (5, 0, 50, 69, RUNNING), (5, 0, 50, 70, EXHAUSTED),
     (5, 1, 50, 99, RUNNING), (1, 0, 50, 60, EXHAUSTED)],
)  # fmt: skip
def test_patience_grows_with_the_text_and_with_the_way_to_the_last_progress(
    tiny, token, growth, improved, steps, status
):
    optimizer = PRESETS["fast"].optimizer.build()
    grows = {"patience_per_token": token, "patience_growth": growth}
    problem = FitProblem(tiny.network, OneStep(), optimizer, 1.0, patience=10, **grows)
    tokens, ids = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), jnp.uint32)
    slot = fresh(problem, jnp.int32(1000), tokens, jnp.array([4]), ids)
    slot = slot._replace(steps=jnp.int32(steps), improved_step=jnp.int32(improved))
    assert programs._status_after(problem, slot, jnp.float32(1), jnp.bool_(False)) == status


@pytest.mark.parametrize(
    ("progress", "losses", "accuracies", "improved", "milestone"),
    [
        (None, [9.0, 8.0, 1.0, 7.0], [0.0, 0.5, 0.5, 0.25], 1, None),
        (0.5, [8.0, 4.1, 4.0, 5.0, 2.1], [0.0, 0.25, 0.5, 0.75, 0.5], 2, 4.0),
        (0.5, [8.0, 3.0, 1.6, 1.4, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0], 3, 1.4),
    ],
)
def test_progress_is_a_better_accuracy_or_a_lower_loss(tiny, progress, losses, accuracies, improved, milestone):
    optimizer = PRESETS["fast"].optimizer.build()
    problem = FitProblem(tiny.network, OneStep(), optimizer, 1.0, patience=10, progress=progress)
    ids = jnp.zeros((1, 4), jnp.uint32)
    slot = fresh(problem, jnp.int32(1000), jnp.zeros((1, 4), jnp.int32), jnp.array([4]), ids)
    for step, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        before = slot._replace(steps=jnp.int32(step))
        kept = programs._keep_if_best(before, jnp.float32(loss), jnp.float32(accuracy))
        slot = programs._note_progress(problem, before, kept, jnp.float32(loss))
    assert int(slot.improved_step) == improved
    assert (slot.milestone is None) if milestone is None else float(slot.milestone) == pytest.approx(milestone)


# --- presets and runs ---


def test_a_run_keeps_what_its_preset_stood_for(tiny, token_lists, one_device, tmp_path, monkeypatch):
    options = {"preset": "fast", "steps": 20, "slots": 2, "placement": one_device, "run": tmp_path / "run"}
    first = fit(tiny, token_lists[:2], **options)
    other = dataclasses.replace(PRESETS["fast"], arrangement="halves", scale=3.0, patience=7, seeds=2)
    other = dataclasses.replace(other, optimizer=Optimizer("sgd", {"learning_rate": 0.1}))
    monkeypatch.setitem(PRESETS, "fast", other)
    assert preset_of("fast", tmp_path / "elsewhere") is other
    again = fit(tiny, token_lists[:2], **options)
    assert again.steps.tolist() == first.steps.tolist()
    with pytest.raises(UserError, match=r"scheme: .*unguided-e.* there, .*halves.* here"):
        fit(tiny, token_lists[:2], **options, scheme=OneStep("halves"))
    with pytest.raises(UserError, match=r"optimizer: .*cautious_lbfgs.* there, .*sgd.* here"):
        fit(tiny, token_lists[:2], **options, optimizer=other.optimizer)


def test_an_older_run_keeps_the_arguments_of_its_optimizer():
    optimizer = Optimizer("cautious_lbfgs", {"max_rms": 0.01}, Schedule("cosine_decay", {"decay_steps": 9}))
    identity = {"start": "normal", "optimizer": optimizer.describe()}
    settings = {"preset": "fast", "preset values": {"patience": 9}}
    found = recorded_preset(json.loads(json.dumps(identity)), settings)
    assert found is not None
    assert (found.optimizer, found.patience, found.progress) == (optimizer, 9, None)
    # One that was given on the command line is no part of what the preset was.
    given = recorded_preset(identity | {"optimizer": {"name": "sgd", "arguments": {}}}, settings)
    assert given is not None
    assert given.optimizer == PRESETS["fast"].optimizer


def test_what_an_older_run_did_not_record_is_as_it_was_then(tiny, token_lists, one_device, tmp_path):
    then = dataclasses.replace(
        PRESETS["fast"],
        patience=None,
        patience_per_token=0.0,
        patience_growth=0.0,
        progress=None,
        seeds=1,
        arrangement="one-step",
    )
    options = {"steps": 20, "slots": 2, "placement": one_device, "run": tmp_path / "run"}
    first = fit(tiny, token_lists[:2], preset=then, **options)
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    newer = config["settings"]["preset values"] | {"of a newer version": 1}
    config["settings"]["preset"] = "fast"
    for values in (None, newer):
        config["settings"]["preset values"] = values
        if values is None:
            del config["settings"]["preset values"]
        path.write_text(json.dumps(config))
        assert fit(tiny, token_lists[:2], **options).steps.tolist() == first.steps.tolist()


def test_seeds_are_a_number_or_auto(tiny):
    with pytest.raises(UserError, match=r"seeds = 'many': expected a whole number .* or 'auto'"):
        fit(tiny, [[1]], seeds="many")

"""One device and eight make the same updates."""

import dataclasses

import jax
import numpy as np
import pytest
from closeness import relative
from encoders import DESIGN, SMALL, word_texts

from onestep_jax import UserError
from onestep_jax.encoder.training import Trainer
from onestep_jax.encoder.windows import divide, make_pool

pytestmark = pytest.mark.eight_devices


def weights_of(state):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.weights)])


@pytest.fixture(scope="module")
def pools(worded):
    return [make_pool(worded, texts) for texts in divide(word_texts(6))]


def step_on(devices, worded, pools, monkeypatch, **changes):
    """Weights after the first update with a rate, and their change; its loss and figures."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: devices)
        recipe = dataclasses.replace(SMALL, batch=16, reading=0.0, warmup=1, **changes)
        trainer = Trainer(worded, DESIGN, recipe, *pools)
        state, *_ = trainer.step(trainer.begin())  # the rate is 0 before the first update
        state, loss, figures = trainer.step(state)
        used = {device for leaf in jax.tree.leaves(state.weights) for device in leaf.devices()}
        assert used == set(devices)
        begun, ended = weights_of(trainer.begin()), weights_of(state)
        return ended, ended - begun, float(loss), figures


@pytest.mark.long
@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_make_the_updates_of_one(worded, pools, monkeypatch, accumulate):
    eight = jax.local_devices()
    assert len(eight) == 8
    ours, theirs = (
        step_on(devices, worded, pools, monkeypatch, accumulate=accumulate) for devices in (eight, eight[:1])
    )
    assert relative(ours[0], theirs[0]) <= 1e-5
    assert np.linalg.norm(theirs[1]) > 0.1
    assert relative(ours[1], theirs[1]) <= 1e-3  # AdamW brings small gradients, rounding and all, to one size
    assert ours[2] == pytest.approx(theirs[2], rel=1e-5)
    for a, b in zip(ours[3], theirs[3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_batch_is_divided_by_devices_and_parts(worded, pools):
    with pytest.raises(UserError, match="batch = 24: expected a multiple of 16, for 8 devices and 2 parts"):
        Trainer(worded, DESIGN, dataclasses.replace(SMALL, batch=24, accumulate=2), *pools)

"""Updates: windows by number, parts of a batch in turn, figures where they are due."""

import dataclasses

import jax
import numpy as np
import pytest
from closeness import relative
from encoders import DESIGN, SMALL, word_texts

from onestep_jax import UserError
from onestep_jax.encoder.training import Trainer
from onestep_jax.encoder.windows import divide, make_pool


@pytest.fixture(scope="module")
def pools(worded):
    return [make_pool(worded, texts) for texts in divide(word_texts(6))]


def trainer(worded, pools, design=DESIGN, **changes):
    return Trainer(worded, design, dataclasses.replace(SMALL, **changes), *pools)


def weights_of(state):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.weights)])


def test_windows_are_named_by_seed_and_number(worded, pools):
    one, again, other = (trainer(worded, pools, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.windows(5, 4), again.windows(5, 4))
    assert one.windows(5, 4).shape == (1, 8, 4)
    for different in (one.windows(6, 4), other.windows(5, 4)):
        assert (different != one.windows(5, 4)).any()
    parts = trainer(worded, pools, accumulate=2).windows(5, 4)
    assert parts.shape == (2, 4, 4)
    np.testing.assert_array_equal(parts.reshape(8, 4), one.windows(5, 4)[0])


@pytest.mark.long
def test_parts_of_a_batch_make_the_update_of_the_whole(worded, pools):
    """With corrections, of the same first weights, three updates long; figures and loss are means too."""
    ends = []
    for accumulate in (1, 2):
        one = trainer(worded, pools, accumulate=accumulate, reading=0.0, warmup=1)
        state = one.begin()
        for _ in range(3):
            state, loss, figures = one.step(state)
        ends.append((weights_of(state) - weights_of(one.begin()), loss, figures))
    (whole, loss, figures), (parts, parts_loss, parts_figures) = ends
    assert np.linalg.norm(whole) > 0.1
    assert relative(parts, whole) < 1e-3  # of what the updates have changed
    assert parts_loss == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(figures, parts_figures, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_steps_go_on_from_a_state_that_is_handed_in(worded, pools):
    one = trainer(worded, pools)
    state = one.begin()
    for _ in range(2):
        state, *_ = one.step(state)
    host = state._replace(
        weights=jax.tree.map(np.asarray, state.weights), opt_state=jax.tree.map(np.asarray, state.opt_state)
    )
    there, *_ = one.step(state)
    here, *_ = one.step(one.place(host))
    np.testing.assert_array_equal(weights_of(there), weights_of(here))
    assert (there.update, here.update) == (3, 3)
    assert there.seconds > host.seconds > 0


def test_reports_are_due_by_the_number_of_the_update(worded, pools):
    """Whether the training has just begun or goes on; the last one has figures of held-out windows."""
    design = dataclasses.replace(DESIGN, corrections=0)
    one = trainer(worded, pools, design, updates=7)
    for first in (0, 3):
        seen = []

        def each(state, report, seen=seen):
            seen.append((state.update, report))
            return True

        one.run(one.begin()._replace(update=first), each=each, every=2, validate_every=3)
        assert [update for update, _ in seen] == list(range(first + 1, 8))
        told = {update: report for update, report in seen if report is not None}
        assert sorted(told) == [update for update in (2, 3, 4, 6, 7) if update > first]
        assert [update for update in told if told[update].validation is not None] == [
            update for update in (3, 6, 7) if update > first
        ]
    stopped = one.run(one.begin(), each=lambda state, _: state.update < 2)
    assert stopped.update == 2


def test_a_batch_that_cannot_be_divided(worded, pools):
    with pytest.raises(UserError, match="batch = 8: expected a multiple of 3, for 1 devices and 3 parts"):
        trainer(worded, pools, accumulate=3)

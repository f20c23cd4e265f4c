"""Which tokens fail: tables against loops over the texts, associations against pairs counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.analysis.failures import KINDS, association, binned, failing, token_table
from onestep_jax.store.results import TextResult, Trial


def text(index: int, tokens: list[int], predicted: list[int], nats: list[float], hits: list[int]) -> TextResult:
    """A fitted text with a trial that was kept (seed 1) and one that was not."""
    ids, right = np.array(tokens, np.int32), sum(a == b for a, b in zip(tokens, predicted, strict=True))
    accuracy = right / len(ids)
    numbers = ("exhausted", accuracy, 1.0, 50, 40, np.zeros((0, 3)))
    trials = (Trial(0, *numbers, np.full(len(ids), 7, np.int32)), Trial(1, *numbers, np.array(hits, np.int32)))
    return TextResult(
        index=index,
        text_id=f"{index:016x}",
        tokens=ids,
        predicted=np.array(predicted, np.int32),
        nats=np.array(nats, np.float32),
        vectors={},
        accuracy=accuracy,
        c_tokens=right,
        loss=1.0,
        steps=100,
        best_step=40,
        seconds=1.0,
        seed=1,
        status="exhausted",
        h_lm=float(np.nansum(nats)),
        trials=trials,
    )


NAN = float("nan")
TEXTS = [
    text(0, [4, 4, 9, 2], [4, 5, 9, 3], [NAN, 5.0, 1.0, 4.0], [0, 9, 3, -1]),
    text(1, [7], [7], [NAN], [2]),
    text(2, [4, 1, 2], [4, 1, 2], [NAN, 2.0, 0.5], [1, 6, 4]),
]


def random_texts(count: int, seed: int = 0) -> list[TextResult]:
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(count):
        length = int(rng.integers(2, 40))
        tokens, nats = rng.integers(30, size=length), np.r_[NAN, np.round(rng.exponential(3, length - 1), 1)]
        predicted = np.where(rng.random(length) < np.nan_to_num(nats) / 12, (tokens + 1) % 30, tokens)
        hits = np.where(rng.random(length) < 0.2, -1, rng.integers(50, size=length))
        texts.append(text(i, tokens.tolist(), predicted.tolist(), nats.tolist(), hits.tolist()))
    return texts


def test_table():
    table = token_table(TEXTS)
    np.testing.assert_array_equal(table.text, [0, 0, 0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(table.position, [0, 1, 2, 3, 0, 0, 1, 2])
    np.testing.assert_allclose(table.relative, [0, 1 / 3, 2 / 3, 1, 0, 0, 0.5, 1])
    np.testing.assert_array_equal(table.expected, [4, 4, 9, 2, 7, 4, 1, 2])
    np.testing.assert_array_equal(table.predicted, [4, 5, 9, 3, 7, 4, 1, 2])
    np.testing.assert_array_equal(table.right, [1, 0, 1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(table.occurrences, [3, 3, 1, 2, 1, 3, 1, 2])
    np.testing.assert_array_equal(table.first_hit, [0, 9, 3, -1, 2, 1, 6, 4])
    np.testing.assert_array_equal(np.isnan(table.nats), [1, 0, 0, 0, 1, 1, 0, 0])


def test_counts_in_another_corpus():
    table = token_table(TEXTS, corpus=[[4, 4, 4, 4], [2], [50]])
    np.testing.assert_array_equal(table.occurrences, [4, 4, 0, 1, 0, 4, 0, 1])


def test_a_trial_that_was_not_recorded_has_no_hits():
    bare = TEXTS[0].__class__(**{**vars(TEXTS[0]), "trials": ()})
    np.testing.assert_array_equal(token_table([bare]).first_hit, [-1, -1, -1, -1])


def test_failing_texts_only():
    table = failing(token_table(TEXTS))
    np.testing.assert_array_equal(table.text, [0, 0, 0, 0])
    assert not len(failing(token_table(TEXTS[1:])).text)


def test_bins_by_position_are_powers_of_two():
    bins = binned(token_table(TEXTS), "position")
    np.testing.assert_array_equal(bins.low, [0, 1, 2])
    np.testing.assert_array_equal(bins.high, [0, 1, 3])
    np.testing.assert_array_equal(bins.tokens, [3, 2, 3])
    np.testing.assert_array_equal(bins.wrong, [0, 1, 1])
    np.testing.assert_allclose(bins.rate, [0, 1 / 2, 1 / 3])
    np.testing.assert_array_equal(bins.first_hit, [1, 9, 4])
    np.testing.assert_allclose(bins.never, [0, 0, 1 / 3])


def test_a_median_over_tokens_never_right_is_infinite():
    never = text(0, [1, 2, 3], [0, 0, 3], [NAN, 1.0, 1.0], [-1, -1, 5])
    bins = binned(token_table([never]), "relative", bins=1)
    assert bins.first_hit == [np.inf]
    assert bins.never == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("bins", [1, 3, 10])
def test_bins_partition_the_tokens(by: str, bins: int):
    table = token_table(random_texts(20))
    values = getattr(table, by)
    known = ~np.isnan(values)
    found = binned(table, by, bins=bins)
    assert found.tokens.sum() == known.sum()
    assert found.wrong.sum() == (~table.right[known]).sum()
    assert (found.high[:-1] < found.low[1:]).all()
    for low, high, tokens, wrong in zip(found.low, found.high, found.tokens, found.wrong, strict=True):
        inside = known & (values >= low) & (values <= high)
        assert (inside.sum(), (inside & ~table.right).sum()) == (tokens, wrong)
    if by in ("relative", "nats"):
        assert len(found.low) == bins
    if by == "nats":
        assert found.tokens.max() < 1.5 * known.sum() / bins


def pairs(values: np.ndarray, wrong: np.ndarray) -> float:
    """Share of (wrong, right) pairs in which the wrong token has the higher value."""
    differences = values[wrong][:, None] - values[~wrong][None, :]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


@pytest.mark.parametrize("by", KINDS)
def test_auc_counts_pairs(by: str):
    table = token_table([*random_texts(12), *TEXTS[1:]])
    values = getattr(table, by)
    known = ~np.isnan(values)
    found = association(table, by)
    assert found.tokens == known.sum()
    assert found.auc == pytest.approx(pairs(values[known], ~table.right[known]))
    inside = [(values[rows], ~table.right[rows]) for rows in (known & (table.text == i) for i in range(14))]
    aucs = [pairs(*one) for one in inside if 0 < one[1].sum() < len(one[1])]
    assert found.texts == len(aucs) < 14
    assert found.auc_within == pytest.approx(np.mean(aucs))


def test_nats_that_cause_the_errors_are_found():
    table = failing(token_table(random_texts(60)))
    assert association(table, "nats").auc > 0.6
    assert association(table, "nats").auc_within > 0.6
    assert abs(association(table, "occurrences").auc - 0.5) < 0.1


def test_a_difference_between_texts_is_no_association_within():
    easy = [text(i, [1, 2, 3, 4], [1, 2, 3, 9], [0.1, 0.1, 0.1, 0.1], [0, 0, 0, -1]) for i in range(4)]
    hard = [text(i, [1, 2, 3, 4], [9, 9, 9, 4], [5.0, 5.0, 5.0, 5.0], [-1, -1, -1, 0]) for i in range(4)]
    found = association(token_table(easy + hard), "nats")
    assert found.auc == 0.75
    assert found.auc_within == 0.5


def test_steps_until_first_right():
    slow = text(0, [1, 2, 3, 4], [1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], [5, 8, 20, -1])
    assert association(token_table([slow]), "nats").steps == pytest.approx(1)
    assert association(token_table([slow]), "position").steps == pytest.approx(1)
    mixed = text(0, [1, 2, 3, 4], [1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], [5, 8, 20, -1])
    assert association(token_table([mixed]), "nats").steps == pytest.approx(-1)


def test_nothing_to_compare():
    found = association(token_table(TEXTS[1:]), "nats")
    assert np.isnan([found.auc, found.auc_within]).all()
    assert found.texts == 0
    alone = association(token_table(TEXTS[1:2]), "nats")
    assert alone.tokens == 0
    assert np.isnan(alone.steps)
    assert not len(binned(token_table(TEXTS[1:2]), "nats").tokens)


def test_refusals():
    with pytest.raises(UserError, match="did you mean 'position'"):
        binned(token_table(TEXTS), "positions")
    with pytest.raises(UserError, match="bins = 0"):
        binned(token_table(TEXTS), "relative", bins=0)
    with pytest.raises(UserError, match="at least one"):
        token_table([])

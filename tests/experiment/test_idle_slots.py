"""The replay of experiments/studies/idle_slots.py: sweeps small enough to be counted by hand."""

import sys
from pathlib import Path

import pytest

from onestep_jax import fit

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "studies"))
from idle_slots import Replay, rows_of, summary


@pytest.mark.parametrize(
    ("trials", "slots", "halve", "one_by_one", "ahead"),
    [
        # The slot of text 1 begins the seed of 40 after 20 steps, that of text 0 the seed of 10 after 30.
        ([[30, 40, 10], [20]], 2, False, (80, 160), (60, 120)),
        # One slot is left as text 1 ends, so no seed can run ahead.
        ([[30, 40, 10], [20]], 2, True, (80, 100), (80, 100)),
        # Four texts need more than three of five slots, and the fifth begins a seed ahead.
        ([[30, 20], [30], [30], [30]], 5, True, (50, 170), (30, 150)),
        # A seed ahead that nobody needs changes nothing.
        ([[30], [10]], 2, False, (30, 60), (30, 60)),
        # While texts wait, no slot is idle.
        ([[10, 10], [10], [10]], 1, False, (40, 40), (40, 40)),
    ],
)
def test_prices_by_hand(trials, slots, halve, one_by_one, ahead):
    assert Replay(trials, slots, ahead=False, halve=halve).price() == one_by_one
    assert Replay(trials, slots, ahead=True, halve=halve).price() == ahead


def test_rows_are_of_the_trials_of_a_run(tiny, token_lists, tmp_path):
    results = fit(tiny, token_lists[:4], run=tmp_path / "run", preset="paper", steps=20, seeds=2, length=4)
    rows = rows_of(tmp_path / "run")
    assert [row["slots"] for row in rows] == [1, 1, 2, 2, 4, 4]
    assert {row["of more than one seed"] for row in rows} == {sum(len(text.trials) > 1 for text in results)}
    alone = rows[0]
    assert alone["steps"] == sum(-(-trial.steps // 10) * 10 for text in results for trial in text.trials)
    found = summary(rows)
    assert (found["runs"], found["texts"]) == (1, 4)
    assert all(0 < share <= 1 for name, share in found.items() if name.endswith("slots"))

"""The page of the study behind `fast` says what its rows say."""

import csv
import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "experiments" / "preset_tables.py"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("preset_tables", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged(preset, length, text, steps, solved):
    return {"preset": preset, "length": str(length), "text": str(text), "steps": str(steps), "solved": str(solved)}


def test_giving_up_costs_what_the_seeds_say(tables):
    steps = [100, 140, 400, 1000]
    rows = [{"text": "0", "copy": str(i), "steps": str(n), "solved": "1"} for i, n in enumerate(steps)]
    rows[-1]["solved"] = "0"
    lines = {line.split(" | ")[0].strip("| "): line for line in tables.seeds(rows)}
    # Given up after 150: half of the seeds solve it, at (100 + 140 + 150 + 150) / 4 evaluations a try.
    assert lines["150"] == "| 150 | 1 of 1 | 270 |"
    assert lines["1000"] == "| 1000 | 1 of 1 | 547 |"
    unsolved = [{"text": "1", "copy": "0", "steps": "300", "solved": "0"}]
    assert any(line == "| 150 | 1 of 2 | – |" for line in tables.seeds([*rows, *unsolved]))


def test_judging_is_summed_by_preset_and_length(tables):
    rows = [judged("fast", 24, 0, 100, 1), judged("fast", 24, 1, 300, 1), judged("fast", 32, 0, 500, 1)]
    rows += [judged("fast", 32, 1, 5000, 0), judged("paper", 24, 0, 1000, 1), judged("paper", 24, 1, 5000, 0)]
    rows += [judged("paper", 16, 1, 2000, 1), judged("paper", 32, 0, 5000, 0)]
    lines = tables.judge(rows)
    assert "| fast | 24 | 2 | 2 | 200 | 200 |" in lines
    assert "| paper | 24 | 2 | 1 | 3000 | 3000 |" in lines
    longest = "Longest prefix solved, of the lengths tried, mean:"
    assert f"{longest} `fast` 28.0 tokens, `paper` 20.0 tokens." in lines
    assert "At 24 tokens `fast` takes 0.067 of the work of `paper`, all texts counted." in lines
    assert not any(line.startswith("At 32 tokens") for line in lines)


def test_the_recorded_page_is_that_of_the_recorded_rows(tables, tmp_path):
    recorded = PATH.parent / "results" / "preset_fast"
    for path in recorded.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        with path.open(newline="") as file:
            assert list(csv.DictReader(file))
    page = tables.write_tables(tmp_path)
    assert page.read_text(encoding="utf-8") == (recorded / "README.md").read_text(encoding="utf-8")

"""The page of the study behind `fast` says what its rows say."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

STUDIES = Path(__file__).parents[2] / "experiments" / "studies"


def load(name):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    return load("preset_tables")


@pytest.fixture
def study(tables, monkeypatch, tmp_path):
    """A study of two texts, of which no fit is made: the first is solved to 32 tokens, the second to 16."""
    module, fitted = load("preset_fast"), []

    def fit(_model, texts, *, preset, steps):
        fitted.append((preset, [(ids[0], len(ids)) for ids in texts], steps))
        solved = [len(ids) <= {1: 32, 2: 16}[ids[0]] for ids in texts]
        return [SimpleNamespace(steps=10, accuracy=float(good), c_tokens=0) for good in solved]

    monkeypatch.setattr(module.onestep_jax, "fit", fit)
    made = module.Study(None, [], [[1] * 40, [2] * 40], tmp_path, 600, lambda line: None)
    return module, made, fitted


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
    recorded = STUDIES.parent / "results" / "preset_fast"
    for path in recorded.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        with path.open(newline="") as file:
            assert list(csv.DictReader(file))
    page = tables.write_tables(tmp_path)
    assert page.read_text(encoding="utf-8") == (recorded / "README.md").read_text(encoding="utf-8")


def test_judging_goes_up_where_texts_are_solved_and_down_where_not(study):
    module, made, fitted = study
    module.judge(made)
    sizes = {
        name: [texts for preset, texts, _ in fitted if preset is preset_of]
        for name, preset_of in {"fast": module.FAST, "base": module.BASE, "paper": module.PAPER}.items()
    }
    upwards = [[(1, 24), (2, 24)], [(1, 32)], [(1, 40)]]
    assert sizes == {"fast": upwards, "base": upwards, "paper": [[(1, 24), (2, 24)], [(2, 16)]]}
    assert {steps for *_, steps in fitted} == {5000}
    rows = made.rows("judge")
    fitted.clear()
    module.judge(made)
    assert not fitted
    assert made.rows("judge") == rows


def test_candidates_differ_and_can_be_built(study):
    module, *_ = study
    found = list(module.candidates())
    assert len({(changed, to) for changed, to, _ in found}) == len(found)
    assert len({repr(preset) for *_, preset in found}) == len(found)
    for *_, preset in found:
        preset.optimizer.build()

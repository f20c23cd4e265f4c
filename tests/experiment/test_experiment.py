"""What holds of every recipe card, and how `onestep experiment` finds, sets and runs them."""

import ast
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from onestep_jax import UserError
from onestep_jax.cli.parser import main
from onestep_jax.experiment import cards as experiment
from onestep_jax.experiment.study import Study

FOLDER = Path(__file__).parents[2] / "experiments"
ASKED = """table1_arrangements table2_sharing table3_capacity table4_training_time figure3_information
figure4_throughput figure5_text_distance figure6_distances figure7_connectivity access attention
seed_stability failures trajectories control_untrained baseline_cramming absorption sink prefix_suffix
encoder dynamics knockout vectors growth margins meaning""".split()


def test_every_item_has_its_card():
    assert sorted(experiment.cards()) == sorted(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_card(name):
    card = experiment.load_card(name)
    assert experiment.title(card).endswith((".", "?"))
    assert f"onestep experiment {name}" in card.__doc__
    full, packaged, smoke = card.config(False), card.packaged(), card.config(True)
    assert {type(one) for one in (full, packaged, smoke)} == {card.Config}
    assert (packaged.model, smoke.model) == ("default", "default")
    assert full.model != "default"
    for one in (full, packaged, smoke):
        for value in dataclasses.asdict(one).values():
            assert isinstance(value, (str, int, float, bool, tuple))
        assert json.loads(json.dumps(dataclasses.asdict(one)))
    source = (FOLDER / "cards" / f"{name}.py").read_text(encoding="utf-8")
    assert "import onestep_jax" in source or "from onestep_jax" in source
    for node in ast.walk(ast.parse(source)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not {module.split(".")[0] for module in modules} & {"experiments", *ASKED, "torch"}


def test_the_page_of_results_is_made_from_the_results(monkeypatch):
    spec = importlib.util.spec_from_file_location("overview", FOLDER / "overview.py")
    overview = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "overview", overview)
    monkeypatch.syspath_prepend(FOLDER)
    spec.loader.exec_module(overview)
    assert set(overview.ITEMS) == set(ASKED)
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == overview.page()
    card = experiment.load_card("table1_arrangements")
    settings = dataclasses.replace(card.config(False), count=10, lengths=(16, 96, 512))
    hours = overview.paper_hours(overview.ITEMS["table1_arrangements"], settings)
    assert hours == pytest.approx(50 * (11 + (15 + 27) / 2 + 2 * 87) / 3600)


def test_the_cards_are_listed_and_printed(capsys):
    assert main(["experiment"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == sorted(ASKED)
    assert main(["experiment", "table1_arrangements", "--card"]) == 0
    printed = capsys.readouterr().out
    assert "Llama-3.2-1B" in printed
    assert "--count                50" in printed


def test_settings_are_options():
    card = experiment.load_card("table1_arrangements")
    changes = {"count": "3", "lengths": "2,4", "preset": "paper"}
    changed = experiment.settings_of(card, "smoke", changes)
    assert (changed.count, changed.lengths, changed.preset) == (3, (2, 4), "paper")
    assert experiment.settings_of(card, "paper", {}) == card.config(False)
    assert experiment.settings_of(card, "packaged", {}) == card.packaged()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1_arrangement"], "unknown experiment 'table1_arrangement'.*did you mean 'table1_arrangements'"),
        (["table1_arrangements", "--cuont", "3"], "unknown setting of table1_arrangements 'cuont'.*mean 'count'"),
        (["table1_arrangements", "--count", "many"], "--count 'many': expected a whole number"),
        (["table1_arrangements", "--count"], "--count needs a value"),
        (["table1_arrangements", "--smoke", "--packaged"], "exclude each other"),
    ],
)
def test_mistakes_are_explained(words, message, capsys):
    import re

    assert main(["experiment", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "CLONE", tmp_path / "site-packages")
    with pytest.raises(UserError, match=r"run this in a clone"):
        experiment.cards()


@pytest.fixture
def card(tmp_path, monkeypatch, token_lists):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "cards").mkdir(parents=True)
    tokens = [ids[:4] for ids in token_lists[:2]]
    (tmp_path / "experiments" / "cards" / "mine.py").write_text(
        f'''"""Mine."""
import dataclasses
import numpy as np

@dataclasses.dataclass(frozen=True)
class Config:
    model: str = "tiny"
    steps: int = 30

def config(smoke: bool) -> Config:
    return Config(steps=3 if smoke else 30)

def packaged() -> Config:
    return Config()

def run(config, study):
    results = study.fit("a", [np.array(ids) for ids in {tokens}], steps=config.steps)
    study.table("mine", [{{"text": text.text_id, "steps": text.steps, "accuracy": text.accuracy}} for text in results])
    with study.figure("mine", columns=2) as axes:
        for axis in axes:
            axis.plot([1, 2])
'''
    )
    return experiment.load_card("mine")


def test_a_card_goes_on_and_other_settings_are_refused(tiny, card, tmp_path):
    said = []
    calls = []
    for _ in range(2):
        study = Study(tmp_path / "out", tiny, calls.append, said.append)
        record = experiment.run_card("mine", card.config(False), study, "onestep experiment mine")
        assert record["files"] == ["mine.csv", "mine.png"]
        made = len(calls)
        calls.clear()
    assert made == 0, "the second call fits nothing again"
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept == json.loads(json.dumps(record))
    assert kept["settings"] == {"model": "tiny", "steps": 30}
    assert (kept["title"], kept["command"]) == ("Mine.", "onestep experiment mine")
    assert len((tmp_path / "out" / "mine.csv").read_text().splitlines()) == 3
    study = Study(tmp_path / "out", tiny, None, said.append)
    with pytest.raises(UserError, match=r"other settings .*'steps': 30.* there, .*'steps': 3.* here.*--out"):
        experiment.run_card("mine", card.config(True), study, "")


def test_a_spreadsheet_computes_no_cell_of_a_table(tiny, tmp_path):
    study = Study(tmp_path, tiny, None, lambda _: None)
    study.table("texts", [{"token": "=1+1", "value": -2.0, "other": "a-b"}])
    assert (tmp_path / "texts.csv").read_text().splitlines() == ["token,value,other", "'=1+1,-2,a-b"]


def test_seconds_are_of_all_calls(tiny, card, tmp_path, monkeypatch):
    """Also of one that was interrupted, and of an older record, which has those of its last call."""
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(experiment.time, "perf_counter", lambda: next(clock))
    study = Study(tmp_path / "out", tiny, None, lambda _: None)

    def run() -> float:
        return experiment.run_card("mine", card.config(False), study, "")["seconds"]

    first = run()
    with monkeypatch.context() as stopped:
        stopped.setattr(study, "table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    path = tmp_path / "out" / "config.json"
    second = json.loads(path.read_text())["seconds"]
    third = run()
    assert 0 < first < second < third
    record = json.loads(path.read_text())
    del record["seconds"]
    path.write_text(json.dumps(record | {"seconds of the last call": 500.5}))
    assert run() > 500.5


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_setting_that_came_later_had_its_default(tiny, card, tmp_path):
    study = Study(tmp_path / "out", tiny, None, lambda _: None)
    experiment.run_card("mine", card.config(False), study, "")
    path = tmp_path / "out" / "config.json"
    record = json.loads(path.read_text())
    del record["settings"]["steps"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"'steps': 30.* there, .*'steps': 3.* here"):
        experiment.run_card("mine", card.config(True), study, "")
    assert experiment.run_card("mine", card.config(False), study, "")["settings"]["steps"] == 30


def test_settings_that_fail_at_once_bind_nobody(tiny, card, tmp_path):
    study = Study(tmp_path / "out", tiny, None, lambda _: None)
    with pytest.raises(UserError, match="steps = 0"):
        experiment.run_card("mine", dataclasses.replace(card.config(False), steps=0), study, "")
    assert (tmp_path / "out" / "config.json").exists()
    record = experiment.run_card("mine", card.config(True), study, "")
    assert record["settings"]["steps"] == 3
    (tmp_path / "out" / "config.json").write_text("[" * 1000)
    with pytest.raises(UserError, match=r"out/config.json: damaged description: .*nested 1000 deep.*; delete it"):
        experiment.run_card("mine", card.config(True), study, "")

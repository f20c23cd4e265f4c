"""The report of a growth: settings, a row for each text, and the stages behind the slider."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pages import parse
from report_pages import check_document, hostile_model, page_data, rows_of
from test_report_browser import BROWSER, NAMES, rendered  # noqa: F401, a fixture

from onestep_jax import UserError, load_model
from onestep_jax.analysis.growth import grow, stages
from onestep_jax.analysis.prefix_table import read_prefix_table
from onestep_jax.cli.parser import main
from onestep_jax.report import growth_section, write_report
from onestep_jax.report.markup import visible

HARNESS = Path(__file__).parents[1] / "support" / "slider.js"
TEXTS = np.random.default_rng(1).integers(1, 61, size=(3, 8)).tolist()


@pytest.fixture(scope="module")
def grown(tiny_folder, one_device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth") / "grown"
    table = grow(load_model(tiny_folder), TEXTS, first=3, steps=25, run=folder, slots=1, placement=one_device)
    solved = [[stage.solved for stage in stages(table, text)] for text in range(3)]
    assert sum(not row[-1] for row in solved) >= 1
    assert sum(map(sum, solved)) >= 6
    return folder


@pytest.fixture(scope="module")
def made(grown, tmp_path_factory):
    return write_report([grown], tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def page(made):
    return parse(made.page.read_text(encoding="utf-8"))


def cards(page):
    return [article for article in page.all("article") if "data-growth" in article.attributes]


def test_a_growth_is_one_section_and_its_rounds_are_no_runs(made, page, grown):
    check_document(page)
    assert (made.table, made.figures) == (None, ())
    assert [one.get("id") for one in page.all("section")] == ["growth"]
    assert page.all("h1")[0].text == grown.name
    table = read_prefix_table(grown)
    rows = rows_of(page.by_id("growth").all("table")[0])[1:]
    for text, row in enumerate(rows):
        found = stages(table, text)
        capacity = table.capacities()[text]
        assert [int(row[1]), int(row[3]), int(row[4])] == [capacity.tokens, capacity.exact_tokens, len(found)]
        assert float(row[2]) == pytest.approx(capacity.h_lm, abs=0.06)
        assert int(row[5]) == capacity.evaluations == found[-1].spent
        how = "solved, the last length" if found[-1].solved else "failed"
        assert row[6] == f"{found[-1].length} tokens, {how}"


def test_without_a_script_the_last_stage_is_shown(page, grown):
    table = read_prefix_table(grown)
    for text, card in enumerate(cards(page)):
        found = stages(table, text)
        last = found[-1]
        (label,) = card.all("label")
        assert "hidden" in label.attributes
        (slider,) = label.all("input")
        assert [slider.get(name) for name in ("min", "max", "value")] == ["1", str(len(found)), str(len(found))]
        tokens = [one for one in card.all("span") if "token" in one.get("class").split()]
        assert len(tokens) == max(stage.length for stage in found)
        wrong = last.result.predicted != last.result.tokens
        assert ["wrong" in one.get("class").split() for one in tokens] == wrong.tolist()
        assert all(("in place of" in one.get("title")) == bad for one, bad in zip(tokens, wrong, strict=True))
        first_hit = last.result.trials[0].first_hit
        assert ["found" in one.get("class").split() for one in tokens] == (first_hit != 0).tolist()
        said = card.all("output")[0].text
        assert said.startswith(f"{last.length} tokens · ")
        assert f"{last.evaluations} evaluations in this stage, {last.spent} so far" in said
        rows = rows_of(card.all("table")[0])[1:]
        assert [int(row[0]) for row in rows] == [stage.length for stage in found]
        assert [int(row[1]) for row in rows] == [stage.evaluations for stage in found]
        assert [int(row[2]) for row in rows] == [stage.spent for stage in found]
        assert [int(row[3]) for row in rows] == [stage.right for stage in found]
        assert rows[0][6:] == ["random vectors", "–"]
        assert float(rows[1][7]) == pytest.approx(found[1].moved, abs=0.006)


def test_the_script_has_every_stage(page, grown):
    table = read_prefix_table(grown)
    growths = page_data(page)["growths"]
    assert len(growths) == len(cards(page)) == 3
    for text, found in enumerate(growths):
        for data, stage in zip(found, stages(table, text), strict=True):
            assert data["length"] == stage.length
            wrong = np.flatnonzero(stage.result.predicted != stage.result.tokens)
            assert [int(place) for place in data["wrong"]] == wrong.tolist()
            assert stage.length - len(data["found"]) == stage.right
            assert f"{stage.spent} so far" in data["said"]
            assert ("all right" in data["said"]) == (stage.result.accuracy == 1)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node is installed")
def test_the_slider_goes_through_the_stages(page):
    """The page's own script in Node, on stand-ins for the few elements that it touches."""
    found = max(page_data(page)["growths"], key=lambda found: bool(found[-1]["wrong"]))
    given = [{"stages": found, "tokens": max(stage["length"] for stage in found)}, [1, 3, len(found)]]
    script = growth_section.__file__.replace("growth_section.py", "page.js")
    command = ["node", str(HARNESS), script]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60, check=True)
    last, first, third, again = json.loads(done.stdout)
    assert last["ready"] == "true"
    assert last["label"] is False
    assert again == last
    for state, number in ((first, 1), (third, 3), (last, len(found))):
        stage = found[number - 1]
        assert state["said"] == stage["said"]
        assert state["value"] == f"stage {number} of {len(found)}, tokens: {stage['length']}"
        wrong = [str(i) in stage["wrong"] for i in range(stage["length"])]
        assert ["wrong" in name.split() for name in state["shown"]] == wrong
        assert ["found" in name.split() for name in state["shown"]] == [
            i in stage["found"] for i in range(stage["length"])
        ]
        assert [title for title in state["titles"] if title] == list(stage["wrong"].values())


@pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
def test_the_slider_is_shown_in_a_browser(rendered, made):  # noqa: F811
    document, root = rendered(made.page)
    assert root.get("data-ready") == "true"
    assert "data-error" not in root.attributes
    for card in cards(document):
        assert "hidden" not in card.all("label")[0].attributes
        assert card.all("input")[0].get("aria-valuetext").startswith("stage ")


def test_strings_of_tokens_are_escaped(tiny_folder, one_device, tmp_path):
    model = load_model(hostile_model(tiny_folder, tmp_path / "hostile"))
    texts = [list(range(8)), list(range(8, 16))]
    grow(model, texts, first=8, steps=2, run=tmp_path / "</script><b>", slots=1, placement=one_device)
    made = write_report([tmp_path / "</script><b>"], tmp_path / "out").page.read_text(encoding="utf-8")
    page = parse(made)
    check_document(page)
    assert "owned" not in [one.text for one in page.all("title")]
    assert len(page.all("script")) == 2
    shown = [one.text for one in cards(page)[0].all("span") if "token" in one.get("class").split()]
    assert shown[0] == visible("</script><script>document.title='owned'</script>")
    assert page_data(page)["growths"][0][0]["length"] == 8


@pytest.mark.long
def test_growths_beside_runs_and_in_experiments(grown, run, tmp_path):
    experiment = tmp_path / "growth"
    (experiment / "runs").mkdir(parents=True)
    (experiment / "config.json").write_text(json.dumps({"experiment": "growth", "title": "Growth"}))
    shutil.copytree(grown, experiment / "runs" / "warm")
    shutil.copytree(run, experiment / "runs" / "six")
    page = parse(write_report([experiment], tmp_path / "out").page.read_text(encoding="utf-8"))
    check_document(page)
    assert [described["name"] for described in page_data(page)["runs"]] == ["six"]
    assert len(page_data(page)["growths"]) == 3
    assert page.all("h1")[0].text == "Growth"
    assert main(["report", str(run), str(grown), str(experiment), "--out", str(tmp_path / "all")]) == 0
    page = parse((tmp_path / "all" / "report.html").read_text(encoding="utf-8"))
    check_document(page)
    assert len(page_data(page)["growths"]) == 6
    assert [article.all("h3")[0].text.rpartition(", ")[2] for article in cards(page)] == [
        f"text {text}" for text in (0, 1, 2) * 2
    ]


def test_a_page_holds_so_many_stages(grown, tmp_path, monkeypatch):
    monkeypatch.setattr(growth_section, "STAGES", 2)
    page = parse(write_report([grown], tmp_path / "out").page.read_text(encoding="utf-8"))
    assert len(cards(page)) == len(page_data(page)["growths"]) == 1
    assert "too small for the stages of 2 more texts" in page.by_id("growth").text


def test_a_growth_without_a_stage_is_refused(grown, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("table.json", "texts.parquet"):
        shutil.copy(grown / name, begun)
    with pytest.raises(UserError, match="no text is recorded yet"):
        write_report([begun], tmp_path / "out")
    shutil.copytree(grown, tmp_path / "whole")
    page = parse(write_report([tmp_path], tmp_path / "out").page.read_text(encoding="utf-8"))
    assert "begun: no text is recorded yet, so it is left out" in page.by_id("growth").text

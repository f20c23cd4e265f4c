"""Which folders a report is made from: several runs, unfinished ones, folders of runs, experiments."""

import base64
import csv
import json
from pathlib import Path

import pytest
from pages import parse
from report_pages import PNG, check_document, page_data, rows_of
from report_runs import copy_run

from onestep_jax import UserError, fit, read_results
from onestep_jax.report import write_report


def test_several_runs_are_compared(run, tmp_path):
    other = copy_run(run, tmp_path / "b" / "six")
    single = copy_run(run, tmp_path / "single", recorded=1)
    report = write_report([run, other, single], tmp_path / "out")
    page = parse(report.page.read_text(encoding="utf-8"))
    check_document(page)
    names = [described["name"] for described in page_data(page)["runs"]]
    assert names == [f"{run.parent.name}/six", "b/six", "single"]
    rows = rows_of(page.by_id("summary").all("table")[0])[1:]
    results = read_results(run)
    assert [row[0] for row in rows] == names
    assert rows[0][3:6] == ["6", str(results.solved), str((results.accuracy >= 0.99).sum())]
    assert rows[2][3] == "1"
    bars = page.by_id("capacity").all("svg")[0].all("g")
    assert len(bars) == 9
    assert [bar.text for bar in bars[:3]] == [f"{sum(t.c_tokens for t in results) / 6:.4g}", "8", "8"]
    assert [option.text for option in page.by_id("run").all("option")] == ["all runs", *names]
    assert len(report.figures) == 4
    with report.table.open(newline="", encoding="utf-8") as file:
        assert [row["run"] for row in csv.DictReader(file)] == [names[0]] * 6 + [names[1]] * 6 + [names[2]]


def test_an_unfinished_run_says_so(run, tmp_path):
    copy_run(run, tmp_path / "part", recorded=2)
    page = parse(write_report([tmp_path / "part"], tmp_path / "out").page.read_text(encoding="utf-8"))
    assert "unfinished: 2 of its 6 texts are recorded" in page.by_id("summary").text
    assert len(page_data(page)["runs"][0]["texts"]) == 2


def test_a_finished_run_says_nothing_of_it(page):
    assert "unfinished" not in page.text


def test_token_ids_where_no_tokenizer_can_be_had(tiny, token_lists, one_device, tmp_path):
    fit(tiny, token_lists[:2], run=tmp_path / "run", steps=5, slots=2, placement=one_device)
    page = parse(write_report([tmp_path / "run"], tmp_path / "out").page.read_text(encoding="utf-8"))
    check_document(page)
    assert "Token ids are shown in place of words" in page.by_id("texts").text
    found = page_data(page)
    row = found["runs"][0]["texts"][0]
    assert found["runs"][0]["strings"] is False
    assert [found["pieces"][place] for place in row["pieces"]] == [str(token) for token in row["tokens"]]
    assert rows_of(page.by_id("plain").all("table")[0])[1][1] == " ".join(map(str, token_lists[0]))
    assert "Text, UTF-8" not in page.by_id("summary").text
    assert "times the token ids" in page.by_id("summary").text


def test_folders_that_are_none_are_refused(run, tmp_path):
    copy_run(run, tmp_path / "empty", recorded=0)
    (tmp_path / "bare").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("[1]")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    for folders, words in (
        ([tmp_path / "empty"], "no text is recorded yet"),
        ([run, tmp_path / "empty"], "empty: no text is recorded yet"),
        ([tmp_path / "bare"], "no run directory"),
        ([tmp_path / "nowhere"], "no run directory"),
        ([tmp_path / "odd"], r"odd/config.json: damaged description: expected object, got array; put it back"),
        ([tmp_path / "other"], r"other/config.json: belongs to no run and to no experiment"),
        ([tmp_path / "odd" / "config.json"], r"odd/config.json: no run directory .*\(it is a file\)"),
        ([Path("/dev/null")], r"/dev/null: no run directory .*\(it is a device"),
        ([tmp_path / ("x" * 256)], r"no run directory .*\(File name too long\)"),
        ([], "no folder"),
    ):
        with pytest.raises(UserError, match=words):
            write_report(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_runs_is_all_of_them(run, tmp_path):
    for name in ("a", "b"):
        copy_run(run, tmp_path / "runs" / name)
    copy_run(run, tmp_path / "runs" / "begun", recorded=0)
    calls = []
    report = write_report([tmp_path / "runs"], tmp_path / "out", progress=lambda *call: calls.append(call))
    page = parse(report.page.read_text(encoding="utf-8"))
    assert [described["name"] for described in page_data(page)["runs"]] == ["a", "b"]
    assert "begun: no text is recorded yet, so it is left out" in page.by_id("summary").text
    assert calls == [(1, 3), (2, 3), (3, 3)]


# --- experiments ---


@pytest.fixture
def experiment(tmp_path):
    folder = tmp_path / "connectivity"
    folder.mkdir()
    config = {"experiment": "connectivity", "title": "Figure 7, <connectivity>", "settings": {"pairs": 45}}
    config["captions"] = {"curve.png": "Accuracy along the line & the Bézier curve"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "curve.png").write_bytes(PNG)
    rows = [["pair", "kind", "accuracy"], ["1", "<i>line</i>", "0.25"], ["2", "curve\x00", "1.0"], ["3"]]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_an_experiment_shows_its_figures_and_tables(experiment, tmp_path):
    report = write_report([experiment], tmp_path / "out")
    assert (report.table, report.figures) == (None, ())
    page = parse(report.page.read_text(encoding="utf-8"))
    check_document(page)
    shown = page.by_id("experiments")
    assert shown.all("h3")[0].text == page.all("h1")[0].text == "Figure 7, <connectivity>"
    (image,) = shown.all("img")
    assert base64.b64decode(image.get("src").removeprefix("data:image/png;base64,")) == PNG
    assert "Accuracy along the line & the Bézier curve" in image.get("alt")
    rows = rows_of(shown.all("table")[0])
    assert rows == [["pair", "kind", "accuracy"], ["1", "<i>line</i>", "0.25"], ["2", "curve␀", "1.0"], ["3", "", ""]]
    classes = [cell.get("class") for cell in shown.all("table")[0].all("tr")[1].all("th", "td")]
    assert classes == ["n", "", "n"]
    assert ["settings.pairs", "45"] in rows_of(shown.all("table")[1])


def test_runs_of_an_experiment_come_with_it(experiment, run, tmp_path):
    copy_run(run, experiment / "runs" / "first")
    page = parse(write_report([experiment], tmp_path / "out").page.read_text(encoding="utf-8"))
    check_document(page)
    assert [described["name"] for described in page_data(page)["runs"]] == ["first"]
    assert page.by_id("experiments")
    assert page.all("h1")[0].text == "Figure 7, <connectivity>"
    both = parse(write_report([experiment, run], tmp_path / "both").page.read_text(encoding="utf-8"))
    assert both.all("h1")[0].text == "2 runs"


def test_long_tables_are_cut_and_empty_ones_named(experiment, tmp_path):
    (experiment / "long.csv").write_text("a\n" + "\n".join(map(str, range(300))) + "\n")
    (experiment / "none.csv").write_text("")
    page = parse(write_report([experiment], tmp_path / "out").page.read_text(encoding="utf-8"))
    (table,) = [table for table in page.all("table") if "long.csv" in table.content[0].text]
    assert "first 200 of 300 rows" in table.content[0].text
    assert len(table.all("tr")) == 201
    assert "none.csv is empty" in page.by_id("experiments").text


def test_a_table_that_is_no_text_is_refused(experiment, tmp_path):
    (experiment / "bad.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"bad\.csv: no CSV in UTF-8"):
        write_report([experiment], tmp_path / "out")

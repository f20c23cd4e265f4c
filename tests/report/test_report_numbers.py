"""What page and table say equals what was recorded."""

import csv
import dataclasses
import math

import numpy as np
import pytest
from pages import parse
from report_pages import PNG, page_data, rows_of
from report_runs import read

from onestep_jax import Results, fit, read_results
from onestep_jax.analysis import exact_horizon, horizon
from onestep_jax.prototokens.schemes import Cramming
from onestep_jax.report import data, wording, write_report
from onestep_jax.report.inputs import Found
from onestep_jax.report.page import page_html
from onestep_jax.store.reading import read_config
from onestep_jax.store.run import open_run
from onestep_jax.tokens import texts_digest


def test_data_equals_the_run(page, run):
    results, found = read_results(run), page_data(page)
    (described,) = found["runs"]
    assert described["strings"] is True
    assert len(described["texts"]) == len(results)
    for text, row in zip(results, described["texts"], strict=True):
        assert (row["index"], row["id"], row["exact"]) == (text.index, text.text_id, text.c_tokens)
        assert (row["accuracy"], row["steps"], row["seed"]) == (text.accuracy, text.steps, text.seed)
        assert (row["status"], row["tokens"]) == (text.status, text.tokens.tolist())
        assert row["h_lm"] == pytest.approx(text.h_lm, abs=5e-4)
        output = [row["wrong"][str(i)][0] if str(i) in row["wrong"] else id_ for i, id_ in enumerate(row["tokens"])]
        assert output == text.predicted.tolist()
        assert len(row["wrong"]) == len(text.tokens) - text.c_tokens
        known = np.array([np.nan if nats is None else nats for nats in row["nats"]])
        np.testing.assert_allclose(known, text.nats, atol=5e-4)
        assert row["first"] == text.trials[0].first_hit.tolist()
        pieces = [found["pieces"][place].strip() for place in row["pieces"]]
        assert pieces == [f"w{id_ - 1}" if id_ else "<unk>" for id_ in row["tokens"]]
        for place, (id_, piece) in row["wrong"].items():
            assert found["pieces"][piece].strip() == (f"w{id_ - 1}" if id_ else "<unk>")
            assert id_ != row["tokens"][int(place)]


def test_numbers_shown_equal_the_run(page, run):
    results = read_results(run)
    terms, values = page.by_id("summary").all("dt"), page.by_id("summary").all("dd")
    tiles = {term.text: value.text for term, value in zip(terms[:7], values[0:14:2], strict=True)}
    tokens, nats = sum(len(text.tokens) for text in results), sum(text.h_lm for text in results)
    assert tiles["Exact texts"] == f"{results.solved} of 6"
    assert tiles["Reconstructed texts"] == f"{(results.accuracy >= 0.99).sum()} of 6"
    assert tiles["Mean accuracy"] == f"{results.accuracy.mean():.4f}"
    assert tiles["Exact tokens"] == f"{sum(text.c_tokens for text in results)} of {tokens}"
    assert tiles["Information (H_LM)"] == f"{nats:,.0f} nats"
    assert f"{nats / math.log(2):,.0f} bits; {nats / 6:,.1f} nats a text" in page.by_id("summary").text
    assert tiles["Steps"] == f"{np.median(results.steps):.0f}"
    assert "[e] [m]×N, first output ignored" in page.by_id("summary").text
    assert "gradient evaluations a text, over as many seeds as they last for" in page.by_id("summary").text
    assert f"6 texts, {results.solved} of them exact" in page.all("header")[0].text
    assert "preset fast: cautious_lbfgs (learning_rate 1" in page.by_id("summary").text
    sizes = {row[0]: row[1] for row in rows_of(page.by_id("summary").all("table")[0])}
    assert sizes["Learned vectors, float32"] == f"{6 * 2 * 32 * 4:,} bytes"
    assert sizes["Token ids, 6 bits each"] == "36 bytes"
    written = sum(len(" ".join(f"w{i - 1}" if i else "<unk>" for i in text.tokens)) for text in results)
    assert sizes["Text, UTF-8"] == f"{written} bytes"
    assert f"{1536 / written:.1f} times the text itself" in page.by_id("summary").text


def test_without_a_script_the_texts_are_there(page, run):
    plain = page.by_id("plain")
    assert "open" in plain.attributes
    assert "hidden" in page.by_id("browser").attributes
    rows = rows_of(plain.all("table")[0])[1:]
    for text, row in zip(read_results(run), rows, strict=True):
        target = " ".join(f"w{i - 1}" if i else "<unk>" for i in text.tokens)
        output = " ".join(f"w{i - 1}" if i else "<unk>" for i in text.predicted)
        assert row[:3] == [str(text.index), target, "the same" if text.accuracy == 1 else output]
        assert row[3:6] == [f"{text.c_tokens} of 8", wording.accuracy(text.accuracy), str(first_error(text))]
        assert row[6:] == [f"{text.h_lm:,.1f}", f"{text.steps}", text.status]
    assert len(page.by_id("capacity").all("svg")[0].all("g")) == 6
    assert len([line for line in page.by_id("curves").all("polyline") if "one" in line.get("class")]) == 12


def first_error(text):
    return next((i for i in range(len(text.tokens)) if text.tokens[i] != text.predicted[i]), len(text.tokens))


def test_table_has_a_row_a_text(report, run):
    with report.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for text, row in zip(read_results(run), rows, strict=True):
        for name in ("index", "text_id", "c_tokens", "steps", "best_step", "seed", "status"):
            assert row[name] == str(getattr(text, name))
        for name in ("accuracy", "loss", "seconds"):
            assert float(row[name]) == getattr(text, name)
        assert float(row["h_lm_nats"]) == text.h_lm
        assert float(row["h_lm_bits"]) == pytest.approx(text.h_lm / math.log(2))
        assert row["token_ids"] == " ".join(map(str, text.tokens))
        assert row["output_ids"] == " ".join(map(str, text.predicted))
        assert (row["run"], row["length"]) == ("six", "8")
        assert row["exact"] == str(int(text.accuracy == 1))
        assert row["reconstructed"] == str(int(text.accuracy >= 0.99))
        assert int(row["exact_horizon"]) == exact_horizon(text.predicted, text.tokens)
        assert int(row["horizon"]) == horizon(text.predicted, text.tokens)


def test_figures_are_pictures(report):
    assert [path.name for path in report.figures] == ["capacity.png", "curves.png"]
    assert all(path.read_bytes()[:8] == PNG[:8] and path.stat().st_size > 5000 for path in report.figures)


def test_the_same_run_gives_the_same_page(run, report, tmp_path):
    again = write_report([run], tmp_path)
    assert again.page.read_bytes() == report.page.read_bytes()
    assert again.table.read_bytes() == report.table.read_bytes()


def test_teacher_forcing_is_said(tiny, token_lists, one_device, tmp_path, page):
    fit(tiny, token_lists[:1], run=tmp_path / "run", steps=5, slots=2, placement=one_device, scheme=Cramming(1))
    found = Found((read(tmp_path / "run"),), ())
    assert "teacher forcing" in parse(page_html(found)).by_id("texts").text
    assert "teacher forcing" not in page.text


def test_a_page_holds_so_many_texts(run, monkeypatch):
    monkeypatch.setattr(data, "TEXTS", 4)
    page = parse(page_html(Found((read(run),), ())))
    assert len(page_data(page)["runs"][0]["texts"]) == 4
    assert "holds 4 of 6 texts" in page.by_id("texts").text
    monkeypatch.setattr(data, "TOKENS", 17)
    assert len(data.shown_texts([read(run)])[0]) == 2
    monkeypatch.setattr(data, "TOKENS", 1)
    assert len(data.shown_texts([read(run)])[0]) == 1


def test_results_of_a_failed_trial_are_shown(run, tmp_path):
    results, config = read_results(run), read_config(run)
    failed = dataclasses.replace(results[0], loss=math.nan, status="failed", nats=np.full(8, np.nan, np.float32))
    identity = config["identity"] | {"texts": texts_digest([failed.text_id])}
    with open_run(tmp_path / "run", identity, config["settings"], [(failed.text_id, failed.tokens)]) as opened:
        opened.append(Results((failed,), results.scheme, results.model).texts)
    page = parse(write_report([tmp_path / "run"], tmp_path / "out").page.read_text(encoding="utf-8"))
    row = page_data(page)["runs"][0]["texts"][0]
    assert row["nats"] == [None] * 8
    assert row["status"] == "failed"


@pytest.mark.parametrize("begins", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_computes_no_cell(run, tmp_path, monkeypatch, begins):
    (row, *_) = data.table_rows([read(run)])
    monkeypatch.setattr(data, "table_rows", lambda runs: [row | {"text": begins, "output": f"a{begins}"}])
    data.write_table(tmp_path / "texts.csv", [])
    with (tmp_path / "texts.csv").open(newline="", encoding="utf-8") as file:
        (found,) = csv.DictReader(file)
    assert (found["text"], found["output"]) == (f"'{begins}", f"a{begins}")
    assert float(found["accuracy"]) == row["accuracy"]

"""The study of presets over models: its rows and its page are those of its run directories."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from smoke import read_csv

from onestep_jax import read_results

PATH = Path(__file__).parents[2] / "experiments" / "studies" / "presets.py"


@pytest.mark.long
def test_rows_and_page(tiny_folder, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("presets", PATH)
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "presets", study)
    spec.loader.exec_module(study)
    sentences = np.random.default_rng(0).integers(60, size=(60, 12))
    (tmp_path / "book.txt").write_text(" ".join("W1 " + " ".join(f"w{i}" for i in row) + "." for row in sentences))
    given = ["--texts", str(tmp_path / "book.txt"), "--model", str(tiny_folder), "--out", str(tmp_path / "out")]
    given += ["--ways", "fast", "half first", "--lengths", "4", "6", "--count", "3", "--steps", "40"]
    monkeypatch.setattr("sys.argv", ["presets.py", *given])
    study.main()
    rows = read_csv(tmp_path / "out" / "presets.csv")
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        way = str(row["way"]).replace(" ", "-")
        run = tmp_path / "out" / "runs" / str(row["model"]) / f"{way}-{int(row['length'])}"
        text = read_results(run / "whole")[int(row["text"])]
        first = read_results(run / "first")[int(row["text"])] if way == "half-first" else None
        before = 0 if first is None else first.steps
        assert first is None or len(first.tokens) == row["length"] // 2
        steps = text.steps + before
        assert (row["steps"], row["solved"], row["c_tokens"]) == (steps, int(text.accuracy == 1), text.c_tokens)
        assert len(str(row["wrong"]).split()) == 0 or not row["solved"]
    page = (tmp_path / "out" / "README.md").read_text()
    own = [row for row in rows if (row["way"], row["length"]) == ("half first", 6)]
    assert f"| half first | 0 | 6 | {sum(int(row['solved']) for row in own)} of 3 | 40 |" in page

"""The study of designs: each way differs from the default, is trained, measured, and gone on with."""

import csv
import importlib
from pathlib import Path

import pytest
from encoders import word_texts

from onestep_jax import Design, Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "studies")
    return importlib.import_module("encoder_designs")


def test_every_way_is_another_one(study):
    """And no way is one that the docstring does not tell."""
    ways = [(Design(**parts).describe(), Recipe(**how).describe()) for parts, how in study.WAYS.values()]
    assert all(ways.index(way) == i for i, way in enumerate(ways))
    told = [line[4:19].strip() for line in study.__doc__.splitlines() if line.startswith("    ") and line[4] != " "]
    assert [way for ways in told[1:] for way in ways.split(", ")] == list(study.WAYS)


@pytest.mark.long
def test_curves(study, tiny_folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(word_texts(6)))
    words = ["--texts", texts, "--model", tiny_folder, "--out", tmp_path / "out"]
    words += ["--length", 4, "--corrections", 1, "--updates", 4, "--every", 2, "--batch", 4]
    for ways in (["default"], ["default", "no corrections"]):
        assert study.main([*map(str, words), "--ways", *ways]) == 0
        with (tmp_path / "out" / "curves.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["way"], row["update"]) for row in rows] == [(way, u) for way in ways for u in ("2", "4")]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    default, bare = rows[1], rows[3]
    assert 0 <= float(default["tokens exact"]) <= 1
    assert float(bare["tokens exact"]) == float(bare["tokens exact at first"])

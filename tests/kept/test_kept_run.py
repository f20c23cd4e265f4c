"""A run directory and an export that an earlier version wrote are opened, verified, decoded, exported and resumed.

`run-0a34499.tar.xz` holds what commit 0a34499 made of six texts on the packaged model, stopped when three were
recorded: two groups in flight at their second seed, first seeds of three texts that were not solved, the export of its
vectors, and what `onestep decode --json` said of them.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from onestep_jax import fit, load_model, read_results
from onestep_jax.cli.parser import main
from onestep_jax.store.status import read_status

KEPT = Path(__file__).parent / "run-0a34499.tar.xz"
TEXTS = [
    "The ferry left before the bells had stopped ringing.",
    "Two lamps, one road, and nobody on it.",
    "for (i = 0; i < 9; i++) sum += i;",
    "Zwei Brüder gingen in den Wald hinein.",
    "3141592653 5897932384",
    "She said nothing, and then she said it again.",
]
RECORDED = [0, 1, 4]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    with tarfile.open(KEPT) as archive:
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        archive.extractall(tmp_path, **safe)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_is_opened_verified_and_decoded(kept: Path, capsys: pytest.CaptureFixture[str]):
    status = read_status(kept / "run")
    assert [row["index"] for row in status.recorded.values()] == RECORDED
    assert [(flight.index, flight.seed, flight.steps) for flight in status.in_flight] == [(2, 1, 8), (3, 1, 8)]
    verified = said(capsys, "verify", kept / "run")
    assert (verified["problems"], verified["recorded"], verified["decoded"], verified["states"]) == ([], 3, 3, 1)
    assert said(capsys, "decode", kept / "run") == json.loads((kept / "decoded.json").read_text())


def test_its_export_is_made_again(kept: Path, capsys: pytest.CaptureFixture[str]):
    said(capsys, "export", kept / "run", "--out", kept / "again.safetensors")
    before, again = load_file(kept / "vectors.safetensors"), load_file(kept / "again.safetensors")
    assert before.keys() == again.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(again[name], array)


def test_it_is_resumed(kept: Path):
    before = {text.index: text for text in read_results(kept / "run")}
    results = fit(load_model(), TEXTS, length=8, run=kept / "run", slots=2, chunk=4, steps=28, seeds=2)
    assert [text.index for text in results] == list(range(6))
    for index, text in before.items():
        assert (results[index].steps, results[index].seconds) == (text.steps, text.seconds)
        np.testing.assert_array_equal(results[index].vectors["e"], text.vectors["e"])
    # The seeds that were over are not fitted again, and the others go on from the steps they had: all of them count.
    for index in (2, 3, 5):
        assert [trial.seed for trial in results[index].trials] == [0, 1]
        assert results[index].trials[0].steps == 28
        assert results[index].steps == 56
        assert [row[0] for row in results[index].trials[1].trace] == [4, 8, 12, 16, 20, 24, 28]

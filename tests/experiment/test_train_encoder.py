"""The script that trains the encoder of the packaged model, with a recipe of seconds."""

import importlib.util
import sys
from pathlib import Path

import pytest

from onestep_jax import Design, Recipe, load_encoder, load_model

SCRIPT = Path(__file__).parents[2] / "experiments" / "packaged" / "train_encoder.py"


@pytest.mark.long
def test_train_encoder(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train_encoder", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (script.DESIGN.corrections, script.RECIPE.batch) == (8, 64)
    monkeypatch.setattr(script, "DESIGN", Design(length=4, corrections=1))
    monkeypatch.setattr(script, "RECIPE", Recipe(updates=2, batch=8, reading=0.5))
    (tmp_path / "book.txt").write_text("The old man went down to the sea again. " * 40)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "encoder")]
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--texts", str(tmp_path / "book.txt"), *places])
    assert script.main() == 0
    encoder = load_encoder(tmp_path / "encoder", load_model("default"))
    assert (encoder.design.length, encoder.trained["updates"], encoder.trained["data"]) == (4, 2, "book.txt")
    both = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("work", "encoder")]
    assert both[1] < 0.51 * both[0]  # bfloat16

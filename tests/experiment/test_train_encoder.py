"""The script that trains the encoder of the packaged model, with a recipe of seconds."""

import importlib.util
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from onestep_jax import Design, Recipe, load_encoder, load_model
from onestep_jax.experiment.cards import load_card

SCRIPT = Path(__file__).parents[2] / "experiments" / "packaged" / "train_encoder.py"


@pytest.mark.long
def test_train_encoder(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train_encoder", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (script.DESIGN.corrections, script.RECIPE.batch) == (8, 64)
    monkeypatch.setattr(script, "DESIGN", Design(length=4, corrections=1))
    monkeypatch.setattr(script, "RECIPE", Recipe(updates=2, batch=8, reading=0.5))
    monkeypatch.setattr(script, "SECOND", Recipe(updates=1, batch=8, growth=0.0, reading=0.0, first_order=True))
    (tmp_path / "book.txt").write_text("The old man went down to the sea again. " * 40)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "encoder")]
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--texts", str(tmp_path / "book.txt"), *places])
    assert script.main() == 0
    encoder = load_encoder(tmp_path / "encoder", load_model("default"))
    assert (encoder.design.length, encoder.design.corrections) == (4, 1 + script.MORE_CORRECTIONS)
    assert (encoder.trained["updates"], encoder.trained["data"]) == (1, "book.txt")
    assert encoder.trained["start"]["trained"]["updates"] == 2
    first = load_encoder(tmp_path / "work" / "first", load_model("default"))
    assert encoder.trained["start"]["fingerprint"] == first.fingerprint
    stored = [array.dtype for array in load_file(tmp_path / "encoder" / "model.safetensors").values()]
    assert set(map(str, stored)) == {"bfloat16"}
    evaluations = load_card("encoder").training_cost(encoder)
    assert evaluations == 2 * 8 * (1 + 0.5 * 1) + 1 * 8 * (1 + 5)

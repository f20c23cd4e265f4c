"""The script of docs/elsewhere.md, as it stands there, prints the texts of a run. Needs torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from onestep_jax import Cramming, ManyVectors, Model, OneStep, Projected, encode, fit, load_encoder, load_model
from onestep_jax.model.checkpoint import locate
from onestep_jax.prototokens.assembly import input_rows
from onestep_jax.prototokens.reconstruction import decode
from onestep_jax.store.export import write_vectors

pytest.importorskip("torch")
pytestmark = pytest.mark.parity

PAGE = Path(__file__).parents[2] / "docs" / "elsewhere.md"
WORDS = ["The tide went out at noon and left", "Ein Boot fuhr an das andere Ufer", "x = [1, 2]"]

SCHEMES = [OneStep(prefix="bos"), OneStep("unguided-e"), ManyVectors(2, 2), Projected(ManyVectors(2), 8, "own")]


def printed(folder: Path, model: str) -> str:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (folder / "script.py").write_text(script, encoding="utf-8")
    command = [sys.executable, "script.py", str(locate(model)), "inputs.safetensors"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=True).stdout


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_script_prints_the_texts_of_a_fit(tmp_path, two_layers: Model, scheme):
    results = fit(two_layers, WORDS, scheme=scheme, steps=400)
    assert results.accuracy.min() == 1
    write_vectors(results, tmp_path / "inputs.safetensors", inputs=input_rows(two_layers, results))
    assert printed(tmp_path, two_layers.source) == "".join(f"{text}\n" for text in WORDS)


def test_the_script_prints_what_is_predicted_after_the_text_itself(tmp_path, two_layers: Model):
    results = fit(two_layers, WORDS, scheme=Cramming(2), steps=40)
    write_vectors(results, tmp_path / "inputs.safetensors", inputs=input_rows(two_layers, results))
    printed_here = "".join(f"{text.text}\n" for text in decode(two_layers, results))
    assert printed(tmp_path, two_layers.source) == printed_here


def test_the_script_prints_what_an_encoder_gives(tmp_path):
    model = load_model("default", dtype="float32")
    results = encode(model, load_encoder("default", model), WORDS, length=8)
    write_vectors(results, tmp_path / "inputs.safetensors", inputs=input_rows(model, results))
    assert printed(tmp_path, model.source) == "".join(f"{text.text}\n" for text in decode(model, results))

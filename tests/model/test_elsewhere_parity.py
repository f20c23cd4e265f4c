"""The script of docs/elsewhere.md, as it stands there, prints the texts of a run. Needs torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
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


@pytest.fixture
def printed(tmp_path: Path, monkeypatch, capsys) -> Callable[[str], str]:
    """What the script prints for a model and the inputs in `tmp_path`; here, where PyTorch is already imported."""
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)

    def run(model: str) -> str:
        words = ["script.py", str(locate(model)), str(tmp_path / "inputs.safetensors")]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        exec(compile(script, str(PAGE), "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_script_prints_the_texts_of_a_fit(tmp_path, two_layers: Model, printed, scheme):
    results = fit(two_layers, WORDS, scheme=scheme, steps=400)
    assert results.accuracy.min() == 1
    write_vectors(results, tmp_path / "inputs.safetensors", inputs=input_rows(two_layers, results))
    assert printed(two_layers.source) == "".join(f"{text}\n" for text in WORDS)


def test_the_script_prints_what_is_predicted_after_the_text_itself(tmp_path, two_layers: Model, printed):
    results = fit(two_layers, WORDS, scheme=Cramming(2), steps=40)
    write_vectors(results, tmp_path / "inputs.safetensors", inputs=input_rows(two_layers, results))
    printed_here = "".join(f"{text.text}\n" for text in decode(two_layers, results))
    assert printed(two_layers.source) == printed_here


def test_the_script_prints_what_an_encoder_gives(tmp_path, printed):
    model = load_model("default", dtype="float32")
    results = encode(model, load_encoder("default", model), WORDS, length=8)
    write_vectors(results, tmp_path / "inputs.safetensors", inputs=input_rows(model, results))
    assert printed(model.source) == "".join(f"{text.text}\n" for text in decode(model, results))

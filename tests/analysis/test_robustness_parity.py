"""`verify --backend torch` counts what transformers' own model makes of the vectors of a run. Needs torch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onestep_jax import Cramming, OneStep, UserError, fit, load_model
from onestep_jax.analysis.robustness import Elsewhere, portability
from onestep_jax.cli.parser import main
from onestep_jax.prototokens.assembly import input_rows
from onestep_jax.store.reading import read_results

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SCHEMES = (OneStep(prefix=(5, 6)), OneStep("unguided-e"), Cramming(2))


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(tiny_folder, dtype="float32")


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.notation)
def test_pytorch_agrees(model, tiny_folder, token_lists, tmp_path, capsys, scheme):
    """Texts of several lengths, so that rows are padded; with a margin every solved one comes out."""
    texts = [ids[: 8 - i % 3] for i, ids in enumerate(token_lists[:5])]
    results = fit(model, texts, scheme=scheme, margin=0.5, steps=1500, run=tmp_path / "run")
    assert results.status.count("solved") >= 3
    capsys.readouterr()
    for words in (["--slots", "2"], ["--attention", "plain"], []):
        assert main(["verify", str(tmp_path / "run"), "--backend", "torch", *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["problems"] == []
        told = found["portability"]
        assert (told["way"]["backend"], told["way"]["dtype"], told["texts"]) == ("torch", "float32", 5)
        assert (told["exact"], told["lost"]) == (results.solved, [])
        assert told["tokens_exact"] == sum(text.c_tokens for text in results)


def test_the_logits_are_those_of_the_rows(model, tiny_folder, token_lists, tmp_path):
    """By the letter of docs/elsewhere.md, in bfloat16: a text at a time, without padding."""
    from transformers import AutoModelForCausalLM

    fit(model, token_lists[:3], scheme=OneStep(), steps=60, run=tmp_path / "run")
    results = read_results(tmp_path / "run")
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    right = 0
    for row, text in zip(input_rows(model, results), results, strict=True):
        given = torch.from_numpy(row.vectors_PD[None]).to(torch.bfloat16)
        ids = theirs(inputs_embeds=given).logits[0, row.first :].argmax(-1).numpy()
        right += int(np.sum(ids == text.tokens))
    found = portability(model, results, Elsewhere("bfloat16", 1, "own", "torch"))
    assert found.tokens_exact == right


def test_what_pytorch_does_not_load(model, token_lists, tmp_path):
    results = fit(model, token_lists[:1], scheme=OneStep(), steps=5)
    way = Elsewhere("float32", attention="own", backend="torch")
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"weights\.gguf: a GGUF file, which PyTorch does not load"):
        portability(model, results, way, source=tmp_path / "weights.gguf")
    with pytest.raises(UserError, match="a model of untrained weights, which PyTorch does not load"):
        portability(model, results, way, source="untrained:init:0:default")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "odd"}')
    (tmp_path / "odd" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"odd: transformers does not load it in PyTorch \("):
        portability(model, results, way, source=tmp_path / "odd")

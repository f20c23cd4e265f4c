"""What a name stands for on the command line: untrained weights as a --model, and the demo texts without a --limit."""

import json

import pytest

from onestep_jax import UserError
from onestep_jax.bench import models
from onestep_jax.cli import fit
from onestep_jax.cli.parser import main
from onestep_jax.model.untrained import load_untrained


def test_info_of_untrained_weights(tiny_folder, capsys):
    source = f"untrained:permuted@mlp:0:{tiny_folder}"
    assert main(["info", source, "--length", "4", "--weights", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["context"]) == (source, 64)
    assert found["fingerprint"] == load_untrained(source).fingerprint


def test_benchmarks_take_untrained_weights(tiny_folder):
    source = f"untrained:permuted:0:{tiny_folder}"
    assert models.subject(source).fingerprint == load_untrained(source).fingerprint
    assert models.architecture(source).layers == 2
    with pytest.raises(UserError, match="untrained weights, which PyTorch does not load; leave PyTorch out"):
        models.torch_subject(source, "float32", "cpu")


@pytest.mark.parametrize(("more", "count"), [([], 8), (["--limit", "3"], 3)])
def test_the_demo_texts_have_an_end(monkeypatch, more, count):
    rows = []
    monkeypatch.setattr(fit, "scheme_of", lambda args, rows_: rows.append(rows_))
    monkeypatch.setattr(fit, "_settle", lambda *_: (_ for _ in ()).throw(UserError("that will do")))
    assert main(["fit", "--texts", "demo", "--length", "16", "--run", "run", *more]) == 2
    assert rows == [count]


@pytest.mark.parametrize("source", ["random", "gen", "gen:demo"])
def test_other_named_sources_have_none(tmp_path, capsys, source):
    assert main(["fit", "--texts", source, "--length", "16", "--run", str(tmp_path / "run")]) == 2
    assert f"--texts {source} has no end: say how many texts with --limit" in capsys.readouterr().err

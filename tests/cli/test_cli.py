"""The commands as a user meets them: bad input gives one clear line and exit status 2, and changes no file."""

import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onestep_jax import load_model, read_results
from onestep_jax.cli.parser import main
from onestep_jax.store import storage as files
from onestep_jax.store.reading import read_config
from onestep_jax.store.run import open_run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder that holds the finished run."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def lines_file(home):
    rng = np.random.default_rng(7)
    path = home / "lines.txt"
    path.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rng.integers(60, size=(4, 8))) + "\n")
    return path


@pytest.fixture(scope="module")
def fitted(tiny_folder, lines_file, home):
    """The options that made a finished run of four texts; no test may change the run."""
    options = ["fit", "--model", tiny_folder, "--texts", lines_file, "--split", "lines"]
    options = [*map(str, options), "--length", "6", "--run", str(home / "run"), "--slots", "2", "--remat", "on"]
    assert main(options) == 0
    before = contents(home / "run")
    yield options
    assert contents(home / "run") == before


def replaced(options, **changes):
    options = list(options)
    for name, value in changes.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in options:
            options[options.index(flag) + 1] = str(value)
        else:
            options += [flag, str(value)]
    return options


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def refused(options, capsys):
    """The one line that a refusal prints."""
    assert main(options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("onestep: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": "missing.txt"}, "missing.txt: no such file"),
        ({"length": 65}, "length 65 is beyond the model's context of 64"),
        ({"length": 0}, "argument --length: 0: expected at least 1"),
        ({"length": "many"}, "argument --length: 'many': expected a whole number"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv' (did you mean 'adam"),
        ({"memory_sise": 9}, "unknown option '--memory-sise' (did you mean '--memory-size'?)"),
        ({"lenght": 4}, "unknown option '--lenght' (did you mean '--length'?)"),
        ({"preset": "fats"}, "unknown preset 'fats' (did you mean 'fast'?)"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine' (did you mean 'cosine_decay'?)"),
        ({"schedule": "cosine_decay:steps=3"}, "unknown argument of schedule cosine_decay 'steps'"),
        ({"dtype": "bfloat"}, "unknown dtype 'bfloat' (did you mean 'bfloat16'?)"),
        ({"remat": "of"}, "unknown way of --remat 'of' (did you mean 'off'"),
        ({"slots": "few"}, "argument --slots: 'few': expected a whole number from 1 to 1,000,000, or 'auto'"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"steps": 77, "lr": 0.5}, "steps: 5000 there, 77 here"),
        ({"model": "nowhere/at/all"}, "no such folder"),
    ],
)
def test_bad_options(fitted, home, capsys, changes, message):
    before = contents(home / "run")
    assert message in refused(replaced(fitted, **changes), capsys)
    assert contents(home / "run") == before


def test_bad_texts(fitted, home, tmp_path, capsys):
    before = contents(home / "run")
    for content, message in ((b"", "empty text"), (b"w1 \xff", "not UTF-8")):
        (tmp_path / "bad.txt").write_bytes(content)
        assert message in refused(replaced(fitted, texts=tmp_path / "bad.txt"), capsys)
    assert contents(home / "run") == before


def test_bad_checkpoints(fitted, home, tiny_folder, tmp_path, capsys):
    before = contents(home / "run")

    def broken(change):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_folder, folder)
        change(folder)
        return refused(replaced(fitted, model=folder), capsys)

    def weights(change):
        def apply(folder):
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors")

        return apply

    def config(**keys):
        def apply(folder):
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | keys))

        return apply

    def truncate(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def pickle(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    name = "model.norm.weight"
    assert name in broken(weights(lambda tensors: tensors.pop(name)))
    assert "model.nrom.weight" in broken(weights(lambda tensors: tensors.update({"model.nrom.weight": tensors[name]})))
    assert "shape" in broken(weights(lambda tensors: tensors.update({name: np.ones(7, np.float32)})))
    assert "NaN" in broken(weights(lambda tensors: tensors.update({name: np.full(32, np.nan, np.float32)})))
    assert "model.safetensors" in broken(truncate)
    assert ".bin" in broken(pickle)
    assert "unsupported architecture 'lama'" in broken(config(model_type="lama"))
    assert "RoPE type 'spiral'" in broken(config(rope_scaling={"rope_type": "spiral", "factor": 2.0}))
    assert contents(home / "run") == before


def test_full_disk(fitted, home, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(home / "run")
    monkeypatch.setattr(files.os, "fsync", full)
    assert "the disk is full" in refused(replaced(fitted, run=tmp_path / "other"), capsys)
    assert contents(home / "run") == before


def test_short_texts_are_kept_whole_with_one_warning(tiny_folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("w1 w2 w3\nw4\nw5 w6 w7 w8\n")
    options = ["--texts", tmp_path / "a.txt", "--split", "lines", "--length", 4, "--run", tmp_path / "run"]
    assert main(["fit", "--model", str(tiny_folder), *map(str, options)]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["onestep: warning: 2 of 3 texts have fewer than 4 tokens; kept whole"]
    assert [len(text.tokens) for text in read_results(tmp_path / "run")] == [3, 1, 4]


def test_optimizer_options_reach_optax(tiny_folder, lines_file, tmp_path, capsys):
    options = ["fit", "--model", tiny_folder, "--texts", lines_file, "--split", "lines", "--limit", 2, "--length", 4]
    options += ["--run", tmp_path / "run", *"--optimizer nadamw --lr 0.02 --b2 0.95 --weight-decay=0.1".split()]
    options += ["--schedule", "cosine_decay:decay_steps=300,alpha=0.1", "--json"]
    assert main([str(option) for option in options]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 2
    identity = json.loads((tmp_path / "run" / "config.json").read_text())["identity"]
    assert identity["optimizer"] == {
        "name": "nadamw",
        "arguments": {"b2": 0.95, "weight_decay": 0.1, "learning_rate": 0.02},
        "schedule": {"name": "cosine_decay", "arguments": {"decay_steps": 300, "alpha": 0.1}},
    }


def test_decode_shows_what_is_wrong_where(fitted, home, lines_file, tmp_path, capsys):
    assert main(["decode", str(home / "run")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "4 of 4 texts exact"
    assert " ".join(lines_file.read_text().split()[:6]) in out
    assert main(replaced(fitted, run=tmp_path / "poor", steps=2)) == 0
    capsys.readouterr()
    assert main(["decode", str(tmp_path / "poor"), "--json"]) == 0
    for text in json.loads(capsys.readouterr().out)["texts"]:
        assert text["wrong"]
        for wrong in text["wrong"]:
            assert text["tokens"][wrong["position"]] == wrong["got"] != wrong["expected"]
    assert main(["decode", str(tmp_path / "poor")]) == 0
    assert "position 0: expected 'w" in capsys.readouterr().out


def test_export(fitted, home, tmp_path, capsys):
    out = tmp_path / "vectors.safetensors"
    assert main(["export", str(home / "run"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"4 texts written to {out}\n"
    tensors, results = load_file(out), read_results(home / "run")
    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == {
        "e": ("float32", (4, 32)),
        "m": ("float32", (4, 32)),
        "tokens": ("int32", (4, 6)),
        "lengths": ("int32", (4,)),
        "accuracy": ("float32", (4,)),
        "steps": ("int32", (4,)),
    }
    np.testing.assert_array_equal(tensors["e"], results.vectors["e"])
    assert "no run directory" in refused(["export", str(tmp_path), "--out", str(out)], capsys)


def test_verify(fitted, home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    before = contents(run)
    assert main(["verify", str(run)]) == 0
    assert "problems │ 0" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["texts"], found["recorded"], found["decoded"], found["problems"]) == (4, 4, 4, [])
    assert contents(run) == before

    results = read_results(run)
    for path in (run / "embeddings").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
    assert main(["verify", str(run), "--no-decode"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (problem,) = [line for line in lines if line.startswith("part 000001-0000-00000")]
    assert sum(text.text_id in problem for text in results) == 3
    assert "and 1 more" in problem
    assert "onestep verify --drop" in lines[-1]
    assert "onestep verify DIR --drop" in refused(["decode", str(run)], capsys)

    assert main(["verify", str(run), "--no-decode", "--drop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 0
    assert main(replaced(fitted, run=run)) == 0
    assert main(["verify", str(run)]) == 0
    for again, before in zip(read_results(run), results, strict=True):
        assert (again.text_id, again.accuracy) == (before.text_id, before.accuracy)


def test_verify_names_foreign_files_and_ends_well(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    (run / "results" / "000001-0000-000000 (copy).parquet").write_bytes(b"")
    assert main(["verify", str(run), "--no-decode"]) == 0
    said = capsys.readouterr().out
    assert "foreign files │ 1, left where they are" in " ".join(said.split())
    assert "results/000001-0000-000000 (copy).parquet: no file of a run" in said
    assert main(["verify", str(run), "--no-decode", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["foreign"] == ["results/000001-0000-000000 (copy).parquet"]


def test_verify_decodes_what_the_checksums_cannot_know(fitted, home, tmp_path, capsys):
    config, results = read_config(home / "run"), read_results(home / "run")
    wrong = dataclasses.replace(results[2], vectors=results[3].vectors)
    texts = [(text.text_id, text.tokens) for text in results]
    with open_run(tmp_path / "run", config["identity"], config["settings"], texts) as run:
        run.append([results[0], results[1], wrong])
    assert main(["verify", str(tmp_path / "run"), "--no-decode"]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "run"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [problem["text_id"] for problem in found["problems"]] == [wrong.text_id]
    assert "decode to" in found["problems"][0]["what"]
    assert (found["texts"], found["recorded"]) == (4, 3)
    assert main(["verify", str(tmp_path / "run"), "--drop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 2
    assert main(replaced(fitted, run=tmp_path / "run")) == 0
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert [text.accuracy for text in read_results(tmp_path / "run")] == [text.accuracy for text in results]


def test_status(home, tmp_path, capsys):
    before = contents(home / "run")
    assert main(["status", str(home / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 of 4 recorded: 4 solved, 0 exhausted, 0 failed" in said
    assert "not going on" in said
    assert "nothing to do" in said
    assert contents(home / "run") == before

    config, results = read_config(home / "run"), read_results(home / "run")
    texts = [(text.text_id, text.tokens) for text in results]
    failed = dataclasses.replace(results[1], status="failed", accuracy=0.5, c_tokens=3)
    with open_run(tmp_path / "run", config["identity"], config["settings"], texts) as run:
        run.append([results[0], failed])
        record = {"tasks": [{"texts": [3], "seed": 0, "trace": [[10, 2.0, 0.5], [20, 1.0, 0.5]]}]}
        run.save_state({"a": np.zeros(3)}, record)
        run.wait()
        assert main(["status", str(tmp_path / "run"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["going"]["pid"] == os.getpid()
        assert main(["status", str(tmp_path / "run")]) == 0
        said = " ".join(capsys.readouterr().out.split())
    assert (found["texts"], found["recorded"], found["solved"], found["failed"], found["left"]) == (4, 2, 1, 1, 2)
    assert found["in_flight"] == [{"index": 3, "text_id": results[3].text_id, "seed": 0, "steps": 20}]
    assert found["outlook"] == "2 texts to do, 1 of them from where they were saved"
    assert f"failed: [1] {failed.text_id} after {failed.steps} steps" in said
    assert "saved at 20 to 20 steps" in said
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["going"] is None
    assert "no run directory" in refused(["status", str(tmp_path)], capsys)


def test_info(tiny_folder, capsys):
    options = [str(tiny_folder), "--slots", "3", "--length", "8", "--dtype", "bfloat16"]
    assert main(["info", *options, "--weights", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    weights = sum(tensor.size for tensor in load_file(tiny_folder / "model.safetensors").values())
    assert facts["parameters"] == {"total": weights, "touched": weights - 61 * 32}
    assert facts["bytes"] == {"float32": 4 * weights, "bfloat16": 2 * weights}
    assert (facts["context"], facts["input_width"], facts["architecture"]["family"]) == (64, 32, "llama")
    assert (facts["fit"]["slots"], facts["fit"]["length"], facts["fit"]["dtype"]) == (3, 8, "bfloat16")
    memory = facts["fit_memory_bytes"]
    assert memory["weights"] == 2 * weights
    assert memory["total"] == memory["weights"] + memory["state"] + memory["working"]
    assert facts["flops_per_text_step"] > 8 * 4 * (weights - 61 * 32 - 5 * 32)
    assert facts["fingerprint"] == load_model(tiny_folder).fingerprint
    assert main(["info", str(tiny_folder)]) == 0
    said = capsys.readouterr().out
    assert f"{weights:,}; touched by a step {weights - 61 * 32:,}" in said
    assert "fingerprint" not in said


def test_info_needs_no_weights(tiny_folder, tmp_path, capsys):
    shutil.copy(tiny_folder / "config.json", tmp_path)
    assert main(["info", str(tmp_path), "--json"]) == 0
    capsys.readouterr()
    assert "no model.safetensors" in refused(["info", str(tmp_path), "--weights"], capsys)
    assert "beyond the model's context of 64" in refused(["info", str(tmp_path), "--length", "65"], capsys)
    assert "did you mean 'bfloat16'" in refused(["info", str(tmp_path), "--dtype", "bfloat61"], capsys)


def test_misspelt_arguments_elsewhere(capsys):
    assert "unknown argument '--jason' (did you mean '--json'?)" in refused(["info", "--jason"], capsys)
    assert "invalid choice: 'fitt'" in refused(["fitt"], capsys)
    assert "--run" in refused(["fit", "--texts", "a.txt", "--length", "4"], capsys)
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.long
def test_the_demo_takes_any_model(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("onestep_jax.cli.demo.LENGTH", 2)
    assert main(["demo", "--model", str(tiny_folder), "--run", str(tmp_path / "run"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["texts"]) == 8
    assert read_config(tmp_path / "run")["settings"]["model"] == str(tiny_folder)

"""`onestep encoder`, `onestep encode` and `fit --start` as a user meets them."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from encoders import word_texts
from safetensors.numpy import load_file

from onestep_jax import load_encoder, load_model, read_results
from onestep_jax.cli.parser import main
from onestep_jax.encoder import train
from onestep_jax.errors import UserError
from onestep_jax.texts import corpora

SMALL = "--length 4 --corrections 1 --step diagonal --temperature 0.5 --batch 8 --prefix none --seed 3".split()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text("\n".join(word_texts(6)) + "\n")
    return path


def train_words(model, texts, out, *more):
    words = ["encoder", "train", "--model", model, "--texts", texts, "--split", "lines", "--out", out, *SMALL]
    return [str(word) for word in (*words, "--updates", 3, *more)]


@pytest.fixture(scope="module")
def trained(tiny_folder, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "encoder"
    assert main(train_words(tiny_folder, texts, out)) == 0
    return out


def test_train_prints_the_figures_and_goes_on_from_the_folder(tiny_folder, texts, trained, capsys):
    encoder = load_encoder(trained, load_model(tiny_folder))
    assert (encoder.design.corrections, encoder.design.step, encoder.trained["recipe"]["seed"]) == (1, "diagonal", 3)
    assert encoder.design.temperature == 0.5
    assert encoder.trained["data"] == "words.txt"
    before = (trained / "model.safetensors").read_bytes()
    assert main(train_words(tiny_folder, texts, trained)) == 0
    said = capsys.readouterr()
    assert f"{encoder.parameters:,} weights, 3 updates" in said.err + said.out
    assert main(train_words(tiny_folder, texts, trained, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"] == encoder.trained["figures"]
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_prefix_comes_from_a_file_as_of_fit(tiny_folder, texts, tmp_path, monkeypatch):
    (tmp_path / "before.txt").write_text("w1 w2")
    given = []
    monkeypatch.setattr(train, "train_encoder", lambda *_, prefix, **__: given.append(prefix) or sys.exit(0))
    words = train_words(tiny_folder, texts, tmp_path / "out")
    for prefix in (f"@{tmp_path / 'before.txt'}", "w3", "none"):
        main([*words, "--prefix", prefix])
    assert given == ["w1 w2", "w3", "none"]


@pytest.mark.long
def test_a_fit_is_of_the_arrangement_of_its_start(tiny_folder, texts, trained, tmp_path, capsys):
    """The encoder is one of [e] [m]×(N−1), which is not the arrangement of the preset."""
    words = f"fit --model {tiny_folder} --texts {texts} --split lines --length 4 --limit 2 --steps 2 --seeds 1".split()
    words += ["--start", f"encoder:{trained}"]
    assert main([*words, "--run", str(tmp_path / "run")]) == 0
    assert read_results(tmp_path / "run").scheme["arrangement"] == "one-step"
    assert main([*words, "--prefix", "w1", "--run", str(tmp_path / "behind")]) == 0
    assert read_results(tmp_path / "behind").scheme["prefix"] == [2]
    capsys.readouterr()
    assert main([*words, "--arrangement", "unguided-e", "--run", str(tmp_path / "other")]) == 2
    assert "the start vectors are for [e] [m]×(N−1), and the fit is of [e] [m]×N" in capsys.readouterr().err


def test_the_demo_encodes_then_fits(tiny_folder, trained, tmp_path, capsys):
    words = f"demo --model {tiny_folder} --encode {trained} --run {tmp_path / 'run'}".split()
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["texts"]
    results = read_results(tmp_path / "run")
    assert results.scheme["arrangement"] == "one-step"
    for row, text in zip(rows, results, strict=True):
        assert (row["text_id"], row["corrections"], row["steps"]) == (text.text_id, 1, text.steps)
        assert row["accuracy"][-1] == text.accuracy
    assert main(words) == 0
    assert "% after 1" in capsys.readouterr().out


def test_eval_prints_a_row_for_each_length_and_number_of_corrections(tiny_folder, texts, trained, capsys):
    words = f"encoder eval {trained} --model {tiny_folder} --texts {texts} --split lines --lengths 2,4 --count 3"
    assert main([*words.split(), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["length"], row["corrections"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert main(words.split()) == 0
    assert "nats per token" in capsys.readouterr().out


def test_encode_records_a_run_and_a_second_one_finds_it_done(tiny_folder, texts, trained, tmp_path, capsys):
    words = f"encode --model {tiny_folder} --encoder {trained} --texts {texts} --split lines --length 4"
    words = [*words.split(), "--run", str(tmp_path / "run"), "--limit", "3", "--json"]
    for _ in range(2):
        assert main(words) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["texts"], told["steps"]) == (3, 1.0)
    assert [text.status for text in read_results(tmp_path / "run")] == ["refined"] * 3
    assert main(words[:-1]) == 0
    said = capsys.readouterr()
    assert "3 texts: " in said.out + said.err


@pytest.mark.parametrize("command", ["fit", "encode"])
def test_lines_of_the_file_of_a_named_source(tiny_folder, texts, trained, tmp_path, monkeypatch, command):
    asked = {}

    def load_tokens(model, source, **how):
        asked.update(how, source=source)
        raise UserError("that will do")

    monkeypatch.setattr(corpora, "load_tokens", load_tokens)
    words = (
        f"{command} --model {tiny_folder} --texts gen:{texts} --split lines --limit 2 --length 4 --run {tmp_path}/run"
    )
    assert main([*words.split(), *(["--encoder", str(trained)] if command == "encode" else [])]) == 2
    assert (asked["source"], asked["split"], asked["count"]) == (f"gen:{texts}", "lines", 2)


@pytest.mark.parametrize("words", ["encode", "encoder", "encoder train", "encoder eval", "fit"])
def test_help(words, capsys):
    assert main([*words.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"onestep {words}" in said
    expected = {"encode": "--refine", "encoder": "train", "encoder train": "--hours", "encoder eval": "--lengths"}
    assert expected.get(words, "--start") in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("encoder train {train} --hours 1 --updates 2", "--hours and --updates: give one of them"),
        ("encoder train {train} --reader copi", "unknown reader 'copi' (did you mean 'copy'?)"),
        ("encoder train {train} --length 63", "length 63 needs 65 positions, beyond the model's context of 64"),
        ("encoder train {train} --length 0", "argument --length: 0: expected at least 1"),
        ("encoder train {train} --hours nan", "argument --hours: 'nan': expected a finite number, above 0"),
        (
            "encoder train {train} --growth 2",
            "argument --growth: '2': expected a finite number, at least 0 and at most 1",
        ),
        ("encoder train {train} --corrections 65", "argument --corrections: 65: expected at most 64"),
        ("encoder train {train} --step x", "unknown step 'x'"),
        ("encoder train {train} --lenght 4", "--lenght"),
        ("encoder train --texts none.txt --out out", "none.txt: no such file"),
        ("encoder train {train} --validation none.txt", "none.txt: no such file"),
        ("encoder train --model {model} --texts {texts} --out gs://bucket/x", "expected a local folder"),
        ("encoder train --model {model} --texts {texts}", "--out"),
        ("encoder train {train} --prefix @none.txt", "--prefix @none.txt: cannot be read"),
        ("encoder", "WHAT"),
        ("encoder tarin", "tarin"),
        ("encoder eval {encoder} --model {model} --texts {texts} --limit 3", "--limit"),
        ("encoder eval none --model {model} --texts {texts}", "encoder 'none': none/config.json cannot be read"),
        ("encode {encode} --encoder none", "encoder 'none': none/config.json cannot be read"),
        ("encode {encode} --refine 2", "refine = 2: this encoder has 1 corrections; give 0 to 1"),
        ("encode {encode} --refine 65", "argument --refine: 65: expected at most 64"),
        ("encode {encode} --length 65", "length 65 is beyond the model's context of 64"),
        ("encode {encode} --texts random", "has no end: say how many texts with --limit"),
        ("encode --model {model} --texts {texts} --run run", "--length"),
        ("fit {fit} --start foo", "--start foo: expected encoder:DIR, run:DIR or FILE.safetensors"),
        ("fit {fit} --start none.safetensors", "none.safetensors: cannot be read"),
        ("fit {fit} --start run:none", "none"),
        ("fit {fit} --start encoder:none", "encoder 'none': none/config.json cannot be read"),
        ("fit {fit} --start-missing drawn", "unknown value of start_missing 'drawn' (did you mean 'draw'?)"),
    ],
)
def test_bad_input_is_one_line(tiny_folder, texts, trained, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = f"--model {tiny_folder} --texts {texts} --split lines"
    parts = {"train": f"{common} --out out", "encode": f"{common} --encoder {trained} --length 4 --run run"}
    parts |= {"fit": f"{common} --length 4 --run run", "model": tiny_folder, "texts": texts}
    parts |= {"encoder": trained}
    assert main(words.format(**parts).split()) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onestep: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_of_another_model(tiny_folder, texts, trained, tmp_path, capsys):
    """The packaged model's; a run of vectors of another model is refused as a start too."""
    words = f"encode --model default --encoder {trained} --texts {texts} --length 4 --run {tmp_path}/run"
    assert main(words.split()) == 2
    assert "belongs to model" in capsys.readouterr().err
    assert main(f"encoder eval --model {tiny_folder} --texts {texts}".split()) == 2
    assert "encoder 'default'" in capsys.readouterr().err


# --- killed ---


def started(words):
    return subprocess.Popen([sys.executable, "-m", "onestep_jax.cli", *words], stderr=subprocess.PIPE)


LONGER = ("--updates", 40, "--save-every", 0)


def newest_state(folder):
    return max((path.stem for path in folder.glob("training/0*.json")), default="")


@pytest.mark.long
def test_killed_at_any_moment_it_ends_with_the_same_weights(tiny_folder, texts, tmp_path):
    """Saved after each update, so that most kills fall within a save."""
    rng = random.Random(4)
    assert main([*train_words(tiny_folder, texts, tmp_path / "whole")[:-2], *map(str, LONGER)]) == 0
    words = [*train_words(tiny_folder, texts, tmp_path / "killed")[:-2], *map(str, LONGER)]
    for _ in range(2):
        before, process = newest_state(tmp_path / "killed"), started(words)
        while process.poll() is None and newest_state(tmp_path / "killed") <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
    assert "" < newest_state(tmp_path / "killed") < "0000040"
    assert main(words) == 0
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert set(weights) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.long
def test_stopped_by_sigterm_it_ends_with_status_75(tiny_folder, texts, tmp_path):
    words = [*train_words(tiny_folder, texts, tmp_path / "stopped")[:-2], "--updates", "9999", "--save-every", "0"]
    process = started(words)
    while process.poll() is None and not newest_state(tmp_path / "stopped"):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert b"of 9999 updates; everything is saved in" in errors

"""`onestep fit --margin`, and `onestep verify` in another dtype, batch or attention, and under noise."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from onestep_jax import read_results
from onestep_jax.cli.parser import main
from onestep_jax.prototokens import reconstruction


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "a.txt").write_text("w1 w2 w3 w4\nw9 w8 w7 w6\n")
    words = f"fit --model {tiny_folder} --texts {home}/a.txt --split lines --length 4 --run {home}/run --margin 0.5"
    assert main([*words.split(), "--json"]) == 0
    return home / "run"


def verified(run, capsys, *words, status=0):
    capsys.readouterr()
    assert main(["verify", str(run), *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_fit_says_what_has_the_margin(run, tiny_folder, capsys):
    words = ["fit", "--model", str(tiny_folder), "--texts", str(run.parent / "a.txt"), "--split", "lines"]
    assert main([*words, "--length", "4", "--run", str(run), "--margin", "0.5"]) == 0
    assert "2 texts: 2 solved with a margin of 0.5, 2 exact, mean accuracy 1.0000" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["identity"]["margin"] == 0.5
    assert read_results(run).margin.min() >= 0.5


def test_as_before_without_options(run, capsys):
    found = verified(run, capsys)
    assert (found["decoded"], found["portability"], found["noise"]) == (2, None, None)
    assert verified(run, capsys, "--dtype", "float32")["portability"] is None


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["--dtype", "bfloat16"], ("bfloat16", 16, "plain", "jax")),
        (["--slots", "1"], ("float32", 1, "plain", "jax")),
        (["--attention", "plain"], ("float32", 16, "plain", "jax")),
    ],
)
def test_elsewhere_is_counted_and_is_no_problem(run, capsys, words, way):
    found = verified(run, capsys, *words)
    assert tuple(found["portability"]["way"].values()) == way
    assert found["decoded"] == 0
    assert found["portability"]["texts"] == 2
    assert found["portability"]["exact"] + len(found["portability"]["lost"]) == 2
    assert main(["verify", str(run), *words]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"exact in JAX, {way[0]}" in text


def test_another_dtype_is_no_damage(run, capsys, monkeypatch):
    from onestep_jax.analysis import robustness

    monkeypatch.setattr(robustness, "_in_jax", lambda model, results, *_: [text.tokens + 1 for text in results])
    found = verified(run, capsys, "--dtype", "bfloat16", "--drop")
    assert found["problems"] == []
    assert (found["portability"]["exact"], found["portability"]["tokens_exact"]) == (0, 0)
    assert not (run / "damaged").exists()


@pytest.mark.parametrize("key", ["device", "matmul precision"])
def test_a_fit_on_another_device_is_no_damage(run, tmp_path, capsys, monkeypatch, key):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["settings"][key] = "another"
    path.write_text(json.dumps(config))
    monkeypatch.setattr(reconstruction, "decode", lambda model, results, **_: [without_first(text) for text in results])
    found = verified(tmp_path / "run", capsys, "--drop")
    assert (found["problems"], found["kept"], len(found["otherwise"])) == ([], None, 2)
    assert not (tmp_path / "run" / "damaged").exists()
    assert main(["verify", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "2 of them come out otherwise, which is no damage" in " ".join(told.split())
    assert "--drop" not in told
    del config["settings"][key]  # of a run that does not say it
    path.write_text(json.dumps(config))
    assert len(verified(tmp_path / "run", capsys, status=1)["problems"]) == 2


def without_first(text):
    return SimpleNamespace(tokens=text.predicted + (np.arange(len(text.predicted)) == 0))


def test_noise(run, capsys):
    found = verified(run, capsys, "--noise")
    assert found["decoded"] == 2
    results = read_results(run)
    assert [row["text_id"] for row in found["noise"]] == [text.text_id for text in results]
    np.testing.assert_array_equal([row["margin"] for row in found["noise"]], results.margin)
    assert all(0 < row["noise_radius"] <= 1 for row in found["noise"])
    assert main(["verify", str(run), "--noise"]) == 0
    assert "over 2 exact texts" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--no-decode", "--noise"], "--no-decode: it goes without --noise, which decode the vectors"),
        (["--no-decode", "--slots", "2"], "--no-decode: it goes without --slots"),
        (["--backend", "tourch"], "unknown backend 'tourch' (did you mean 'torch'?)"),
        (["--slots", "0"], "expected at least 1"),
        (["--attention", "cudnn"], "it runs on a gpu, and this is a cpu"),
    ],
)
def test_options_that_do_not_go(run, capsys, words, told):
    try:
        status = main(["verify", str(run), *words])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert told in capsys.readouterr().err


def test_a_damaged_run_is_not_decoded_elsewhere(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (table,) = (tmp_path / "run" / "traces").glob("*.parquet")
    table.write_bytes(table.read_bytes()[:-9])
    found = verified(tmp_path / "run", capsys, "--slots", "1", status=1)
    assert found["problems"]
    assert found["portability"] is None

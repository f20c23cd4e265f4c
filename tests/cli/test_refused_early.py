"""Wrong input of `fit` and `verify` is refused before the weights of a model are read; its config.json is enough."""

import sys

import pytest
from store_runs import IDENTITY, opened, results

from onestep_jax.cli.parser import main
from onestep_jax.model import untrained
from onestep_jax.store.locks import locked


@pytest.fixture(autouse=True)
def weights_left_alone(monkeypatch):
    monkeypatch.setattr(untrained, "load_model", lambda *_, **__: pytest.fail("the weights were read"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The present folder: a text, a folder of something else, a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("w1 w2 w3 w4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    return tmp_path


def refused(words, capsys):
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onestep: error: ")]
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--length", "65"], "length 65 is beyond the model's context of 64 positions"),
        (["--length", "64"], "beyond the model's context of 64 positions less 1"),
        (["--run", "full"], "full: not empty and no run directory"),
        (["--run", "a.txt"], "a.txt: no run directory"),
        (["--run", "a.txt/run"], "a.txt/run: cannot write ([Errno 20] Not a directory"),
        (["--start", "foo"], "--start foo: expected encoder:DIR, run:DIR or FILE.safetensors"),
        (["--start", "run:typo"], "typo: no run directory"),
        (["--start", "none.safetensors"], "none.safetensors: cannot be read"),
        (["--start", "encoder:none"], "encoder 'none': none/config.json cannot be read"),
        (["--start-missing", "x"], "unknown value of start_missing 'x'"),
        (["--anchor", "model"], "--anchor model: expected TEACHER:LAMBDA"),
        (["--relational", "model:x"], "expected a finite number"),
        (["--attention", "x"], "unknown attention 'x'"),
        (["--attention", "cudnn"], "it runs on a gpu, and this is a cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_fit(home, tiny_folder, capsys, words, said):
    common = ["fit", "--model", str(tiny_folder), "--texts", "a.txt", "--length", "4", "--run", "run"]
    if words[0] == "--relational":
        words = [*words, "--group", "1"]
    assert said in refused([*common, *words], capsys)
    assert sorted(path.name for path in home.iterdir()) == ["a.txt", "full"]


def test_a_fit_on_a_run_that_another_holds(home, tiny_folder, capsys):
    (home / "run").mkdir()
    with locked(home / "run"):
        words = ["fit", "--model", str(tiny_folder), "--texts", "a.txt", "--length", "4", "--run", "run"]
        assert "another process works on this run (process" in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attention", "x"], "unknown attention 'x'"),
        (["--attention", "cudnn"], "it runs on a gpu, and this is a cpu"),
        (["--backend", "torch", "--attention", "cudnn"], "unknown attention of PyTorch 'cudnn'"),
        (["--backend", "torch"], "the PyTorch reference needs torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_verify(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setitem(sys.modules, "torch", None)
    texts = results(1)
    with opened(tmp_path / "run", texts, IDENTITY | {"dtype": "float32"}) as run:
        run.append(texts)
    assert said in refused(["verify", str(tmp_path / "run"), *words], capsys)

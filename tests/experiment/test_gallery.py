"""The gallery of solved texts in the repository: commands read it as git keeps it, and its page is that of its rows."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from onestep_jax import OneStep, fit, read_results
from onestep_jax.cli.parser import main
from onestep_jax.store.reading import read_config
from onestep_jax.store.verify import verify

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "experiments" / "results" / "gallery" / "smollm2-135m"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "experiments" / "packaged" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gallery", module)
    spec.loader.exec_module(module)
    return module


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checkout(tmp_path):
    """The gallery as git gives it to somebody who may not write there: files alone, no empty folder."""
    copy = tmp_path / "gallery"
    shutil.copytree(GALLERY, copy)
    places = [copy, *copy.rglob("*")]
    for place in places:
        assert place.is_file() or any(place.iterdir()), place
        place.chmod(0o444 if place.is_file() else 0o555)
    yield copy
    for place in places:
        place.chmod(0o755)


def test_commands_read_it_and_change_nothing(checkout, capsys):
    before = files(checkout)
    assert main(["verify", str(checkout), "--no-decode", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert main(["status", str(checkout), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert verified["problems"] == []
    assert verified["foreign"] == []
    assert verified["texts"] == verified["recorded"] == status["solved"] >= 8
    assert (status["outlook"], status["session"], status["going"]) == ("nothing to do", None, None)
    assert main(["status", str(checkout)]) == 0
    assert files(checkout) == before


def test_it_is_small_and_names_no_machine():
    kept = files(GALLERY)
    assert sum(map(len, kept.values())) < 300_000
    assert not {"session.json", "lock"} & kept.keys()
    assert read_config(GALLERY)["settings"]["model"] == "./smollm2-135m"
    assert b'"/' not in kept["config.json"]
    assert not [
        name for name, content in kept.items() if b"/experiments/results/gallery/" in content and name != "README.md"
    ]


def test_its_page_shows_each_text():
    page = (GALLERY / "README.md").read_text(encoding="utf-8")
    results = read_results(GALLERY)
    assert len(results) == page.count("```text\n")
    for text in results:
        assert text.accuracy == 1
        assert text.status == "solved"
        assert f"`{text.text_id}`" in page
        assert f": {text.steps:,} evaluations, {text.h_lm:.0f} nats, seed {text.seed}\n" in page


@pytest.mark.long
def test_the_real_model_emits_each_text(capsys):
    """With the folder that experiments/packaged/real_model.py makes of the wheel, named by ONESTEP_REAL_MODEL."""
    folder = os.environ.get("ONESTEP_REAL_MODEL")
    if folder is None:
        pytest.skip("ONESTEP_REAL_MODEL names no folder of SmolLM2-135M")
    assert main(["decode", str(GALLERY), "--model", folder, "--json"]) == 0
    decoded = json.loads(capsys.readouterr().out)["texts"]
    page = (GALLERY / "README.md").read_text(encoding="utf-8")
    assert len(decoded) == len(read_results(GALLERY))
    for text in decoded:
        assert text["accuracy"] == 1
        assert f"```text\n{text['text']}\n```" in page


def test_a_gallery_holds_the_solved_texts_of_a_run(script, tiny, token_lists, tmp_path):
    """Numbered anew, with the vectors and curves that they have in the run; the run itself is left as it is."""
    texts = [*token_lists[:3], token_lists[1]]
    results = fit(tiny, texts, run=tmp_path / "run", scheme=OneStep(prefix=(5,)), steps=70, seeds=1, slots=2)
    solved = [text for text in results if text.accuracy == 1]
    assert 0 < len(solved) < 4, "the test needs solved texts and others"
    before, folder = files(tmp_path / "run"), str(tmp_path).encode()
    made = script.write_gallery(tmp_path / "run", tmp_path / "out")
    assert files(tmp_path / "run") == before
    assert not any(path.is_dir() and not any(path.iterdir()) for path in (tmp_path / "out").rglob("*"))
    assert not [name for name, content in files(tmp_path / "out").items() if folder in content]
    shown = read_results(tmp_path / "out")
    assert [text.index for text in shown] == list(range(len(solved)))
    assert shown.scheme == results.scheme
    for one, text, other in zip(solved, made, shown, strict=True):
        assert text.text_id == other.text_id
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(other.prefix, [5])
        for leaf, vector in one.vectors.items():
            assert vector.tobytes() == other.vectors[leaf].tobytes()
        np.testing.assert_array_equal(one.trials[0].trace, other.trials[0].trace)
    assert verify(tmp_path / "out").problems == []


def test_books_are_named(script, tmp_path):
    rows = [
        {"title": "A `book`", "author": "One", "year": 1900, "text": "It was late. The lamp was out."},
        {"title": "Other", "author": "Two", "year": 1901, "text": "Nothing."},
    ]
    (tmp_path / "books.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = script.books_of([" The lamp was", "Nothing", "unheard of"], tmp_path / "books.jsonl")
    assert found == ["`` A `book` `` by One (1900)", "`Other` by Two (1901)", "a book"]
    assert script.books_of(["x"], None) == ["a book"]

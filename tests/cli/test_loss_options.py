"""`onestep fit --anchor` and `--relational`."""

import json

import numpy as np
import pytest

from onestep_jax import load_model, read_results
from onestep_jax.cli.parser import main
from onestep_jax.prototokens.auxiliary import anchor_points
from onestep_jax.report.wording import fit_command
from onestep_jax.store.reading import read_config
from onestep_jax.texts.embeddings import text_embeddings

LINES = "w1 w2 w3 w4\nw9 w8 w7 w6\nw11 w12 w13\nw20 w21 w22 w23 w24\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "a.txt").write_text(LINES)
    np.save(home / "rows.npy", np.random.default_rng(0).normal(size=(4, 6)))
    return home


def words(tiny_folder, home, run, *more):
    given = ["fit", "--model", tiny_folder, "--texts", home / "a.txt", "--split", "lines", "--length", 4]
    return [str(word) for word in (*given, "--run", home / run, "--slots", 2, *more)]


def test_e_turns_to_the_teacher_of_the_text_that_is_fitted(tiny_folder, home):
    assert main(words(tiny_folder, home, "anchored", "--anchor", "model:20", "--copies", 2)) == 0
    results, model = read_results(home / "anchored"), load_model(str(tiny_folder))
    texts = [text.tokens for text in results][::2]
    assert max(map(len, texts)) == 4  # cut, and so is what the teacher reads
    points = anchor_points(text_embeddings(model, texts, "model"), 32).repeat(2, axis=0)
    e = results.vectors["e"]
    cosines = np.sum(e * points, axis=1) / np.linalg.norm(e, axis=1) / np.linalg.norm(points, axis=1)
    assert results.solved == 8
    assert cosines.min() > 0.6


@pytest.mark.long
def test_both_losses_and_a_file(tiny_folder, home):
    rows = home / "rows.npy"
    how = ("--anchor", f"{rows}:0.5", "--relational", f"{rows}:2", "--group", 2, "--record")
    assert main(words(tiny_folder, home, "both", *how)) == 0
    config = read_config(home / "both")
    anchor = {"loss": "Anchor", "weight": 0.5, "teacher": rows.name, "of": "anchor"}
    relational = {"loss": "Relational", "weight": 2.0, "teacher": rows.name, "of": "teacher"}
    assert config["identity"]["losses"] == {"anchor": anchor, "relational": relational}
    command = fit_command(home / "both", config["identity"], config["settings"])
    assert "--anchor rows.npy:0.5 --relational rows.npy:2.0" in command
    assert "--group 2" in command
    assert "--share" not in command
    assert main(["report", str(home / "both")]) == 0
    page = (home / "both" / "report" / "report.html").read_text()
    assert "anchor, λ = 0.5, teacher rows.npy; relational, λ = 2, teacher rows.npy" in page
    assert main(["verify", str(home / "both")]) == 0


def test_the_folder_of_a_teacher_makes_no_other_run(tiny_folder, home, monkeypatch, capsys):
    assert main(words(tiny_folder, home, "moved", "--anchor", f"{home}/rows.npy:1")) == 0
    monkeypatch.chdir(home)
    assert main(words(tiny_folder, home, "moved", "--anchor", "rows.npy:1")) == 0
    np.save(home / "rows.npy", np.random.default_rng(1).normal(size=(4, 6)))
    assert main(words(tiny_folder, home, "moved", "--anchor", "rows.npy:1")) == 2
    assert "holds another run; context: " in capsys.readouterr().err
    assert str(home) not in (home / "moved" / "config.json").read_text().split('"settings"')[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--anchor", "model"], "--anchor model: expected TEACHER:LAMBDA"),
        (["--anchor", "model:"], "expected a finite number"),
        (["--anchor", "model:-1"], "expected a finite number, at least 0"),
        (["--anchor", ":1"], "--anchor :1: expected TEACHER:LAMBDA"),
        (["--relational", "model:1"], "give groups of at least 2 texts (--group)"),
        (["--anchor", "absent.npy:1"], "absent.npy: cannot be read"),
        (["--anchor", "rows.txt:1"], "rows.txt: no such folder; a teacher is minilm, model, a folder or FILE.npy"),
        (["--anchor", "model:1", "--share", "e", "--group", "2"], "expected an e of each text's own"),
        (["--group", "2"], "--group 2 needs --share e or --share m, or --projection shared, or --relational"),
    ],
)
def test_bad_options_are_one_line(tiny_folder, home, capsys, more, message):
    assert main(words(tiny_folder, home, "bad", *more)) == 2
    told = capsys.readouterr().err.strip()
    assert message in told.replace("\n", " ")
    assert len([line for line in told.splitlines() if line.startswith("onestep: error")]) == 1
    assert not (home / "bad").exists()


def test_a_record_of_losses_that_is_damaged(tiny_folder, home, capsys):
    assert main(words(tiny_folder, home, "damaged", "--anchor", "model:1")) == 0
    path = home / "damaged" / "config.json"
    path.write_text(path.read_text().replace('"weight": 1.0', '"weight": "much"'))
    assert main(["report", str(home / "damaged")]) == 2
    assert "losses" in capsys.readouterr().err


def test_json_says_nothing_else(tiny_folder, home, capsys):
    assert main(words(tiny_folder, home, "json", "--anchor", "model:1", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 4

"""`--revision` of a model on the hub: a run records it, and what reads the run loads that one and names it."""

import json
import shutil
from pathlib import Path

import pytest

from onestep_jax import read_results
from onestep_jax.analysis import robustness
from onestep_jax.cli import push
from onestep_jax.cli.parser import main
from onestep_jax.errors import UserError
from onestep_jax.model import hub
from onestep_jax.report.dataset_card import dataset_card
from onestep_jax.report.inputs import read_folders
from onestep_jax.report.page import page_html
from onestep_jax.report.wording import fit_command
from onestep_jax.store.reading import read_config
from onestep_jax.store.sharing.layout import configurations


@pytest.fixture
def asked(tiny_folder, monkeypatch):
    """Revisions that were asked of a hub that has the tiny model as org/tiny."""
    found = []

    def download(name, revision, files):
        assert name == "org/tiny"
        found.append(revision)
        return tiny_folder

    monkeypatch.setattr(hub, "_download", download)
    return found


@pytest.fixture(scope="module")
def home(tiny_folder, tmp_path_factory):
    """A folder with the run "run", fitted on step1000 of org/tiny."""
    home = tmp_path_factory.mktemp("home")
    (home / "a.txt").write_text("w1 w2 w3 w4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_download", lambda *_: tiny_folder)
        words = f"fit --model org/tiny --revision step1000 --texts {home}/a.txt --length 4 --run {home}/run"
        assert main(words.split()) == 0
    return home


def test_it_is_recorded(home):
    assert read_config(home / "run")["settings"]["revision"] == "step1000"
    results = read_results(home / "run")
    assert (results.source, results.revision) == ("org/tiny", "step1000")


@pytest.mark.parametrize(
    ("words", "revisions"),
    [([], {"step1000"}), (["--revision", "v2"], {"v2"}), (["--model", "org/tiny"], {None})],
)
def test_a_run_is_read_with_its_own(home, asked, capsys, words, revisions):
    assert main(["decode", str(home / "run"), *words]) == 0
    assert set(asked) == revisions


def test_pytorch_gets_it_as_well(home, asked, monkeypatch, capsys):
    def refuse(folder, *_):
        raise UserError(f"asked for {folder}")

    monkeypatch.setattr(robustness, "import_torch", lambda _: type("torch", (), {"float32": 0, "cuda": Path}))
    monkeypatch.setattr(Path, "is_available", lambda: False, raising=False)
    monkeypatch.setattr(robustness, "load_torch", refuse)
    assert main(["verify", str(home / "run"), "--backend", "torch"]) == 2
    assert "asked for" in capsys.readouterr().err
    assert set(asked) == {"step1000"}


def test_another_model_is_refused_by_both_names(home, asked, tmp_path, capsys):
    shutil.copytree(home / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["identity"]["model"] = "of another"
    path.write_text(json.dumps(config))
    assert main(["decode", str(tmp_path / "run"), "--revision", "v2"]) == 2
    told = capsys.readouterr().err
    assert "belong to model 'org/tiny' at revision 'step1000' (of another), not to 'org/tiny' at revision 'v2'" in told


def test_commands_and_pages_name_it(home, asked):
    run = home / "run"
    config, results = read_config(run), read_results(run)
    command = fit_command(run, config["identity"], config["settings"])
    assert "--model org/tiny --revision step1000" in str(command)
    card = dataset_card("me/run", config, results, 1, tables=configurations())
    assert "onestep decode runs/run --model org/tiny --revision step1000" in card
    assert "**Model:** `org/tiny at revision step1000`" in card
    assert "org/tiny at revision step1000, float32, frozen" in page_html(read_folders([run]))
    assert push._strings(results, None) == ["w1 w2 w3 w4"]
    assert set(asked) == {"step1000"}

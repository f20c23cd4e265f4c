"""`onestep push` and `onestep pull`: a run of a fit and back, refusals in one line, and no token anywhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import EMPTY, WRITER, DataSet, turn_to

from onestep_jax import read_results
from onestep_jax.cli.parser import main
from onestep_jax.store.locks import locked
from onestep_jax.store.reading import read_config

pytestmark = [
    pytest.mark.usefixtures("logged_in"),
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"),
]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """Runs a command, which must end with this status; what it printed, with the token nowhere in it."""

    def run(*words: object, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([*map(str, words)]) == status
        out, err = capsys.readouterr()
        assert WRITER not in out + err
        return out, err

    return run


def test_a_run_of_a_fit_comes_back_as_it_was(run, tiny_folder, hub, said, tmp_path):
    """Every command says the same of both, and the same fit finds nothing to do."""
    back = tmp_path / "back"
    out, err = said("push", run, "hf:me/run", "--license", "cc0-1.0")
    assert re.fullmatch(rf"2 texts, \d of them exact, sent to {hub.url}/datasets/me/run\n", out)
    assert err == ""
    out, err = said("pull", "hf:me/run", back)
    assert out == f"2 texts of hf:me/run, each as it was recorded; run directory {back}\n"
    assert err == ""
    before, after = read_config(run), read_config(back)
    assert after["identity"] == before["identity"]
    assert after["settings"] == {**before["settings"], "model": f"./{tiny_folder.name}"}
    model = ("--model", tiny_folder)
    for form in ([], ["--json"]):
        assert said("decode", back, *model, *form)[0] == said("decode", run, *model, *form)[0]
    verified = json.loads(said("verify", back, *model, "--json")[0])
    assert (verified["problems"], verified["recorded"], verified["decoded"]) == ([], 2, 2)
    assert json.loads(said("status", back, "--json")[0])["outlook"] == "nothing to do"
    for ours, theirs in zip(read_results(run), read_results(back), strict=True):
        assert (ours.steps, ours.seconds, ours.seed) == (theirs.steps, theirs.seconds, theirs.seed)
        for leaf, vector in ours.vectors.items():
            assert vector.tobytes() == theirs.vectors[leaf].tobytes()
    for folder in (run, back):
        said("export", folder, "--out", tmp_path / f"{folder.name}.npz")
    with np.load(tmp_path / "run.npz") as one, np.load(tmp_path / "back.npz") as other:
        for name in set(one.files) - {"metadata"}:
            np.testing.assert_array_equal(one[name], other[name])
    parts = {path.name: path.read_bytes() for path in (back / "results").iterdir()}
    texts = ("--texts", run.parent / "lines.txt", "--split", "lines", "--length", 4)
    said("fit", *model, *texts, "--run", back, "--slots", 2)
    assert {path.name: path.read_bytes() for path in (back / "results").iterdir()} == parts
    files = [path for folder in (back, tmp_path / "home") for path in folder.rglob("*") if path.is_file()]
    sent = [content for found in hub.data_sets["me/run"].commits.values() for content in found.values()]
    for content in [*sent, *(path.read_bytes() for path in files)]:
        assert WRITER.encode() not in content


def test_the_report_of_a_pulled_run(run, tiny_folder, said, tmp_path, monkeypatch):
    """Its table is that of the run, where the model lies beside it as the description says."""
    said("push", run, "hf:me/run")
    said("pull", "hf:me/run", tmp_path / "run")
    monkeypatch.chdir(tiny_folder.parent)
    tables = []
    for folder, name in ((run, "one"), (tmp_path / "run", "other")):
        out, _ = said("report", folder, "--out", tmp_path / name)
        tables.append(Path(out.split()[1]).read_text())
    one, other = tables
    assert one == other
    assert "w1 w2 w3 w4" in one


def test_what_is_sent(run, tiny_folder, hub, said, tmp_path):
    """The texts as strings, the card with the numbers of the run, the message of the commit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out, _ = said("push", run, "hf:me/run", "--license", "cc-by-4.0", "--message", "two lines", "--private", "--json")
    results = read_results(run)
    url = f"{hub.url}/datasets/me/run"
    assert json.loads(out) == {"url": url, "texts": 2, "solved": results.solved, "left": 0}
    found = hub.data_sets["me/run"]
    assert (found.messages[-1], found.private) == ("two lines", True)
    files = found.files()
    table = pq.read_table(pa.BufferReader(files["data/texts-00000.parquet"]))
    assert table["text"].to_pylist() == ["w1 w2 w3 w4", "w5 w6 w7 w8"]
    assert table["tokens"].to_pylist() == [text.tokens.tolist() for text in results]
    _, head, body = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    assert f"**Texts:** 2 of 2 recorded, {results.solved} of them exact" in body
    assert f"{results.steps.mean():,.1f} gradient evaluations" in body
    assert f"`./{tiny_folder.name}`, fingerprint `{results.model}`" in body
    assert f"onestep pull hf:me/run runs/run\nonestep decode runs/run --model ./{tiny_folder.name}\n" in body
    assert "onestep fit --texts SOURCE" in body
    assert str(tiny_folder.parent) not in files["README.md"].decode() + files["config.json"].decode()


def test_without_a_tokenizer_the_texts_are_token_ids(run, tiny_folder, hub, said, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["settings"]["model"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))

    def strings() -> list[str | None]:
        content = hub.data_sets["me/run"].files()["data/texts-00000.parquet"]
        return pq.read_table(pa.BufferReader(content))["text"].to_pylist()

    with pytest.warns(UserWarning, match="the column text stays empty: model .*: no such folder.*--tokenizer"):
        said("push", tmp_path / "run", "hf:me/run")
    assert strings() == [None, None]
    said("push", tmp_path / "run", "hf:me/run", "--tokenizer", tiny_folder)
    assert strings() == ["w1 w2 w3 w4", "w5 w6 w7 w8"]


def test_pushed_twice_and_pulled_by_commit(run, hub, said, tmp_path):
    said("push", run, "hf:me/run", "--branch", "v1")
    said("push", run, "hf:me/run", "--branch", "v1")
    found = hub.data_sets["me/run"]
    assert len(found.messages) == 2
    said("pull", "hf:me/run", tmp_path / "branch", "--revision", "v1")
    (tmp_path / "commit").mkdir()
    out, _ = said("pull", "hf:me/run", tmp_path / "commit", "--revision", found.branches["v1"], "--json")
    assert json.loads(out) == {"run": str(tmp_path / "commit"), "texts": 2}
    said("pull", "hf:me/run", tmp_path / "main", status=2)
    said("push", tmp_path / "branch", "hf:me/again", "--tokenizer", "default")


def error(err: str) -> str:
    (line,) = err.splitlines()
    return line.removeprefix("onestep: error: ")


@pytest.mark.parametrize(
    ("words", "said_line"),
    [
        (["push", "RUN", "me/run"], "expected hf:OWNER/NAME, a data set of the hub"),
        (["push", "RUN", "hf:run"], "expected hf:OWNER/NAME, a data set of the hub"),
        (["push", "RUN", "hf:me/run", "--license", "a b\nc: d"], "expected the id of a licence"),
        (["push", "RUN", "hf:me/run", "--license", "bogus"], '"license" must be one of [apache-2.0, …]'),
        (["push", "nowhere", "hf:me/run"], "no run directory (nothing is there)"),
        (["push", "RUN", "hf:me/run", "--token", WRITER], "unknown argument '--token'"),
        (["push", "RUN", f"hf:me/{WRITER}"], "this token may not write"),
        (["pull", "hf:me/absent", "DIR"], "hf:me/absent: no such data set on the hub, or no access to it"),
        (["pull", "hf:me/other", "DIR"], "hf:me/other: no run that onestep push has made (no config.json)"),
        (["pull", "hf:me/absent", "RUN"], "is there already and not empty; give a folder that is new"),
        (["pull", "hf:me/absent", "FILE"], "is there already and not empty; give a folder that is new"),
        (["pull", "hf:me/absent", "FILE/x"], "cannot write"),
        (["pull", "hf:me/absent", "gs://bucket/run"], "expected a local folder"),
    ],
    ids=lambda words: " ".join(words)[:40] if isinstance(words, list) else "",
)
def test_refusals_are_one_line(run, hub, said, tmp_path, words, said_line):
    hub.data_sets["me/other"] = DataSet()
    hub.data_sets["me/other"].commit("main", dict(EMPTY), "theirs")
    (tmp_path / "file").write_text("x")
    if "this token may not write" in said_line:
        hub.faults["POST /api/repos/create"] = (403, f"this token may not write: {WRITER}")
    places = {"RUN": str(run), "DIR": str(tmp_path / "new"), "FILE": str(tmp_path / "file")}
    words = [re.sub("^(RUN|DIR|FILE)", lambda found: places[found[0]], word) for word in words]
    _, err = said(*words, status=2)
    assert said_line in error(err)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["file"]


def test_a_run_that_is_going_on_or_empty_is_not_sent(run, hub, said, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with locked(tmp_path / "run"):
        _, err = said("push", tmp_path / "run", "hf:me/run", status=2)
        assert "still going on" in error(err)
    for folder in ("results", "embeddings", "traces"):
        shutil.rmtree(tmp_path / "run" / folder)
    _, err = said("push", tmp_path / "run", "hf:me/run", status=2)
    assert "no recorded text yet" in error(err)
    assert hub.data_sets == {}


def test_a_damaged_run_is_not_sent(run, hub, said, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (part,) = (tmp_path / "run" / "results").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    _, err = said("push", tmp_path / "run", "hf:me/run", status=2)
    assert "damaged part of the run" in error(err)
    assert hub.data_sets == {}


def test_login_and_network(run, hub, said, tmp_path, monkeypatch):
    turn_to(hub, tmp_path / "nobody", monkeypatch)
    _, err = said("push", run, "hf:me/run", status=2)
    assert error(err) == "hf:me/run: not logged in to the hub; `hf auth login`, or set HF_TOKEN"
    turn_to(hub, tmp_path / "home", monkeypatch, WRITER)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for words in (["push", run, "hf:me/run"], ["pull", "hf:me/run", tmp_path / "new"]):
        assert "the hub cannot be reached (ConnectError)" in error(said(*words, status=2)[1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for words in (["push", run, "hf:me/run"], ["pull", "hf:me/run", tmp_path / "new"]):
        assert error(said(*words, status=2)[1]).startswith("hf:me/run: HF_HUB_OFFLINE is set")
    assert not (tmp_path / "new").exists()

"""Damaged runs and paths that are none: one line that names the file, the field and the cure; nothing whole is lost."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_runs import IDENTITY, SETTINGS, finished, interrupted, opened, results, same, task

from onestep_jax import OneStep, Results, UserError, fit, read_results
from onestep_jax.cli.parser import main
from onestep_jax.store import locks, storage
from onestep_jax.store.export import write_vectors
from onestep_jax.store.parquet import read_rows, write_rows
from onestep_jax.store.run import open_run
from onestep_jax.store.status import read_status
from onestep_jax.store.verify import set_aside, verify
from onestep_jax.tokens import text_ids

DESCRIBED = {**IDENTITY, "dtype": "float32"}


def described(texts):
    """An identity that names its texts, as `fit` makes it."""
    digest = hashlib.sha256("\n".join(text.text_id for text in texts).encode()).hexdigest()[:16]
    return DESCRIBED | {"texts": digest}


@pytest.fixture
def run(tmp_path):
    """A run of six texts: two parts of two, a saved state of a fifth."""
    texts = results(6)
    with opened(tmp_path / "run", texts, described(texts)) as going:
        going.append(texts[:2])
        going.append(texts[2:4])
        going.save_state({"a": np.zeros(300)}, {"tasks": [task(4, 5)]})
    return tmp_path / "run"


def refused(capsys, *words):
    """The one line in which a command refuses."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line and " 0/" not in line]  # without a bar that was begun
    assert captured.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("onestep: error: ")
    return lines[0]


def readers(path, tmp_path):
    """Every command that reads a run directory."""
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2 w3")
    return {
        "status": ["status", path],
        "verify": ["verify", path, "--no-decode"],
        "decode": ["decode", path],
        "report": ["report", path, "--out", tmp_path / "report"],
        "export": ["export", path, "--out", tmp_path / "out.safetensors"],
        "fit": ["fit", "--texts", texts, "--length", "3", "--run", path],
    }


COMMANDS = ("status", "verify", "decode", "report", "export", "fit")


# --- paths that are no run directory ---


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "file", "it is a file"),
        (lambda _: Path("/dev/null"), "it is a device"),
        (lambda folder: folder / ("x" * 256), "File name too long"),
        (lambda folder: folder / "file" / "run", "nothing is there"),
        (lambda folder: folder / "nothing", "nothing is there"),
        (lambda folder: folder / "bare", "no config.json"),
    ],
)
def test_a_path_that_is_no_run_directory(tmp_path, capsys, tiny_folder, command, make, said):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "thesis.txt").write_text("all my work")
    path = make(tmp_path)
    words = readers(path, tmp_path)[command]
    if command == "fit":
        if path.name == "nothing":
            pytest.skip("there it makes one")
        words += ["--model", tiny_folder]
    line = refused(capsys, *words)
    assert line.startswith(f"onestep: error: {path}: ")
    if command == "fit" and path.parent.name == "file":
        assert "Not a directory" in line
    else:
        assert "no run directory" in line
        assert said in line
    assert not (tmp_path / "report").exists()


# --- config.json ---


def without(*keys):
    def change(config):
        *outer, last = keys
        for key in outer:
            config = config[key]
        del config[last]

    return change


def setting(value, *keys):
    def change(config):
        *outer, last = keys
        for key in outer:
            config = config[key]
        config[last] = value

    return change


CONFIGS = [
    (without("identity"), "missing required field identity"),
    (without("settings"), "missing required field settings"),
    (without("identity", "model"), "field identity: object missing required field model"),
    (without("identity", "scheme"), "field identity: object missing required field scheme"),
    (without("settings", "model"), "field settings: object missing required field model"),
    (setting(None, "identity"), "field identity: expected object, got null"),
    (setting(None, "identity", "scheme"), "field identity.scheme: expected object, got null"),
    (setting("x", "identity", "scheme"), "field identity.scheme: expected object, got str"),
    (setting(5, "identity", "dtype"), "field identity.dtype: expected str, got int"),
    (setting("many", "identity", "scheme", "group"), "field identity.scheme.group: expected int, got str"),
    (setting(0, "identity", "scheme", "group"), "field identity.scheme.group: expected int >= 1"),
    (setting(["x"], "identity", "scheme", "prefix"), "field identity.scheme.prefix[0]: expected int, got str"),
    (setting([], "settings"), "field settings: expected object, got array"),
    (setting(7, "settings", "model"), "field settings.model: expected str, got int"),
    (setting(None, "settings", "preset values"), "field settings.preset values: expected object, got null"),
    (setting("three", "format"), "run format 'three'; this version reads 3"),
]


@pytest.mark.parametrize(("change", "said"), CONFIGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_field_of_config_json(run, tmp_path, capsys, tiny_folder, command, change, said):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))
    words = readers(run, tmp_path)[command] + (["--model", tiny_folder] if command == "fit" else [])
    if command == "report" and "identity" not in config:
        said = "belongs to no run and to no experiment"
    line = refused(capsys, *words)
    assert said in line
    assert str(run) in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 1000 + "]" * 1000, "nested 1000 deep, expected at most 32"),
        ("[" * 10**6, "nested 1000000 deep, expected at most 32"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "nested 1000 deep"),
        ("9" * 5000, "not valid JSON"),
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (None, "expected a file, got a folder"),
    ],
)
def test_a_config_json_that_is_none(run, tmp_path, capsys, content, said):
    (run / "config.json").unlink()
    if content is None:
        (run / "config.json").mkdir()
    else:
        (run / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in ("status", "verify", "decode", "report", "export"):
        line = refused(capsys, *readers(run, tmp_path)[command])
        assert ("move it away; then" in line) == (content is None)
        assert f"{run / 'config.json'}: damaged description: " in line
        assert said in line
        assert "put it back from a copy" in line


def test_a_pipe_is_not_waited_for(run, capsys):
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    assert "got a pipe, socket or device" in refused(capsys, "status", run)


def test_a_file_without_an_end_is_not_read_whole(run, monkeypatch):
    from onestep_jax.store.records import parsing

    with pytest.raises(UserError, match="damaged thing: expected at most 10 bytes, got more; cut it"):
        parsing.read_json(run / "config.json", dict, "thing", "cut it", limit=10)


def test_a_config_that_was_lost_is_written_again_by_its_own_settings_alone(run):
    texts, before = results(6), (run / "config.json").read_bytes()
    kept = {path: path.read_bytes() for path in (run / "results").iterdir()}
    (run / "config.json").unlink()
    with pytest.raises(
        UserError, match=r"config.json is missing, and the recorded part 000001-0000-000000 is not known"
    ):
        opened(run, texts, described(texts) | {"seed": 1})
    assert not (run / "config.json").exists()
    assert {path: path.read_bytes() for path in (run / "results").iterdir()} == kept
    opened(run, texts, described(texts)).close()
    assert (run / "config.json").read_bytes() == before
    same(read_results(run), texts[:4])


def test_a_folder_in_which_nothing_is_kept_is_described_anew(tmp_path, monkeypatch):
    """A kill between texts.parquet and config.json, or a value that the first step refuses, binds nobody."""
    from onestep_jax.store import run as module

    shorter, longer = results(3), results(3)
    for i, text in enumerate(longer):
        tokens = np.arange(i, i + 3, dtype=np.int32) + 1
        longer[i] = dataclasses.replace(text, tokens=tokens, predicted=tokens.copy(), text_id=text_ids([tokens])[0])

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path / "run", shorter, described(shorter))
    opened(tmp_path / "run", shorter, described(shorter) | {"steps": 3}).close()
    with opened(tmp_path / "run", longer, described(longer)) as going:
        going.append(longer)
    same(read_results(tmp_path / "run"), longer)
    assert verify(tmp_path / "run").problems == []
    with pytest.raises(UserError, match="holds another run"):
        opened(tmp_path / "run", shorter, described(shorter))


def test_work_in_flight_binds_the_settings(tmp_path):
    texts = results(2)
    with opened(tmp_path / "run", texts) as going:
        going.save_state({}, {"tasks": [task(0, 5)]})
    with pytest.raises(UserError, match="holds another run; seed: 0 there, 1 here"):
        opened(tmp_path / "run", texts, IDENTITY | {"seed": 1})


@pytest.mark.parametrize("finished", [0, 2])
def test_an_identity_that_nothing_else_has_is_written_anew(tmp_path, finished):
    texts, run = results(3), tmp_path / "run"
    with opened(run, texts, described(texts)) as going:
        going.append(texts[:finished])
        going.save_state({"steps": np.arange(1)}, {"tasks": [task(2, 5)]})
    config = json.loads((run / "config.json").read_text())
    config["identity"]["seed"] += 1
    (run / "config.json").write_text(json.dumps(config))
    found = verify(run)
    if finished:
        assert [problem.where for problem in found.problems] == ["config.json"]
        assert not found.damaged_states
    with pytest.warns(UserWarning, match=r"config.json: its identity is not that of the recorded parts"):
        going = opened(run, texts, described(texts))
    with going:
        assert len(going.recorded()) == finished
        assert len(going.saved_states()) == 1
    assert verify(run).problems == []


def test_a_copied_record_takes_no_part_with_it(run, capsys):
    """A record under a newer name, without vectors: it holds the same texts, but nothing of them."""
    texts = results(6)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name != "claims"}
    record = min((run / "results").glob("*.parquet"))
    shutil.copy(record, record.with_name("000009-0000-000000.parquet"))
    opened(run, texts, described(texts)).close()
    for path, content in before.items():
        if path.name not in ("session.json", "lock"):
            assert path.read_bytes() == content, path
    assert verify(run).problems
    assert main(["verify", str(run), "--no-decode", "--drop"]) == 0
    same(read_results(run), texts[:4])


# --- texts.parquet ---


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:4],
        lambda rows: rows + rows,
        lambda rows: rows[::-1],
        lambda rows: [],
        lambda rows: [{**row, "text_id": None} for row in rows],
        lambda rows: [{**row, "tokens": "words"} for row in rows],
        lambda rows: [{"index": row["index"], "text_id": row["text_id"]} for row in rows],
        lambda rows: [{**row, "tokens": [2**40]} for row in rows],
    ],
)
def test_a_table_of_other_texts_is_named_and_written_again(run, tmp_path, capsys, change):
    texts, path = results(6), run / "texts.parquet"
    write_rows(path, change(read_rows(path)))
    for command in ("status", "verify", "decode", "report", "export"):
        line = refused(capsys, *readers(run, tmp_path)[command])
        assert f"{path}: " in line
        assert "the same onestep fit writes it again" in line
    opened(run, texts, described(texts)).close()
    assert [row["text_id"] for row in read_rows(path)] == [text.text_id for text in texts]
    assert verify(run).problems == []
    same(read_results(run), texts[:4])


# --- session.json, locks ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("number"), "object missing required field number"),
        (setting("2", "number"), "field number: expected int, got str"),
        (setting(None, "since"), "field since: expected str, got null"),
        (setting([], "processes"), "field processes: expected int, got array"),
        (setting(-1, "pid"), "field pid: expected int >= 1"),
        (setting(10**20, "pid"), "field pid: expected int"),
    ],
)
def test_a_field_of_session_json(run, tmp_path, capsys, change, said):
    session = json.loads((run / "session.json").read_text())
    change(session)
    (run / "session.json").write_text(json.dumps(session))
    capsys.readouterr()
    with pytest.warns(UserWarning, match="damaged session") as told:
        assert main(["status", str(run)]) == 0
    line = str(told[0].message)
    assert f"{run / 'session.json'}: damaged session: " in line
    assert said in line
    assert "the same onestep fit writes it again" in line
    assert "4 of 6 recorded" in capsys.readouterr().out
    assert main(["verify", str(run), "--no-decode"]) == 1
    assert said in capsys.readouterr().out
    with opened(run, results(6), described(results(6))) as going:
        assert going.session.number == 2
    assert verify(run).problems == []


@pytest.mark.parametrize("name", ["session.json", "lock", "texts.parquet", "results", "claims"])
def test_a_folder_for_a_file_and_a_file_for_a_folder(run, name):
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"x")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=rf"{name}|Is a directory|File exists") as told:
        opened(run, results(6), described(results(6)))
    assert "move away what is in the way" in str(told.value)


@pytest.mark.parametrize("name", ["results", "traces", "embeddings", "state", "claims"])
def test_a_run_whose_folder_is_a_file_has_not_lost_it_in_silence(run, tmp_path, capsys, name):
    (run / name).rename(tmp_path / name)
    (run / name).write_bytes(b"x")
    for command in ("status", "verify", "decode", "report", "export"):
        line = refused(capsys, *readers(run, tmp_path)[command])
        assert f"{run / name}: damaged run: expected a folder (it is a file)" in line
    (run / name).unlink()
    (tmp_path / name).rename(run / name)
    same(read_results(run), results(6)[:4])


def test_results_that_are_away_do_not_take_the_vectors_with_them(run, tmp_path, capsys):
    before = sorted(path for path in (run / "embeddings").rglob("*"))
    (run / "results").rename(tmp_path / "results")
    for look in (lambda: opened(run, results(6), described(results(6))), lambda: verify(run)):
        with pytest.raises(UserError, match=r"run/results: damaged run: it is missing, .*; put it back"):
            look()
    assert sorted(path for path in (run / "embeddings").rglob("*")) == before
    (tmp_path / "results").rename(run / "results")
    opened(run, results(6), described(results(6))).close()
    same(read_results(run), results(6)[:4])


@pytest.mark.parametrize("pid", [-1, 0, 10**20, "x", None, 1.5, True])
def test_the_cure_for_a_lock_of_nobody_ends_nobody(tmp_path, pid):
    texts, folder = results(1), tmp_path / "run"
    with opened(folder, texts):
        about = {"pid": pid, "host": os.uname().nodename, "since": "2026", "command": "x"}
        (folder / "lock").write_text(json.dumps(about))
        with pytest.raises(UserError, match=r"owner unknown\).*fuser") as told:
            opened(folder, texts)
        assert "kill" not in str(told.value)
        assert locks.holder(folder / "lock") == locks.UNKNOWN


# --- saved states ---


def forge(run, change):
    """Change a saved state and give it the checksum of what it then holds."""
    (path,) = (run / "state").glob("*.json")
    content = json.loads(path.read_text())
    change(content)
    content["checksum"] = zlib.crc32(json.dumps(content.get("state")).encode())
    path.write_text(json.dumps(content))
    return path


STATES = [
    (without("state"), "missing required field state"),
    (without("state", "record"), "field state: object missing required field record"),
    (setting(None, "state", "record"), "field state.record: expected object, got null"),
    (setting("x", "state", "elapsed"), "field state.elapsed: expected float, got str"),
    (setting([1], "state", "record", "tasks"), "field state.record.tasks[0]: expected object, got int"),
    (setting([{"texts": [4]}], "state", "record", "tasks"), "object missing required field seed"),
    (setting([{"texts": [], "seed": 0, "trace": []}], "state", "record", "tasks"), "field state.record.tasks[0].texts"),
    (setting([{"texts": [-1], "seed": 0, "trace": []}], "state", "record", "tasks"), "expected int >= 0"),
    (setting([{"texts": [4], "seed": 0, "trace": [[1]]}], "state", "record", "tasks"), "tasks[0].trace[0]: expected"),
    (
        setting([{"texts": [99], "seed": 0, "trace": []}], "state", "record", "tasks"),
        "of another run, or of other texts",
    ),
]


@pytest.mark.parametrize(("change", "said"), STATES)
def test_a_field_of_a_saved_state_costs_the_state_alone(run, capsys, change, said):
    path, texts = forge(run, change), results(6)
    with pytest.warns(UserWarning, match="is left aside") as told:
        going = opened(run, texts, described(texts))
    assert len(told) == 1
    assert said in str(told[0].message)
    assert "`onestep verify DIR --drop` sets it aside" in str(told[0].message)
    with going:
        assert going.saved_states() == []
        assert len(going.recorded()) == 4
    with pytest.warns(UserWarning, match="is left aside"):
        assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["in_flight"] == []
    assert path.exists()
    found = verify(run)
    assert found.damaged_states == [path.stem]
    set_aside(run, found)
    assert verify(run).problems == []
    same(read_results(run), texts[:4])


def test_a_fit_goes_on_where_the_arrays_of_a_saved_state_are_damaged(tiny, token_lists, tmp_path, one_device):
    interrupted(tiny, token_lists[:6], tmp_path / "run", placement=one_device)
    recorded = {text.text_id for text in read_results(tmp_path / "run")}
    for path in (tmp_path / "run" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"damaged saved state .*; it is left aside"):
        again = finished(tiny, token_lists[:6], tmp_path / "run", placement=one_device)
    assert len(again) == 6
    assert recorded <= {text.text_id for text in again}
    untouched = fit(tiny, token_lists[:6], preset="paper", steps=600, slots=4, placement=one_device)
    assert again.accuracy.tolist() == untouched.accuracy.tolist()


# --- parts ---


def test_of_a_group_all_or_nothing_is_kept(tiny, token_lists, tmp_path, one_device):
    """A fit makes a group whole or anew; what were kept of it would be recorded twice and otherwise."""
    options = {"scheme": OneStep(share="m", group=3), "steps": 5, "slots": 2, "placement": one_device}
    before = fit(tiny, token_lists[:7], run=tmp_path / "run", **options)
    (part,) = (tmp_path / "run" / "results").iterdir()
    table = pq.read_table(part)
    rows = table.to_pylist()
    rows[next(i for i, row in enumerate(rows) if row["index"] == 1)]["loss"] = 0.125
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
    found = verify(tmp_path / "run")
    assert [problem.text_id for problem in found.problems] == [before.texts[1].text_id]
    assert set_aside(tmp_path / "run", found) == 4
    assert [text.index for text in read_results(tmp_path / "run")] == [3, 4, 5, 6]
    assert len(fit(tiny, token_lists[:7], run=tmp_path / "run", **options)) == 7
    assert verify(tmp_path / "run").problems == []


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("results", lambda row: {**row, "accuracy": None}, "field accuracy: expected float, got null"),
        ("results", lambda row: {**row, "predicted": [2**40]}, "field predicted[0]: expected int <"),
        ("results", lambda row: {**row, "status": "done"}, "field status: "),
        ("results", lambda row: {**row, "row": -1}, "field row: expected int >= 0"),
        ("traces", lambda row: {**row, "trace_loss": None}, "field trace_loss: expected array, got null"),
        ("traces", lambda row: {**row, "seed": "0"}, "field seed: expected int, got str"),
    ],
)
def test_a_field_of_a_part_is_named_and_set_aside(run, capsys, table, change, said):
    path = run / table / "000001-0000-000000.parquet"
    write_rows(path, [change(row) for row in read_rows(path)], about={"new": "2", "elapsed": "1.0"})
    assert main(["verify", str(run), "--no-decode"]) == 1
    assert said in capsys.readouterr().out
    assert main(["verify", str(run), "--no-decode", "--drop"]) == 0
    capsys.readouterr()
    same(read_results(run), results(6)[2:4])


def test_a_summary_that_is_damaged_is_cured_by_what_it_says(run, capsys):
    path = run / "results" / "000001-0000-000000.parquet"
    write_rows(path, read_rows(path), about={"new": "two", "elapsed": "1.0"})
    assert "verify DIR --drop" in refused(capsys, "status", run)
    assert main(["verify", str(run), "--no-decode", "--drop"]) == 0
    assert read_status(run).left == 4


def test_a_table_that_says_it_is_endless_is_not_read(run, monkeypatch):
    from onestep_jax.store import parquet

    monkeypatch.setattr(parquet, "MOST_ROWS", 1)
    with pytest.raises(UserError, match="expected at most 1 rows, got 6"):
        read_results(run)


# --- where arrays are saved ---


@pytest.mark.parametrize(
    "name", ["run[1]", "[/v2]", "back\\slash", "gs:", "what?*", "é", os.fsdecode(b"\xff"), "a b{c}"]
)
def test_a_run_directory_of_any_name(tmp_path, name):
    folder, texts = tmp_path / name / "run", results(3)
    with opened(folder, texts) as going:
        going.append(texts[:2])
        going.save_state({"a": np.arange(3.0)}, {"tasks": [task(2, 5)]})
    same(read_results(folder), texts[:2])
    assert verify(folder).problems == []
    with opened(folder, texts) as going:
        ((state, _),) = going.saved_states()
        np.testing.assert_array_equal(going.load_state_arrays(state)["a"], np.arange(3.0))
        going.append(texts[2:])
    same(read_results(folder), texts)
    assert [path.name for path in (tmp_path / name).iterdir()] == ["run"]


# --- advice ---


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"\(the disk is full\).*free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some space"),
        (ValueError("RESOURCE_EXHAUSTED: No space left on device"), r"\(the disk is full\).*free some space"),
        (OSError(errno.ENOENT, "No such file or directory"), "make the folder that is missing"),
        (OSError(errno.EROFS, "Read-only file system"), "give a place that is not read-only"),
        (OSError(errno.EACCES, "Permission denied"), "allow writing there"),
        (OSError(errno.EISDIR, "Is a directory"), "move away what is in the way"),
        (OSError(errno.EIO, "Input/output error"), "see that the place can be written"),
    ],
)
def test_the_cure_fits_the_cause(tmp_path, error, cure):
    with pytest.raises(UserError, match=cure), storage.writing(tmp_path):
        raise error


def test_an_export_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    found = Results(tuple(results(2)), IDENTITY["scheme"], "abc", SETTINGS["model"])

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            write_vectors(found, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="make the folder that is missing"):
        write_vectors(found, tmp_path / "missing" / "out.safetensors")
    with pytest.raises(UserError, match="is a folder; give a file in it"):
        write_vectors(found, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_prefixes_that_are_lost_are_named(tmp_path):
    texts = results(2)
    identity = described(texts) | {"prefixes": "0123456789abcdef"}
    given = [(text.text_id, text.tokens) for text in texts]
    with open_run(tmp_path / "run", identity, SETTINGS, given, prefixes=[np.arange(2)] * 2) as going:
        going.append(texts)
    path = tmp_path / "run" / "texts.parquet"
    write_rows(path, [{**row, "prefix": None} for row in read_rows(path)])
    with pytest.raises(UserError, match=r"texts.parquet: damaged table of texts: field prefix: .*writes it again"):
        read_results(tmp_path / "run")

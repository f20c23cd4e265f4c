"""What cannot be read is not damaged: it is tried again, told as what it is, and stays where it is."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from store_runs import opened, results, same, task

from onestep_jax import UserError, read_results
from onestep_jax.cli.parser import main
from onestep_jax.errors import Unreadable
from onestep_jax.store import background_writer as writer
from onestep_jax.store import commits, verify
from onestep_jax.store import listing as reading
from onestep_jax.store import orbax_arrays as arrays
from onestep_jax.store import reading as records
from onestep_jax.store.listing import patiently
from onestep_jax.store.parquet import read_rows
from onestep_jax.store.parts import part_files
from onestep_jax.store.reading import part_names
from onestep_jax.store.saved_states import state_files, state_names
from onestep_jax.store.status import read_status
from onestep_jax.store.storage import read_through

TOLD = r"cannot be read \({}\); nothing is known to be damaged: make it readable and run the same command again$"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reading, "PAUSES", (0.001, 0.001))


@pytest.fixture
def run(tmp_path):
    """A run of four texts in two parts, with a saved state."""
    texts = results(6)
    with opened(tmp_path / "run", texts) as going:
        going.append(texts[:2])
        going.append(texts[2:4])
        going.save_state({"a": np.zeros(300)}, {"tasks": [task(4, 5)]})
    return tmp_path / "run"


class Refusing:
    """Files below a path cannot be opened, by anybody or a few times; what Orbax reads by itself neither."""

    def __init__(self, monkeypatch, path, number=errno.EACCES, times=10**6):
        self.left, self.path = times, path
        self.patch(monkeypatch, Path, "open", number, lambda given: given[0])
        self.patch(monkeypatch, arrays, "_load", None, lambda given: given[0])

    def patch(self, monkeypatch, where, name, number, path_of):
        function = getattr(where, name)

        def refuse(*given, **how):
            if self.left and path_of(given).is_relative_to(self.path):
                self.left -= 1
                if number is None:
                    raise ValueError("PERMISSION_DENIED: Error opening local file [tensorstore_spec=…]")
                raise OSError(number, os.strerror(number), str(path_of(given)))
            return function(*given, **how)

        monkeypatch.setattr(where, name, refuse)


def place(run, kind):
    """One of the files or folders of a run."""
    files = part_files(run, part_names(run)[0]) | {"record": state_files(run, state_names(run)[0])["state"]}
    files |= {"arrays": state_files(run, state_names(run)[0])["arrays"], "session": run / "session.json"}
    return (files | {"texts": run / "texts.parquet", "config": run / "config.json"})[kind]


def use(run):
    """Everything that goes on with a run does."""
    with opened(run, results(6)) as going:
        states = going.saved_states()
        return [going.load_state_arrays(name) for name, _ in states], read_results(run)


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}


KINDS = ("results", "traces", "embeddings", "record", "arrays", "session", "texts", "config")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_read_is_told_as_that(run, monkeypatch, kind, number):
    with monkeypatch.context() as patch:
        Refusing(patch, place(run, kind), number)
        with pytest.raises(Unreadable, match=TOLD.format(os.strerror(number))) as refused:
            use(run)
    assert str(refused.value).startswith(str(place(run, kind)))
    assert not re.search(r"--drop|delete|\n", str(refused.value))
    found, read = use(run)
    assert len(found) == 1
    same(read, results(6)[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_not_noticed(run, monkeypatch, kind):
    refusing = Refusing(monkeypatch, place(run, kind), times=2)
    found, read = use(run)
    assert not refusing.left
    assert len(found) == 1
    same(read, results(6)[:4])
    assert verify.verify(run).problems == []


@pytest.mark.parametrize("kind", ["results", "traces", "embeddings", "record", "arrays"])
def test_verify_does_not_take_away_what_cannot_be_read(run, monkeypatch, kind, capsys):
    damaged = part_files(run, part_names(run)[1])["traces"]
    damaged.write_bytes(b"PAR1")
    unreadable = place(run, kind)
    with monkeypatch.context() as patch:
        Refusing(patch, unreadable)
        found = verify.verify(run)
        told = {problem.where: problem.damage for problem in found.problems}
        where = f"state {state_names(run)[0]}" if kind in ("record", "arrays") else f"part {part_names(run)[0]}"
        assert told == {where: False, f"part {part_names(run)[1]}": True}
        assert main(["verify", str(run), "--no-decode", "--drop"]) == 1
    assert "nothing is known to be damaged" in capsys.readouterr().out
    assert unreadable.exists()
    assert [path.name.partition("-")[2].split("-")[1] for path in (run / "damaged").iterdir()] == ["000001"] * 3
    same(read_results(run), results(6)[:2])
    assert verify.verify(run).problems == []


def test_verify_with_nothing_damaged_drops_nothing(run, monkeypatch):
    Refusing(monkeypatch, place(run, "embeddings"))
    before = sorted(run.rglob("*"))
    assert main(["verify", str(run), "--no-decode", "--drop"]) == 1
    assert sorted(run.rglob("*")) == before


def test_an_unreadable_session_is_not_begun_again(run, monkeypatch):
    before = contents(run)
    with monkeypatch.context() as patch:
        Refusing(patch, run / "session.json")
        with pytest.raises(Unreadable, match=r"session\.json: cannot be read"):
            opened(run, results(6))
    assert contents(run) == before


def test_a_folder_that_cannot_be_listed_is_not_empty(run, monkeypatch):
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "results":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return iterdir(path)

    before = contents(run)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        for look in (read_results, read_status, verify.verify, lambda run: opened(run, results(6))):
            with pytest.raises(Unreadable, match=r"run/results: cannot be read \(Permission denied\)"):
                look(run)
    assert {path: content for path, content in contents(run).items() if path.name != "session.json"} == {
        path: content for path, content in before.items() if path.name != "session.json"
    }
    same(read_results(run), results(6)[:4])


def test_a_file_that_breaks_off_while_it_is_read(run, monkeypatch):
    """pyarrow hands on what a file object raises."""

    class Broken:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, *_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    open_path = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *given, **how: Broken(open_path(path, *given, **how)))
    with pytest.raises(Unreadable, match=r"traces/.*\.parquet: cannot be read \(Input/output error\)"):
        patiently(place(run, "traces"), read_rows)


def test_a_read_that_is_refused_in_the_background_is_tried_again(run, monkeypatch):
    monkeypatch.setattr(writer, "RETRIES", (0.01, 0.01))
    monkeypatch.setattr(commits, "COMPACT_AT", 1)
    texts = results(6)
    with opened(run, texts) as going:
        monkeypatch.setattr(reading, "PAUSES", ())
        Refusing(monkeypatch, run / "texts.parquet", errno.EIO, times=1)

        def record():
            going.append(texts[4:])
            going.wait()

        with pytest.warns(UserWarning, match=r"is tried again .*Input/output error"):
            record()
    same(read_results(run), texts)


def test_damage_is_still_damage(run):
    """A folder in the place of a file, a file in that of a folder, and half a file are no matter of being allowed."""
    for kind in ("results", "traces", "embeddings"):
        path = place(run, kind)
        kept = path.rename(run / "kept")
        path.write_bytes(b"PAR1") if kind == "embeddings" else path.mkdir()
        with pytest.raises(UserError, match="damaged part of the run") as refused:
            read_results(run)
        assert not isinstance(refused.value, Unreadable)
        path.unlink() if path.is_file() else path.rmdir()
        kept.rename(path)
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        records.read_config(run)
    with pytest.raises(FileNotFoundError):
        read_through(run / "nothing")


OTHER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from store_runs import results, same
from onestep_jax import UserError, read_results
from onestep_jax.store.status import read_status
from onestep_jax.store.verify import verify
run = Path({run!r})
same(read_results(run), results(2))  # and import what is imported where it is needed
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.chdir("/")
for path in [run / "config.json", run / "texts.parquet", *sorted((run / "results").iterdir()),
             *sorted((run / "traces").iterdir()), run / "results",
             *sorted(path for path in (run / "embeddings").rglob("*"))]:
    print(path.relative_to(run), flush=True)
    assert sys.stdin.readline() == "forbidden\\n"
    try:
        same(read_results(run), results(2))
        print("fine", flush=True)
    except UserError as error:
        print(type(error).__name__, error, flush=True)
    assert sys.stdin.readline() == "allowed\\n"
same(read_results(run), results(2))
assert verify(run).problems == []
"""


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_who_may_not_read():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # which others may enter, unlike pytest's own
    try:
        with opened(folder / "run", results(2)) as run:
            run.append(results(2))
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        code = OTHER.format(tests=str(Path(__file__).parents[1] / "support"), run=str(folder / "run"))
        command = [sys.executable, "-c", code]
        asked = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **asked) as other:
            seen = list(answers(other, folder / "run"))
        assert other.returncode == 0
        for path, said in seen:
            if said != "fine":
                assert re.match(rf"Unreadable {folder}/run/{re.escape(path)}.*{TOLD.format('Permission denied')}", said)
        refused = {path.split("/")[0] for path, said in seen if said != "fine"}
        assert refused == {"config.json", "texts.parquet", "results", "traces", "embeddings"}
    finally:
        shutil.rmtree(folder)


def answers(other, run):
    """Forbid the other user one path after the other; each path and what it then says."""
    while path := other.stdout.readline().strip():
        mode = (run / path).stat().st_mode
        (run / path).chmod(0)
        try:
            tell(other, "forbidden")
            yield path, other.stdout.readline().strip()
        finally:
            (run / path).chmod(mode)
        tell(other, "allowed")


def tell(other, word):
    other.stdin.write(f"{word}\n")
    other.stdin.flush()

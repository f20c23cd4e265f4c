"""Runs in an object store: Google's own protocol and client, against an emulator on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec.config
import numpy as np
import pytest
from buckets import emulated
from store_runs import opened, results, same
from upath import UPath

from onestep_jax import UserError, load_model, read_results
from onestep_jax.cli.options import local_folder
from onestep_jax.cli.parser import main
from onestep_jax.prototokens.reconstruction import decoding_of
from onestep_jax.store import commits, sessions
from onestep_jax.store.cleanup import sweep_away
from onestep_jax.store.leases import leased, leaseholder
from onestep_jax.store.run import Run
from onestep_jax.store.status import read_status
from onestep_jax.store.storage import create, entries, fetch, move, remove, replace, run_path, send
from onestep_jax.store.verify import set_aside, verify

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "studies"))
from torture import Job, free_port


@pytest.fixture(scope="module")
def bucket():
    with emulated(free_port()) as address:
        yield address


@pytest.fixture
def quick(monkeypatch):
    """Leases that run out soon."""
    for name, seconds in (("BEAT", 0.2), ("LEASE", 1.0), ("LOOK", 0.05)):
        monkeypatch.setattr(f"onestep_jax.store.leases.{name}", seconds)


def test_one_alone_makes_an_object(bucket):
    path = run_path(f"{bucket}/claims/1")
    assert create(path, b"ours")
    assert not create(path, b"theirs")
    assert path.read_bytes() == b"ours"
    assert create(path, b"ours")  # asked again because the answer was lost
    assert [entry.name for entry in entries(path.parent)] == ["1"]
    assert entries(run_path(f"{bucket}/none")) == []


@pytest.mark.parametrize("content", [b"", b"a\r", b"a\n", b"a\r\n", bytes(range(256))], ids=repr)
def test_files_come_back_as_they_were_sent(bucket, tmp_path, content):
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "file").write_bytes(content)
    target = run_path(f"{bucket}/folder")
    for _ in range(2):  # into a folder that is not there, and into one that is
        send(tmp_path / "sent", target)
        fetch(target, tmp_path / "back")
        assert [path.name for path in entries(target)] == ["file"]
        assert [path.name for path in (tmp_path / "back").iterdir()] == ["file"]
        assert (tmp_path / "back" / "file").read_bytes() == content
    remove(target)
    assert entries(target) == []


def test_a_folder_that_is_not_there_is_not_fetched(bucket, tmp_path):
    beside = run_path(f"{bucket}/absent-and-more/file")
    replace(beside, b"content")
    with pytest.raises(FileNotFoundError):
        fetch(run_path(f"{bucket}/absent"), tmp_path / "back")
    remove(beside)


def test_a_folder_is_moved_with_all_in_it(bucket):
    source, target = run_path(f"{bucket}/moved/one"), run_path(f"{bucket}/moved/two")
    for name in ("file", "inner/file"):
        replace(source / name, name.encode())
    move(source, target)
    assert entries(source) == []
    assert [(target / name).read_bytes() for name in ("file", "inner/file")] == [b"file", b"inner/file"]


@pytest.mark.long
def test_a_run_in_a_bucket_reads_back(bucket, tmp_path, quick):
    made, folder = results(20), run_path(f"{bucket}/whole")
    with opened(folder, made, processes=2) as run:
        for text in made:
            run.append([text])
        run.save_state({"x": np.arange(4.0)}, {"tasks": [{"texts": [0], "seed": 0, "trace": [[10, 1, 0]]}]})
        assert run.claim(0)
        assert not Run(folder, run.session, 1).claim(0)
        run.wait()
        assert len(entries(folder / "results")) < commits.COMPACT_AT  # merged
        assert read_status(folder).owner.pid == os.getpid()
    same(read_results(f"{bucket}/whole"), made)
    status = read_status(folder)
    assert (len(status.recorded), status.owner) == (20, None)
    found = verify(folder)
    assert (found.recorded, found.states, found.problems) == (20, 1, [])
    fetch(folder / "embeddings" / entries(folder / "embeddings")[0].name, tmp_path / "arrays")  # as Orbax wrote it
    assert (tmp_path / "arrays" / "_CHECKPOINT_METADATA").exists()


def test_what_is_damaged_in_a_bucket_is_set_aside(bucket, quick):
    made, folder = results(4), run_path(f"{bucket}/damaged")
    with opened(folder, made) as run:
        run.append(made[:2])
        run.append(made[2:])
    first = entries(folder / "traces")[0]
    replace(first, first.read_bytes()[:-20])
    found = verify(folder)
    assert len(found.damaged_parts) == 1
    set_aside(folder, found)
    assert verify(folder).problems == []
    assert {path.name.partition("-")[2].split("-")[-1] for path in entries(folder / "damaged")} == {
        "results.parquet",
        "traces.parquet",
        "embeddings",
    }
    same(read_results(folder), made[2:])


def test_a_lease_keeps_others_out_until_it_is_given_back(bucket, quick):
    folder = run_path(f"{bucket}/leased/lock")
    with leased(folder, int) as number:
        assert number == 1
        assert leaseholder(folder).pid == os.getpid()
        with (
            pytest.warns(UserWarning, match="for a sign of life of process"),
            pytest.raises(UserError, match=rf"another process works on this run \(process {os.getpid()} on"),
            leased(folder, int),
        ):
            pass
        assert leaseholder(folder).pid == os.getpid()
    assert leaseholder(folder) is None
    with leased(folder, lambda: 7) as number:  # at once: no warning
        assert number == 8
        assert len(entries(folder)) == 1


def test_a_lease_that_is_not_renewed_is_taken_over(bucket, quick, monkeypatch):
    made, folder = results(2), run_path(f"{bucket}/slow")
    monkeypatch.setattr("onestep_jax.store.leases.BEAT", 60.0)  # one that hangs
    slow = opened(folder, made)
    monkeypatch.setattr("onestep_jax.store.leases.BEAT", 0.2)
    with pytest.warns(UserWarning, match="waiting up to 1 s"):
        other = opened(folder, made)
    with other:
        slow.append(made[:1])
        with pytest.raises(UserError, match="the run was taken over"):
            slow.wait()
        other.append(made)
        other.wait()
        with pytest.raises(UserError, match="the run was taken over"):
            slow.close()
        assert read_status(folder).owner is not None
    same(read_results(folder), made)


def test_a_stalled_opening_and_the_one_that_takes_over_have_sessions_of_two_numbers(bucket, quick, monkeypatch):
    """The first stops between taking the lease and writing its session, until the second has written its own."""
    made, folder = results(2), run_path(f"{bucket}/stalled")
    written, others = sessions.replace, []

    def stalled(*args):
        monkeypatch.setattr("onestep_jax.store.sessions.replace", written)
        with pytest.warns(UserWarning, match="waiting up to 1 s"):
            others.append(opened(folder, made))
        written(*args)

    monkeypatch.setattr("onestep_jax.store.sessions.replace", stalled)
    monkeypatch.setattr("onestep_jax.store.leases.BEAT", 60.0)  # its lease runs out
    first = opened(folder, made)
    (second,) = others
    with first:
        assert first.session.number != second.session.number
        second.append(made[:1])
        with pytest.raises(UserError, match="the run was taken over"):
            second.wait()
        first.append(made)
        first.wait()
        with pytest.raises(UserError, match="the run was taken over"):
            second.close()
    same(read_results(folder), made)


def test_what_was_committed_too_late_is_taken_back(bucket, quick):
    """The session ends between the look before the write and the one after it."""
    folder, looks = run_path(f"{bucket}/late"), iter([None, UserError("the run was taken over")])

    def check():
        if error := next(looks):
            raise error

    with pytest.raises(UserError, match="taken over"):
        replace(folder / "results.parquet", b"content", check)
    assert entries(folder) == []


@pytest.mark.long
def test_a_killed_job_in_a_bucket_is_gone_on_with(bucket, tiny_folder, tmp_path, quick, capsys):
    texts, address = tmp_path / "lines.txt", f"{bucket}/killed"
    rows = np.random.default_rng(7).integers(60, size=(16, 8))
    texts.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rows) + "\n")
    words = ["--model", tiny_folder, "--texts", texts, "--split", "lines", "--length", 8, "--run", address]
    words = [str(word) for word in (*words, "--slots", 2, "--preset", "paper", "--steps", 1000, "--save-every", 0.5)]
    job = Job(words, 2, 1)
    deadline = time.monotonic() + 120
    while job.running() and not entries(run_path(address) / "results") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert job.running(), job.wait()
    job.send(signal.SIGKILL, [0, 1])
    job.wait()
    before = read_results(address)
    assert 0 < len(before) < 16
    with pytest.warns(UserWarning, match="for a sign of life"):
        assert main(["fit", *words]) == 0
    after = read_results(address)
    assert [text.index for text in after] == list(range(16))
    for text in before:
        np.testing.assert_array_equal(text.vectors["e"], after[text.index].vectors["e"])
    assert verify(run_path(address), decoding_of(load_model(tiny_folder))).problems == []
    capsys.readouterr()
    assert main(["status", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 0
    assert main(["export", address, "--out", str(tmp_path / "out.safetensors")]) == 0
    assert main(["report", address, "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.html").exists()


def test_errors_of_the_storage_are_told_in_one_line(bucket, tmp_path, monkeypatch):
    class Refused(Exception):
        pass

    path = run_path(f"{bucket}/refused/file")

    def refuse(*_, **__):
        raise Refused("403, no permission")

    for name in ("pipe_file", "_put_file"):
        monkeypatch.setattr(path.fs, name, refuse)
    with pytest.raises(OSError, match="Refused: 403, no permission"):
        create(path, b"content")
    (tmp_path / "some").touch()
    with pytest.raises(OSError, match="Refused: 403, no permission"):
        send(tmp_path, path)


@pytest.mark.parametrize("kind", ["results", "traces", "embeddings"])
def test_what_may_not_be_read_in_a_bucket_is_not_damaged(bucket, quick, monkeypatch, kind):
    """The library has words of its own for that, some of them without a number of the operating system."""
    made, folder = results(3), run_path(f"{bucket}/forbidden-{kind}")
    with opened(folder, made) as run:
        run.append(made)

    def forbidding(read):
        def asked(path, *given, **how):
            if f"/{kind}/" in path:
                raise OSError(f"Forbidden: {path}")
            return read(path, *given, **how)

        return asked

    monkeypatch.setattr("onestep_jax.store.listing.PAUSES", ())
    with monkeypatch.context() as patch:
        for name in ("gather_batch_size", "nofiles_gather_batch_size"):  # else what is asked after a refusal waits
            patch.delitem(fsspec.config.conf, name)
        for name in ("cat_file", "_cat_file", "_cat_file_concurrent", "_get_file"):
            patch.setattr(folder.fs, name, forbidding(getattr(folder.fs, name)))
        (problem,) = verify(folder).problems
        assert "cannot be read (Forbidden:" in problem.what
        assert not problem.damage
        with pytest.raises(UserError, match="nothing is known to be damaged"):
            read_results(folder)
    same(read_results(folder), made)


def test_a_listing_that_a_bucket_refuses_is_no_empty_folder(bucket, quick, monkeypatch):
    """Nothing would be recorded then, and what is there would be swept away as left over."""
    made, folder = results(3), run_path(f"{bucket}/unlisted")
    with opened(folder, made) as run:
        run.append(made)
    listed, asked = folder.fs._list_objects, []

    def forbidding(which):
        async def forbidden(path, *given, **how):
            asked.append(path)
            if len(asked) in which:
                raise OSError(f"Forbidden: {path}")
            return await listed(path, *given, **how)

        asked.clear()
        return forbidden

    monkeypatch.setattr("onestep_jax.store.listing.PAUSES", (0.0,))
    with monkeypatch.context() as patch:
        patch.setattr(folder.fs, "_list_objects", forbidding(range(100)))
        for read in (sweep_away, read_results):
            with pytest.raises(UserError, match=r"cannot be read \(Forbidden:.*nothing is known to be damaged"):
                read(folder)
        patch.setattr(folder.fs, "_list_objects", forbidding(()))
        sweep_away(folder)
        for number in range(1, 1 + len(asked)):
            patch.setattr(folder.fs, "_list_objects", forbidding([number]))
            sweep_away(folder)
    same(read_results(folder), made)


def test_a_file_with_the_name_of_a_folder_hides_nothing(bucket, quick):
    """A local run that was copied to a bucket brings its lock file, where a bucket has leases."""
    folder = run_path(f"{bucket}/copied")
    replace(folder / "lock", b"")
    assert entries(folder / "lock") == []
    with leased(folder / "lock", lambda: 0) as number:
        assert [path.name for path in entries(folder / "lock")] == [f"{number:06d}"]
        holder = leaseholder(folder / "lock")
        assert holder is not None
        assert holder.pid == os.getpid()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "nosuch://bucket/run"], "nosuch://bucket/run: cannot open such an address"),
        (["report", "gs://bucket/run"], "gs://bucket/run: expected a local folder"),
        (["demo", "--run", "gs://bucket/run"], "gs://bucket/run: expected a local folder"),
        (["status", "gs://bucket/run[1]"], "gs://bucket/run[1]: *, ? and [ in an address are patterns"),
        (["fit", "--texts", "demo", "--length", "4", "--run", "gs://bucket/ru?/*"], "gs://bucket/ru?/*: *, ? and ["),
        (["fit", "--texts", "demo", "--length", "4", "--run", ""], "'': expected a run directory"),
    ],
)
def test_addresses_that_cannot_be(capsys, words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_an_address_is_no_pattern():
    """The library of the storage would read, copy and delete what matches it."""
    for address in ("memory://runs/run[1]", UPath("memory://runs/run[1]")):
        with pytest.raises(UserError, match="give a name without"):
            run_path(address)


def test_without_the_library_the_cure_is_named():
    gone = (
        "import sys; sys.modules['upath'] = None; from onestep_jax.cli.parser import main; main(['status', 'gs://a/b'])"
    )
    done = subprocess.run([sys.executable, "-c", gone], capture_output=True, text=True)
    assert "install onestep_jax[gcs]" in done.stderr


def test_local_paths_stay_what_they_are(tmp_path):
    assert run_path(str(tmp_path)) == local_folder(str(tmp_path)) == tmp_path

"""What can go wrong around a run: each fault ends in one clear line, and what was recorded stays as it was."""

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from options import quick_of
from store_runs import IDENTITY, opened, results, same, task

from onestep_jax import UserError, read_results
from onestep_jax.errors import Damaged
from onestep_jax.store import background_writer as writer
from onestep_jax.store import cleanup as upkeep
from onestep_jax.store import commits, sessions
from onestep_jax.store import storage as files
from onestep_jax.store.locks import holder
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parts import part_files
from onestep_jax.store.reading import part_names
from onestep_jax.store.run import join_run
from onestep_jax.store.status import read_status
from onestep_jax.store.verify import set_aside, verify


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(writer, "RETRIES", (0.01, 0.02))


def recorded_run(folder, texts, apart_parts=1):
    """A run whose texts were recorded in parts of equal size."""
    with opened(folder, texts) as run:
        for first in range(0, len(texts), len(texts) // apart_parts):
            run.append(texts[first : first + len(texts) // apart_parts])
    return folder


def files_of_a_part(folder):
    """Every file of the first part, as its path within the run."""
    places = part_files(folder, part_names(folder)[0]).values()
    every = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [path for path in every if path.is_file() and path.stat().st_size]


def said(call) -> str | None:
    """The one line in which a call refuses, or None if it does not."""
    message = None
    try:
        call()
    except UserError as error:
        message = str(error)
    assert message is None or "\n" not in message
    return message


@contextlib.contextmanager
def one_warning(words):
    """However often a write is tried again, a person is told once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert len(caught) == 1
    assert words in str(caught[0].message)


# --- what the disk does to files ---


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_truncated_or_missing_file_is_named_with_its_texts(tmp_path, damage):
    texts = results(3)
    folder = recorded_run(tmp_path / "run", texts)
    for path in files_of_a_part(folder):
        kind, *inside = path.relative_to(folder).parts
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2]) if damage == "truncated" else path.unlink()
        if kind == "results" and damage == "missing":
            assert len(read_results(folder)) == 0  # the commit record: without it nothing was recorded
        else:
            message = said(lambda: same(read_results(folder), texts))
            if message is None:  # bookkeeping of Orbax that reading does not need
                assert {"_CHECKPOINT_METADATA", "commit_success.txt", "ocdbt.process_0"} & set(inside)
            else:
                assert f"{folder / kind}/000001-0000-000000" in message
                assert "damaged part of the run" in message
                assert "onestep verify DIR --drop" in message
                assert kind == "results" or all(text.text_id in message for text in texts)
        path.write_bytes(content)
    same(read_results(folder), texts)


@pytest.mark.long
@pytest.mark.parametrize(("width", "places"), [(4, 12), (256, 24)])
def test_a_flipped_bit_never_passes_for_a_result(tmp_path, width, places):
    texts = results(3, width=width)
    folder = recorded_run(tmp_path / "run", texts)
    noticed = {}
    for path in files_of_a_part(folder):
        content = path.read_bytes()
        for place in np.linspace(0, len(content) - 1, places).astype(int):
            flipped = bytearray(content)
            flipped[place] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            message = said(lambda: same(read_results(folder), texts))
            if message is not None:
                assert str(folder) in message
                noticed[path] = noticed.get(path, 0) + 1
        path.write_bytes(content)
    kinds = [path.relative_to(folder).parts[0] for path in noticed]
    assert {"results", "traces", "embeddings"} <= set(kinds)
    same(read_results(folder), texts)


@pytest.mark.parametrize("leaf", ["e", "m"])
def test_a_flipped_bit_of_a_vector_names_its_text(tmp_path, leaf):
    texts = results(5, width=256)
    folder = recorded_run(tmp_path / "run", texts)
    flip(folder / "embeddings", texts[3].vectors[leaf])
    with pytest.raises(UserError, match=f"text {texts[3].text_id}: its row, vectors or curves") as refused:
        read_results(folder)
    assert not any(text.text_id in str(refused.value) for text in texts if text is not texts[3])


def flip(folder: Path, vector: np.ndarray) -> None:
    """Flip a bit of one stored number."""
    flipped = bytearray(vector.tobytes())
    flipped[5] ^= 16
    holding = [path for path in folder.rglob("*") if path.is_file() and vector.tobytes() in path.read_bytes()]
    assert holding
    for path in holding:
        path.write_bytes(path.read_bytes().replace(vector.tobytes(), flipped))


def test_what_is_damaged_is_set_aside_and_the_rest_kept(tmp_path):
    texts = results(8, width=256)
    folder = recorded_run(tmp_path / "run", texts, apart_parts=2)
    flip(folder / "embeddings", texts[2].vectors["e"])
    found = verify(folder)
    assert [(problem.text_id, problem.damage) for problem in found.problems] == [(texts[2].text_id, True)]
    assert (found.texts, found.recorded, found.parts) == (8, 7, 2)
    assert set_aside(folder, found) == 3
    assert len(list((folder / "damaged").iterdir())) == 3
    whole = [text for text in texts if text is not texts[2]]
    same(read_results(folder), whole)
    assert verify(folder).problems == []
    with opened(folder, texts) as run:
        assert set(run.recorded()) == {text.text_id for text in whole}
        run.append([texts[2]])
    same(read_results(folder), texts)


def test_a_part_whose_results_cannot_be_read_is_set_aside_whole(tmp_path):
    texts = results(4)
    folder = recorded_run(tmp_path / "run", texts, apart_parts=2)
    part_files(folder, part_names(folder)[0])["results"].write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"results/000001-0000-000000.parquet: damaged .*which texts .* cannot be told"):
        opened(folder, texts)
    found = verify(folder)
    assert len(found.problems) == 1
    assert set_aside(folder, found) == 0
    same(read_results(folder), texts[2:])
    with opened(folder, texts) as run:
        run.append(texts[:2])
    same(read_results(folder), texts)


@pytest.mark.parametrize("what", ["arrays", "record"])
def test_a_damaged_state_is_named_and_set_aside(tmp_path, what):
    texts = results(4)
    array = np.random.default_rng(3).normal(size=(4, 256)).astype(np.float32)
    with opened(tmp_path / "run", texts) as run:
        run.save_state({"a": array}, {"tasks": [task(0, 37)]})
    if what == "arrays":
        flip(tmp_path / "run" / "state", array[2])
    else:
        (path,) = (tmp_path / "run" / "state").glob("*.json")
        path.write_text(path.read_text().replace("37", "39"))
    told = r"state/000001-0000-000000.*damaged saved state.*`onestep verify DIR --drop` sets it aside"
    if what == "arrays":  # they are read when their texts are begun
        with pytest.raises(Damaged, match=told):
            use_states(tmp_path / "run", texts)
    else:
        with pytest.warns(UserWarning, match=told):
            assert use_states(tmp_path / "run", texts) == []
    found = verify(tmp_path / "run")
    assert found.damaged_states == ["000001-0000-000000"]
    set_aside(tmp_path / "run", found)
    assert verify(tmp_path / "run").problems == []
    assert use_states(tmp_path / "run", texts) == []


def use_states(folder, texts):
    with opened(folder, texts) as run:
        return [run.load_state_arrays(name) for name, _ in run.saved_states()]


def test_a_damaged_table_of_texts_can_be_written_again(tmp_path):
    texts = results(3)
    folder = recorded_run(tmp_path / "run", texts)
    (folder / "texts.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"texts.parquet: damaged .*the same onestep fit writes it again"):
        read_results(folder)
    opened(folder, texts).close()
    same(read_results(folder), texts)


# --- what the storage refuses ---


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, in memory; skips where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or mount("-t", "tmpfs", "-o", "size=1m", "none", folder):
        pytest.skip("mounting a tmpfs needs root and CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode


def test_a_full_disk(small_disk, quick_retries):
    texts, folder = results(4), small_disk / "run"
    with opened(folder, texts) as run:
        run.append(texts[:2])
        run.save_state({"a": np.zeros(8)}, {"tasks": [task(2, 5)]})
    run = opened(folder, texts)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    run.append(texts[2:])
    assert "the disk is full" in str(said(run.wait))  # a warning would be an error
    for call in (lambda: run.save_state({}, {}), lambda: run.append(texts[2:]), run.close):
        assert "the disk is full); everything recorded before is intact" in str(said(call))
    assert "the disk is full" in str(said(lambda: opened(folder, texts)))
    same(read_results(folder), texts[:2])
    (small_disk / "filler").unlink()
    with opened(folder, texts) as run:
        assert [record for _, record in run.saved_states()] == [{"tasks": [task(2, 5)]}]
        run.append(texts[2:])
    same(read_results(folder), texts)


FULL = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from store_runs import opened, results, task
from onestep_jax.store import background_writer as writer
writer.RETRIES = (0.05, 0.1)
texts = results(4)
run = opened(Path({folder!r}), texts)
run.append(texts[:2])
run.wait()
with open({filler!r}, "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
run.save_state({{name: np.zeros((64, 1024)) for name in "abcdefgh"}}, {{"tasks": [task(2, 5)]}})
try:
    run.wait()
except ValueError as error:
    print("onestep: error:", error, file=sys.stderr)
"""


def test_a_full_disk_prints_its_line_and_nothing_before_it(small_disk):
    """tensorstore calls back into an event loop that a failed save has closed, from threads and at any time."""
    tests, filler = str(Path(__file__).parents[1] / "support"), str(small_disk / "filler")
    code = FULL.format(tests=tests, folder=str(small_disk / "run"), filler=filler)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert "the disk is full" in line


def test_a_future_that_a_failed_save_leaves_behind_is_not_logged(tmp_path, caplog):
    Arrays().save(tmp_path / "arrays", {"a": np.zeros(3)})
    loop = asyncio.new_event_loop()
    for said in ("RESOURCE_EXHAUSTED: no space left [tensorstore_spec='{}']", "of somebody else"):
        loop.create_future().set_exception(ValueError(said))
        gc.collect()
    loop.close()
    (record,) = [record for record in caplog.records if record.name == "asyncio"]
    assert "of somebody else" in str(record.exc_info[1])


def test_a_read_only_directory(small_disk):
    texts, folder = results(2), small_disk / "run"
    recorded_run(folder, texts)
    assert mount("-o", "remount,ro", small_disk) == 0
    message = said(lambda: opened(folder, texts))
    assert message is not None
    assert "cannot write" in message
    assert "Read-only" in message
    same(read_results(folder), texts)
    assert read_status(folder).left == 0
    assert verify(folder).problems == []


class Flaky:
    """`Arrays.save` that fails the first so many times for vectors of texts, after half of the work."""

    def __init__(self, monkeypatch, failures):
        self.calls = 0
        save = Arrays.save

        def fail(arrays, path, tree):
            save(arrays, path, tree)
            self.calls += path.parent.name == "embeddings"
            if path.parent.name == "embeddings" and self.calls <= failures:
                raise OSError(errno.EIO, "Input/output error", str(path))

        monkeypatch.setattr(Arrays, "save", fail)


def test_a_write_that_fails_now_and_then_is_tried_again(tmp_path, quick_retries, monkeypatch):
    texts = results(4)
    flaky = Flaky(monkeypatch, 2)
    with opened(tmp_path / "run", texts) as run, one_warning("a write failed and is tried again"):
        run.append(texts[:2])
        run.append(texts[2:])
        run.save_state({"a": np.zeros(2)}, {"tasks": []})
        run.wait()
    assert flaky.calls == 4
    same(read_results(tmp_path / "run"), texts)
    for kind in ("results", "embeddings", "traces"):
        assert len(list((tmp_path / "run" / kind).iterdir())) == 2  # nothing is left of the attempts that failed


def test_a_write_that_keeps_failing_ends_the_run(tmp_path, quick_retries, monkeypatch):
    texts = results(4)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts[:2])
        run.save_state({"a": np.zeros(2)}, {"tasks": [task(3, 9)]})
    run = opened(tmp_path / "run", texts)
    Flaky(monkeypatch, 100)
    with one_warning("Input/output error"):
        run.append(texts[2:])
        run.save_state({"a": np.ones(2)}, {"tasks": [task(2, 1)]})  # without the part before it, it must not be
        with contextlib.suppress(UserError):
            run.wait()
    for call in (run.wait, lambda: run.append(texts[2:]), lambda: run.save_state({}, {}), run.close):
        assert "cannot write ([Errno 5] Input/output error" in str(said(call))
    monkeypatch.undo()
    same(read_results(tmp_path / "run"), texts[:2])
    with opened(tmp_path / "run", texts) as run:
        assert [record for _, record in run.saved_states()] == [{"tasks": [task(3, 9)]}]


# --- other processes ---

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from store_runs import opened, results
texts = results(4)
run = opened(Path({folder!r}), texts, apart={apart})
run.append(texts[:2])
run.save_state({{"a": np.zeros(3)}}, {{"tasks": []}})
run.wait()
print("ready", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def other_writer(folder, apart=False):
    """Another process that has opened the run, recorded two texts and goes on."""
    code = WRITER.format(tests=str(Path(__file__).parents[1] / "support"), folder=str(folder), apart=apart)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_writer_is_refused_and_told_who_is_there(tmp_path):
    texts, folder = results(4), tmp_path / "run"
    with other_writer(folder) as process:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        message = str(said(lambda: opened(folder, texts)))
        assert f"another process works on this run (process {process.pid} on {os.uname().nodename} since 2" in message
        assert f"`kill {process.pid}`" in message
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        found = holder(folder / "lock")
        assert found is not None
        assert found.pid == process.pid
        same(read_results(folder), texts[:2])


@pytest.mark.parametrize("apart", quick_of([True, False]))
def test_the_lock_of_a_killed_process_does_not_block(tmp_path, apart):
    texts, folder = results(4), tmp_path / "run"
    with other_writer(folder, apart) as process:
        helpers = children(process.pid)
        assert bool(helpers) == apart
        for number in (signal.SIGINT, signal.SIGTERM):
            for helper in helpers:
                os.kill(helper, number)  # as a terminal or a batch system does to a whole group
        time.sleep(0.2)
        assert all(map(alive, helpers))
        process.kill()
        process.wait()
        assert (folder / "lock").read_text()
        with opened(folder, texts) as run:
            run.append(texts[2:])
        same(read_results(folder), texts)
        deadline = time.monotonic() + 10
        while any(map(alive, helpers)):
            assert time.monotonic() < deadline, "the process beside it outlives it"
            time.sleep(0.1)


def children(pid):
    """Ids of the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        if thread.name != str(pid)
        for child in (thread / "children").read_text().split()
    ]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_lock_of_another_host_or_a_child_says_what_to_do(tmp_path):
    texts, folder = results(1), tmp_path / "run"
    with opened(folder, texts):
        (folder / "lock").write_text('{"pid": 7, "host": "elsewhere", "since": "2026", "command": "onestep fit"}')
        message = str(said(lambda: opened(folder, texts)))
        assert "(process 7 on elsewhere since 2026, 'onestep fit'); wait for it or stop it there" in message
        assert f"delete {folder / 'lock'}" in message
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        about = f'{{"pid": {int(gone.stdout)}, "host": "{os.uname().nodename}", "since": "2026", "command": "x"}}'
        (folder / "lock").write_text(about)
        assert "a child of it holds the lock" in str(said(lambda: opened(folder, texts)))
        (folder / "lock").write_text("")
        assert "owner unknown" in str(said(lambda: opened(folder, texts)))


def test_a_look_at_the_lock_refuses_nobody(tmp_path):
    texts, folder = results(1), tmp_path / "run"
    opened(folder, texts).close()
    looking = os.open(folder / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.2, os.close, [looking]).start()
    opened(folder, texts).close()


# --- a process of an earlier session ---


def test_a_process_of_an_earlier_session_writes_nothing_more(tmp_path):
    texts, folder = results(4), tmp_path / "run"
    first = opened(folder, texts, processes=2)
    lingering = join_run(folder, IDENTITY, 1)
    lingering.append(texts[:1])
    lingering.save_state({"a": np.zeros(2)}, {"tasks": [task(3, 4)]})
    lingering.wait()
    first.close()
    with opened(folder, texts, processes=2) as second:
        before = sorted(folder.rglob("*"))
        lingering.append(texts[1:2])
        for call in (lingering.wait, lambda: lingering.save_state({}, {}), lambda: lingering.claim(0), lingering.close):
            message = str(said(call))
            assert "the run was taken over (process" in message
            assert "session 2) from session 1; this process stops" in message
        assert sorted(folder.rglob("*")) == before
        second.append(texts[2:])
    same(read_results(folder), [texts[0], *texts[2:]])


@pytest.mark.parametrize("what", ["part", "state"])
def test_a_takeover_just_before_the_commit_prevents_it(tmp_path, monkeypatch, what):
    texts, folder = results(4), tmp_path / "run"
    first = opened(folder, texts, processes=2)
    lingering = join_run(folder, IDENTITY, 1)
    first.close()
    check, checked = sessions.check_session, []

    def take_over_after(place, session):
        check(place, session)
        if session.number == 1:
            checked.append(session)
            if len(checked) == 2:  # the first is before the work begins, the second just before the rename
                opened(folder, texts).close()

    monkeypatch.setattr(commits, "check_session", take_over_after)
    monkeypatch.setattr(writer, "RETRIES", (0.01,))
    with one_warning("tried again"):
        if what == "part":
            lingering.append(texts)
        else:
            lingering.save_state({"a": np.zeros(2)}, {"tasks": [task(0, 1)]})
        assert "the run was taken over" in str(said(lingering.wait))
    assert len(checked) == 2
    assert len(read_results(folder)) == 0
    for kind in ("results", "embeddings", "traces", "state"):
        assert list((folder / kind).iterdir()) == []


def test_a_takeover_just_after_the_commit_keeps_it(tmp_path, monkeypatch):
    texts, folder = results(4), tmp_path / "run"
    first = opened(folder, texts, processes=2)
    lingering = join_run(folder, IDENTITY, 1)
    first.close()
    replace = os.replace

    def take_over_after(source, target):
        replace(source, target)
        if Path(target).parent.name == "results":
            monkeypatch.undo()
            opened(folder, texts).close()

    monkeypatch.setattr(files.os, "replace", take_over_after)
    lingering.append(texts)
    said(lingering.wait)
    same(read_results(folder), texts)
    assert verify(folder).problems == []


def test_a_commit_during_the_takeover_counts_or_fails(tmp_path, monkeypatch):
    texts, folder = results(3), tmp_path / "run"
    recorded_run(folder, texts)
    (committed,) = (folder / "results").iterdir()
    neighbour = committed.with_suffix(".parquet.tmp")
    committed.rename(neighbour)
    listed = upkeep.part_names

    def commit_after(place):
        names = listed(place)
        with contextlib.suppress(FileNotFoundError):
            os.replace(neighbour, committed)
            counted.append(committed)
        return names

    counted: list[Path] = []
    monkeypatch.setattr(upkeep, "part_names", commit_after)
    opened(folder, texts).close()
    same(read_results(folder), texts if counted else [])
    assert verify(folder).problems == []


# --- clocks ---


def test_a_clock_going_backwards_changes_nothing(tmp_path, monkeypatch):
    texts, folder = results(6), tmp_path / "run"
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for number in range(3):
        monkeypatch.setattr(time, "time", lambda number=number: 2e9 - 1e8 * number)
        monkeypatch.setattr(time, "gmtime", lambda number=number: time.struct_time((2040 - number, *[1] * 8)))
        with opened(folder, texts) as run:
            assert run.session.number == number + 1
            run.append(texts[2 * number : 2 * number + 2])
            run.save_state({"a": np.full(2, number)}, {"tasks": [task(5, 10 + number)]})
            run.wait()
            for path in folder.rglob("*"):
                os.utime(path, (2e9 - 1e8 * number,) * 2)
            found = read_status(folder)
            assert found.session is not None
            assert found.session.since.startswith(str(2040 - number))
            assert found.an_hour is None or found.an_hour > 0
    same(read_results(folder), texts)
    assert verify(folder).problems == []
    opened(folder, texts).close()
    assert list((folder / "state").iterdir()) == []

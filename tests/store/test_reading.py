"""Readers beside processes that replace what they read."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_runs import opened, results, same, task

from onestep_jax import UserError, read_results
from onestep_jax.store import cleanup as upkeep
from onestep_jax.store import commits, names, parts, status, storage, verify
from onestep_jax.store import reading as records
from onestep_jax.store import saved_states as states
from onestep_jax.store.names import part_name
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parquet import count_rows, read_about, read_rows, write_rows
from onestep_jax.store.parts import part_files, read_part, remove_part, write_part
from onestep_jax.store.reading import part_names, read_summary
from onestep_jax.store.saved_states import read_state, remove_state, write_state
from onestep_jax.store.status import read_status

TIMES = 12


class Replacing:
    """Before a part or state is read, another process replaces it by a newer one, twelve times."""

    def __init__(self, monkeypatch, module, function, replace):
        self.left, self.replace, self.busy = TIMES, replace, False
        read = getattr(module, function)

        def replaced(*given, **how):
            if self.left and not self.busy:
                self.busy, self.left = True, self.left - 1
                self.replace(self.name_of(given), part_name(1, 0, 900 - self.left))
                self.busy = False
            return read(*given, **how)

        monkeypatch.setattr(module, function, replaced)

    @staticmethod
    def name_of(given):
        """Of the part or state, which is given by its folder and name, or by a path."""
        return given[1] if len(given) > 1 and isinstance(given[1], str) else given[0].stem


@pytest.fixture
def run(tmp_path):
    """A run of six texts in three parts."""
    texts = results(6)
    with opened(tmp_path / "run", texts) as opened_run:
        for first in (0, 2, 4):
            opened_run.append(texts[first : first + 2])
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("module", "function", "look"),
    [
        (records, "read_part", read_results),
        (records, "read_part_table", read_summary),
        (status, "read_times", lambda run: read_status(run).recorded),
        (verify, "scan_part", lambda run: verify.verify(run).recorded * [0]),
        (upkeep, "read_part_table", lambda run: opened(run, results(6)).close() or read_results(run)),
        (commits, "count_texts", lambda run: opened(run, results(6)).close() or read_results(run)),
    ],
)
def test_parts_may_be_merged_under_a_reader_however_often(run, monkeypatch, module, function, look):
    tokens = {text.text_id: text.tokens for text in results(6)}

    def replace(name, newer):
        write_part(run, newer, read_part(run, name, tokens, None, Arrays()), None, Arrays(), about=ABOUT)
        remove_part(run, name)

    replacing = Replacing(monkeypatch, module, function, replace)
    assert len(look(run)) == 6
    assert not replacing.left
    assert not verify.verify(run).problems
    same(read_results(run), results(6))


ABOUT = {"elapsed": "1.0", "new": "2"}


def test_small_parts_may_vanish_while_they_are_merged(run, monkeypatch):
    monkeypatch.setattr(commits, "COMPACT_AT", 3)
    tokens = {text.text_id: text.tokens for text in results(6)}

    def replace(name, newer):
        write_part(run, newer, read_part(run, name, tokens, None, Arrays()), None, Arrays(), about=ABOUT)
        remove_part(run, name)

    replacing = Replacing(monkeypatch, commits, "read_part", replace)
    opened(run, results(6)).close()
    assert replacing.left < TIMES
    same(read_results(run), results(6))


@pytest.mark.parametrize("look", [lambda run: read_status(run).in_flight, lambda run: verify.verify(run).states * [0]])
def test_a_state_may_be_replaced_under_a_reader_however_often(run, monkeypatch, look):
    with opened(run, results(6)) as going:
        going.save_state({}, {"tasks": [task(1, 5)]})
        going.wait()
        for part in part_names(run):
            remove_part(run, part)

        def replace(name, newer):
            write_state(
                run, newer, {}, read_state(run, name).record, 0.0, going._committer.origin, Arrays(), lambda: None
            )
            remove_state(run, name)

        replacing = Replacing(monkeypatch, states, "read_state", replace)
        assert len(look(run)) == 1
        assert not replacing.left


def test_a_damaged_part_is_told_at_once_and_read_once(run, monkeypatch):
    part_files(run, part_names(run)[1])["traces"].write_bytes(b"PAR1")
    seen = []
    read = records.read_part
    monkeypatch.setattr(records, "read_part", lambda *given: seen.append(given[1]) or read(*given))
    with pytest.raises(UserError, match="damaged part of the run"):
        read_results(run)
    assert seen == part_names(run)[:2]


def test_verify_counts_what_was_merged_after_its_last_look(run, monkeypatch):
    """Parts that appear between the last scan and the end are not left out."""
    listed, calls = verify.part_names, []
    tokens = {text.text_id: text.tokens for text in results(6)}

    def merge_late(folder):
        calls.append(folder)
        if len(calls) == 3:
            texts = [text for name in listed(run) for text in read_part(run, name, tokens, None, Arrays())]
            write_part(run, part_name(1, 0, 500), texts, None, Arrays(), about=ABOUT)
            for name in listed(run)[:-1]:
                remove_part(run, name)
        return listed(folder)

    monkeypatch.setattr(verify, "part_names", merge_late)
    found = verify.verify(run)
    assert (found.problems, found.recorded) == ([], 6)


def test_the_commit_record_goes_first(run, monkeypatch):
    removed = []
    monkeypatch.setattr("onestep_jax.store.names.remove", lambda path: removed.append(path.relative_to(run).as_posix()))
    with opened(run, results(6)) as going:
        going.save_state({"a": results(1)[0].vectors["e"]}, {"tasks": [task(1, 5)]})
    name = part_names(run)[0]
    remove_part(run, name)
    assert removed == [f"results/{name}.parquet", f"traces/{name}.parquet", f"embeddings/{name}"]
    assert [path.split("/")[0] for path in removed] == list(parts.KINDS)
    removed.clear()
    remove_state(run, "000002-0000-000000")
    assert removed == ["state/000002-0000-000000.json", "state/000002-0000-000000"]


def remove_slowly(path):
    """As on a file system where each removal takes a while: a folder is there for long with a part of its files."""
    for file in sorted(path.rglob("*")) if path.is_dir() else []:
        if file.is_file():
            file.unlink()
            time.sleep(0.01)
    storage.remove(path)
    time.sleep(0.01)


@pytest.mark.long
def test_looks_succeed_while_another_process_merges_and_removes_slowly(tmp_path, monkeypatch):
    """Status, verify and what a report reads, over and over, from the first part to the last removal."""
    for module in (names, upkeep):
        monkeypatch.setattr(module, "remove", remove_slowly)
    monkeypatch.setattr(commits, "COMPACT_AT", 4)
    texts, folder = results(8), tmp_path / "run"
    opened(folder, texts).close()

    def work():
        with opened(folder, texts) as writing:
            for i, text in enumerate(texts):
                writing.append([text])
                writing.save_state({"a": np.zeros(3)}, {"tasks": [task(min(i + 1, 7), 5)]})
                writing.wait()

    counts, looks = [0], 0
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while True:
            last = done.done()
            assert verify.verify(folder).problems == []
            counts.append(len(read_status(folder).recorded))
            counts.append(len(read_results(folder)))
            looks += 1
            if last:
                break
        done.result()
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert looks > 3


def test_arrow_is_given_no_file_of_pythons(tmp_path, monkeypatch):
    """Its threads let go of one a moment after it was read, and abort the process if that is its end."""
    given = []

    def watched(read, source, **how):
        given.append(source)
        return read(source, **how)

    for name in ("read_table", "read_metadata", "read_schema"):
        monkeypatch.setattr(pq, name, functools.partial(watched, getattr(pq, name)))
    path = tmp_path / "a.parquet"
    write_rows(path, [{"a": 1}] * 3, about={"run": "x"})
    assert read_rows(path) == [{"a": 1}] * 3
    assert count_rows(path) == 3
    assert read_about(path) == {"run": "x"}
    assert len(given) == 4
    assert all(isinstance(source, pa.BufferReader) for source in given)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 4 + b"PAR1", b"no table at all"])
def test_a_footer_that_is_damaged(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    for read in (count_rows, read_about):
        with pytest.raises((OSError, ValueError)):
            read(path)

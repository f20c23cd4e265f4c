"""The run directory: whole parts or none, bounded files, many processes, states that are needed, honest refusals."""

import json
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from operator import methodcaller

import numpy as np
import pytest
from store_runs import IDENTITY, opened, results, same, task

from onestep_jax import UserError, read_results
from onestep_jax.errors import Stranded
from onestep_jax.store import background_writer as writer
from onestep_jax.store import commits, parts
from onestep_jax.store import orbax_arrays as arrays
from onestep_jax.store import run as store
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.run import join_run
from onestep_jax.store.storage import create


@pytest.mark.parametrize("shared", [False, True])
def test_round_trip_in_source_order(tmp_path, shared):
    texts = results(5, shared)
    identity = IDENTITY | {"scheme": {"arrangement": "one-step", "share": "m" if shared else None, "group": 1}}
    with opened(tmp_path / "run", texts, identity) as run:
        run.append(texts[3:])
        run.append(texts[:3])
        run.wait()
        assert set(run.recorded()) == {text.text_id for text in texts}
    same(read_results(tmp_path / "run"), texts)


@pytest.mark.long
def test_many_small_parts_are_merged(tmp_path):
    texts = results(40)
    with opened(tmp_path / "run", texts, processes=2) as run:
        other = join_run(tmp_path / "run", IDENTITY, 1)
        for i, text in enumerate(texts):
            writer = (run, other)[i % 2]
            writer.append([text])
            writer.wait()
            for kind in parts.KINDS:
                assert len(list((tmp_path / "run" / kind).iterdir())) <= 2 * commits.COMPACT_AT
        other.close()
    same(read_results(tmp_path / "run"), texts)
    assert len(list((tmp_path / "run" / "results").iterdir())) < 20


def test_small_parts_of_earlier_sessions_are_merged(tmp_path):
    texts = results(commits.COMPACT_AT)
    for text in texts:
        with opened(tmp_path / "run", texts) as run:
            run.append([text])
    opened(tmp_path / "run", texts).close()
    for kind in parts.KINDS:
        assert len(list((tmp_path / "run" / kind).iterdir())) == 1
    same(read_results(tmp_path / "run"), texts)


@pytest.mark.long
def test_a_kill_while_merging_loses_and_doubles_nothing(tmp_path, monkeypatch):
    texts = results(commits.COMPACT_AT)
    removed = []

    def die(folder, name):
        removed.append(name)
        if len(removed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(commits, "remove_part", die)
    run = opened(tmp_path / "run", texts)
    for text in texts:
        run.append([text])
    with pytest.raises(KeyboardInterrupt):
        run.close()
    monkeypatch.undo()
    assert len(list((tmp_path / "run" / "results").iterdir())) > 1
    same(read_results(tmp_path / "run"), texts)
    opened(tmp_path / "run", texts).close()
    for kind in parts.KINDS:
        assert len(list((tmp_path / "run" / kind).iterdir())) == 1
    same(read_results(tmp_path / "run"), texts)


def test_a_part_without_its_results_file_never_was(tmp_path, monkeypatch):
    texts = results(4)
    write, seen = parts.write_rows, []

    def die(path, rows, **how):
        seen.append(path.parent.name)
        if path.parent.name == "results" and len(seen) > 2:
            raise KeyboardInterrupt
        write(path, rows, **how)

    monkeypatch.setattr(parts, "write_rows", die)
    run = opened(tmp_path / "run", texts)
    run.append(texts[:2])
    run.append(texts[2:])
    with pytest.raises(KeyboardInterrupt):
        run.close()
    assert seen == ["traces", "results"] * 2
    monkeypatch.undo()
    same(read_results(tmp_path / "run"), texts[:2])
    assert len(list((tmp_path / "run" / "embeddings").iterdir())) == 2
    with opened(tmp_path / "run", texts) as run:
        assert len(list((tmp_path / "run" / "embeddings").iterdir())) == 1
        run.append(texts[2:])
    same(read_results(tmp_path / "run"), texts)


def test_processes_write_side_by_side(tmp_path):
    texts = results(6)
    with opened(tmp_path / "run", texts, processes=3) as run:
        others = [join_run(tmp_path / "run", IDENTITY, number) for number in (1, 2)]
        for number, writer in enumerate((run, *others)):
            writer.append(texts[2 * number : 2 * number + 2])
            writer.save_state({"a": np.full(3, number)}, {"tasks": [task(number, 10)]})
        for other in others:
            other.close()
        run.wait()
        assert set(run.recorded()) == {text.text_id for text in texts}
    same(read_results(tmp_path / "run"), texts)
    names = {path.stem for path in (tmp_path / "run" / "results").iterdir()}
    assert [name[:11] for name in sorted(names)] == ["000001-0000", "000001-0001", "000001-0002"]


def test_joining_needs_a_session_with_a_place(tmp_path):
    texts = results(1)
    with pytest.raises(UserError, match="no run directory"):
        join_run(tmp_path / "run", IDENTITY, 1)
    with opened(tmp_path / "run", texts, processes=2, block=5):
        with join_run(tmp_path / "run", IDENTITY, 1) as joined:
            assert (joined.process, joined.processes, joined.session.block) == (1, 2, 5)
        for process in (0, 2):
            with pytest.raises(UserError, match=f"no place for process {process} in the run; expected 1 to 1"):
                join_run(tmp_path / "run", IDENTITY, process)
        with pytest.raises(UserError, match="seed: 0 there, 1 here"):
            join_run(tmp_path / "run", IDENTITY | {"seed": 1}, 1)
    (tmp_path / "run" / "session.json").write_text("{")
    with pytest.raises(UserError, match=r"session.json: damaged session: not valid JSON .*same onestep fit writes it"):
        join_run(tmp_path / "run", IDENTITY, 1)


def test_a_damaged_session_file_is_mended_and_its_number_not_used_again(tmp_path):
    texts = results(2)
    for text in texts:
        with opened(tmp_path / "run", texts) as run:
            run.append([text])
        (tmp_path / "run" / "session.json").write_text("{")
    with opened(tmp_path / "run", texts) as run:
        assert run.session.number == 3
    same(read_results(tmp_path / "run"), texts)


def test_a_block_is_claimed_once_a_session(tmp_path):
    texts = results(1)
    for _ in range(2):
        with opened(tmp_path / "run", texts, processes=4) as run:
            writers = [run, *(join_run(tmp_path / "run", IDENTITY, number) for number in (1, 2, 3))]
            with ThreadPoolExecutor(4) as threads:
                for block in (0, 7):
                    assert sorted(threads.map(methodcaller("claim", block), writers)) == [False, False, False, True]
            assert len(list((tmp_path / "run" / "claims").iterdir())) == 2


def test_a_process_knows_when_the_others_have_left(tmp_path):
    with opened(tmp_path / "run", results(1), processes=3) as first:
        second, third = (join_run(tmp_path / "run", IDENTITY, number) for number in (1, 2))
        second.close()
        assert not first.others_left()
        third.close()
        assert first.others_left()
    with opened(tmp_path / "run", results(1), processes=3) as again:
        assert not again.others_left()


def test_a_claim_is_tried_again(tmp_path, monkeypatch):
    refusals = iter([OSError(5, "Input/output error"), None])

    def refuse_once(path, content):
        if error := next(refusals):
            raise error
        return create(path, content)

    monkeypatch.setattr(writer, "RETRIES", (0.01,))
    with opened(tmp_path / "run", results(1), processes=2) as run:
        monkeypatch.setattr(store, "create", refuse_once)
        with pytest.warns(UserWarning, match=r"a write failed and is tried again \(.*Input/output error"):
            assert run.claim(0)
        monkeypatch.setattr(store, "create", create)
        assert not run.claim(0)


def test_one_that_cannot_say_that_it_leaves_is_stranded(tmp_path, monkeypatch):
    def refuse(path, _):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(store, "create", refuse)
    with pytest.raises(Stranded, match=r"No space left on device.*the other processes are not told"):
        opened(tmp_path / "run", results(1), processes=2).close()
    run = opened(tmp_path / "run", results(1), processes=2)  # the lock was let go
    with pytest.raises(Stranded), run:
        raise UserError("what ended it")


# --- saved states ---


def saved(folder, texts, *records):
    """Save states one after the other in one session."""
    with opened(folder, texts) as run:
        for number, record in enumerate(records):
            run.save_state({"a": np.full((2, 2), number, np.float32)}, record)
            run.wait()


def test_a_state_replaces_the_one_before(tmp_path):
    texts = results(4)
    saved(tmp_path / "run", texts, {"tasks": [task(0, 5)]}, {"tasks": [task(0, 9)], "more": 1})
    assert len(list((tmp_path / "run" / "state").iterdir())) == 2
    with opened(tmp_path / "run", texts) as run:
        ((name, record),) = run.saved_states()
        assert record == {"tasks": [task(0, 9)], "more": 1}
        np.testing.assert_array_equal(run.load_state_arrays(name)["a"], np.ones((2, 2)))
        run.save_state({}, {})
        run.wait()
        assert run.saved_states() == [(name, record)]  # its own are not among them


def test_states_of_earlier_sessions_stay_while_they_are_needed(tmp_path):
    texts, folder = results(4), tmp_path / "run"
    saved(folder, texts, {"tasks": [task(0, 30), task(1, 20)]})
    saved(folder, texts, {"tasks": [task(2, 5), task(1, 25), task(0, 10)]})

    def kept():
        with opened(folder, texts) as run:
            return [[(t["texts"][0], t["trace"][0][0]) for t in record["tasks"]] for _, record in run.saved_states()]

    assert kept() == [[(2, 5), (1, 25), (0, 10)], [(0, 30), (1, 20)]]  # the older one is further with text 0
    with opened(folder, texts) as run:
        run.append([texts[0]])
    assert kept() == [[(2, 5), (1, 25), (0, 10)]]
    with opened(folder, texts) as run:
        run.append(texts[1:3])
    assert kept() == []
    assert list((folder / "state").iterdir()) == []


def test_a_finished_seed_is_further_than_any_step(tmp_path):
    texts, folder = results(2), tmp_path / "run"
    saved(folder, texts, {"outcomes": [task(0, 30)]})
    saved(folder, texts, {"tasks": [task(0, 500)]})
    with opened(folder, texts) as run:
        assert len(run.saved_states()) == 2
    saved(folder, texts, {"tasks": [task(0, 1, seed=1)], "outcomes": [task(0, 30)]})
    with opened(folder, texts) as run:
        assert [list(record) for _, record in run.saved_states()] == [["tasks", "outcomes"]]


# --- writing in the background ---


class Gate:
    """`Arrays.save` that waits until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.order = threading.Event(), []
        save = Arrays.save

        def slow(arrays, path, tree):
            assert self.open.wait(20)
            self.order.append((path.parent.name, sorted(tree)))
            save(arrays, path, tree)

        monkeypatch.setattr(Arrays, "save", slow)


def test_the_device_does_not_wait_for_the_storage(tmp_path, monkeypatch):
    texts, gate = results(3), Gate(monkeypatch)
    with opened(tmp_path / "run", texts) as run:
        for number, text in enumerate(texts):
            run.append([text])
            run.save_state({f"a{number}": np.zeros(2)}, {"tasks": [task(0, 1)]})
        assert len(run.recorded()) == 0
        gate.open.set()
    # Of states that waited only the newest, and after the parts that were handed over before it.
    assert gate.order == [("embeddings", ["e", "m"])] * 3 + [("state", ["a2"])]
    same(read_results(tmp_path / "run"), texts)


def test_a_state_is_written_as_it_was_handed_over(tmp_path, monkeypatch):
    texts, gate = results(2), Gate(monkeypatch)
    record = {"tasks": [task(0, 1)]}
    with opened(tmp_path / "run", texts) as run:
        run.save_state({"a": np.zeros(2)}, record)
        record["tasks"][0]["trace"].append([2, 0.0, 1.0])
        gate.open.set()
    with opened(tmp_path / "run", texts) as run:
        assert run.saved_states()[0][1] == {"tasks": [task(0, 1)]}


def test_no_more_than_a_few_jobs_wait(tmp_path, monkeypatch):
    texts, gate = results(12), Gate(monkeypatch)
    with opened(tmp_path / "run", texts) as run:
        handing = threading.Thread(target=lambda: [run.append([text]) for text in texts])
        handing.start()
        handing.join(0.5)
        assert handing.is_alive()
        gate.open.set()
        handing.join(20)
        assert not handing.is_alive()
    same(read_results(tmp_path / "run"), texts)


def test_arrays_are_saved_and_loaded_apart(tmp_path):
    apart, here = Arrays(apart=True), Arrays()
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
    try:
        assert apart._call(os.getpid) != os.getpid()
        apart.save(tmp_path / "a", tree)
        with pytest.raises(OSError, match=r"Errno|NOT_FOUND"):
            apart.save(tmp_path / "a" / "_CHECKPOINT_METADATA" / "b", tree)
        for loaded in (apart.load(tmp_path / "a"), here.load(tmp_path / "a")):
            for name, array in tree.items():
                np.testing.assert_array_equal(loaded[name], array)
                assert loaded[name].dtype == array.dtype
        with pytest.raises(OSError, match="the process that saves arrays has ended"):
            apart._call(os._exit, 1)
        apart.save(tmp_path / "b", tree)
        np.testing.assert_array_equal(here.load(tmp_path / "b")["a"], tree["a"])
    finally:
        apart.close()


def test_a_run_is_written_apart(tmp_path):
    texts = results(2)
    with opened(tmp_path / "run", texts, apart=True) as run:
        run.append(texts)
        same(run.results(), texts)


# --- refusals ---


def test_another_identity_is_refused_and_names_the_keys(tmp_path):
    texts = results(1)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match="seed: 0 there, 1 here") as refused:
        opened(tmp_path / "run", texts, IDENTITY | {"seed": 1})
    assert "model" not in str(refused.value).split(";")[1]
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="not empty and no run directory"):
        opened(tmp_path, results(1))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_kill_while_creating_is_no_obstacle(tmp_path, monkeypatch):
    texts = results(2)
    for victim in ("write_rows", "replace"):

        def die(path, *_):
            path.with_suffix(path.suffix + ".tmp").write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(store, victim, die)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path / "run", texts)
        monkeypatch.undo()
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
    same(read_results(tmp_path / "run"), texts)


def test_arrays_that_read_back_differently_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_load", lambda path: {"a": np.ones(3)})
    with pytest.raises(OSError, match="reads back differently"):
        Arrays().save(tmp_path / "a", {"a": np.zeros(3)})


def test_what_is_handed_over_is_not_refused_by_itself(tmp_path, monkeypatch):
    """However quick the writer is, a call learns of earlier ones only."""

    def at_once(function, job):
        function(job)
        done = Future()
        done.set_result(None)
        return done

    run = opened(tmp_path / "run", results(4))
    monkeypatch.setattr(run._writer._thread, "submit", at_once)
    monkeypatch.setattr(
        run._committer, "write_part", lambda *_, **__: (_ for _ in ()).throw(UserError("the disk is gone"))
    )
    run.append(results(4)[:2])
    with pytest.raises(UserError, match="the disk is gone"):
        run.append(results(4)[2:])
    with pytest.raises(UserError, match="the disk is gone"):
        run.close()


def test_a_load_waits_for_a_save(tmp_path, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    tree, begun, go_on, order = {"x": np.arange(3.0)}, threading.Event(), threading.Event(), []
    Arrays().save(tmp_path / "a", tree)
    save, describe = ocp.save, ocp.metadata

    def slow_save(*given):
        begun.set()
        assert go_on.wait(60)
        save(*given)
        order.append("saved")

    def noted_metadata(*given):
        order.append("described")
        return describe(*given)

    monkeypatch.setattr(ocp, "save", slow_save)
    monkeypatch.setattr(ocp, "metadata", noted_metadata)
    with ThreadPoolExecutor(2) as pool:
        saving = pool.submit(Arrays().save, tmp_path / "b", tree)
        assert begun.wait(60)
        loading = pool.submit(Arrays().load, tmp_path / "a")
        time.sleep(0.3)
        go_on.set()
        saving.result()
        np.testing.assert_array_equal(loading.result()["x"], tree["x"])
    assert order[0] == "saved"


def test_arrays_that_cannot_be_described_are_refused_with_the_reason(tmp_path):
    """Orbax only logs what is wrong with a description, and goes on without one."""
    Arrays().save(tmp_path / "a", {"x": np.arange(3.0)})
    (description,) = (tmp_path / "a").rglob("_METADATA")
    description.write_text("{")
    with pytest.raises(ValueError, match="the description of the arrays cannot be read: Failed to get metadata"):
        Arrays().load(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no run directory"), ("{", "not valid JSON"), (json.dumps({"format": 99}), "run format 99")],
)
def test_unreadable_configs(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"format": 1}', '{"experiment": "x"}'])
def test_a_config_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"run format (None|1); this version reads 3"):
        read_results(str(tmp_path))

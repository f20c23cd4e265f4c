"""The run directory: whole parts or none, bounded files, one writer, honest refusals."""

import dataclasses
import errno
import json

import numpy as np
import pytest

from onestep_jax import Results, TextResult, UserError, files, parts, read_results, store
from onestep_jax.results import Trial
from onestep_jax.store import open_run

IDENTITY = {"model": "abc", "scheme": {"arrangement": "one-step", "share": None, "group": 1}, "seed": 0}
SETTINGS = {"model": "default", "slots": 4}


def results(count: int, shared: bool = False) -> list[TextResult]:
    rng = np.random.default_rng(count)
    m = rng.normal(size=4).astype(np.float32)
    made = []
    for i in range(count):
        trace = np.array([[10, 2.5, 0.5], [17, 0.25, 1.0]])
        path = {name: rng.normal(size=(2, 4)).astype(np.float32) for name in "em"} if i % 2 else None
        trial = Trial(0, "solved", 1.0, 0.25, 17, 16, trace, np.arange(3, dtype=np.int32), path)
        vectors = {
            "e": rng.normal(size=4).astype(np.float32),
            "m": m if shared else rng.normal(size=4).astype(np.float32),
        }
        tokens = np.arange(i, i + 3, dtype=np.int32)
        nats = np.array([np.nan, 0.5, i], np.float32)
        numbers = (1.0, 3, 0.25, 17, 16, 1.5, 0, "solved", 0.5 + i)
        made.append(TextResult(i, f"{i:016x}", tokens, vectors, tokens[::-1].copy(), nats, *numbers, (trial,)))
    return made


def opened(folder, texts, identity=IDENTITY):
    return open_run(folder, identity, SETTINGS, [(text.text_id, text.tokens) for text in texts])


def same(ours: Results, theirs: list[TextResult]) -> None:
    assert [text.text_id for text in ours] == [text.text_id for text in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for field in dataclasses.fields(TextResult):
            if field.name not in ("vectors", "trials"):
                np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
        for name in b.vectors:
            np.testing.assert_array_equal(a.vectors[name], b.vectors[name])
        for one, other in zip(a.trials, b.trials, strict=True):
            np.testing.assert_array_equal(one.trace, other.trace)
            assert (one.path is None) == (other.path is None)
            if one.path is not None:
                for name in "em":
                    np.testing.assert_array_equal(one.path[name], other.path[name])
            np.testing.assert_array_equal(one.first_hit, other.first_hit)
            assert (one.seed, one.status, one.steps) == (other.seed, other.status, other.steps)


@pytest.mark.parametrize("shared", [False, True])
def test_round_trip_in_source_order(tmp_path, shared):
    texts = results(5, shared)
    identity = IDENTITY | {"scheme": {"arrangement": "one-step", "share": "m" if shared else None, "group": 1}}
    with opened(tmp_path / "run", texts, identity) as run:
        run.append(texts[3:])
        run.append(texts[:3])
        assert run.recorded() == {text.text_id for text in texts}
    same(read_results(tmp_path / "run"), texts)


def test_many_small_parts_are_merged(tmp_path):
    texts = results(40)
    with opened(tmp_path / "run", texts) as run:
        for text in texts:
            run.append([text])
            for kind in ("results", "embeddings", "traces"):
                assert len(list((tmp_path / "run" / kind).iterdir())) <= store.COMPACT_AT
    same(read_results(tmp_path / "run"), texts)


def test_a_kill_while_merging_loses_and_doubles_nothing(tmp_path, monkeypatch):
    texts = results(store.COMPACT_AT)
    with opened(tmp_path / "run", texts) as run:
        for text in texts[:-1]:
            run.append([text])
        removed = []

        def die(folder, number):
            removed.append(number)
            if len(removed) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(store, "_remove_part", die)
        with pytest.raises(KeyboardInterrupt):
            run.append([texts[-1]])
    same(read_results(tmp_path / "run"), texts)
    with opened(tmp_path / "run", texts):
        parts = {path.stem for path in (tmp_path / "run" / "results").iterdir()}
        assert {path.name for path in (tmp_path / "run" / "embeddings").iterdir()} == parts
    same(read_results(tmp_path / "run"), texts)


def test_a_part_without_its_results_file_never_was(tmp_path, monkeypatch):
    texts = results(4)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts[:2])
        write, seen = parts.write_rows, []

        def die(path, rows):
            seen.append(path.parent.name)
            if path.parent.name == "results":
                raise KeyboardInterrupt
            write(path, rows)

        monkeypatch.setattr(parts, "write_rows", die)
        with pytest.raises(KeyboardInterrupt):
            run.append(texts[2:])
        assert seen == ["traces", "results"]
    monkeypatch.undo()
    same(read_results(tmp_path / "run"), texts[:2])
    with opened(tmp_path / "run", texts) as run:
        assert len(list((tmp_path / "run" / "embeddings").iterdir())) == 1
        run.append(texts[2:])
    same(read_results(tmp_path / "run"), texts)


def test_state_keeps_the_newest(tmp_path):
    texts = results(1)
    with opened(tmp_path / "run", texts) as run:
        assert run.load_state() is None
        for number in range(3):
            run.save_state({"a": np.full((2, 2), number, np.float32)}, {"number": number})
        arrays, record = run.load_state()
        np.testing.assert_array_equal(arrays["a"], np.full((2, 2), 2))
        assert record == {"number": 2}
        assert len(list((tmp_path / "run" / "state").iterdir())) == 2
        run.save_state({}, [])
        assert run.load_state() == ({}, [])


def test_another_identity_is_refused_and_names_the_keys(tmp_path):
    texts = results(1)
    opened(tmp_path / "run", texts).close()
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match="seed: 0 there, 1 here") as refused:
        opened(tmp_path / "run", texts, IDENTITY | {"seed": 1})
    assert "model" not in str(refused.value).split(";")[1]
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_two_writers_are_refused(tmp_path):
    texts = results(1)
    with (
        opened(tmp_path / "run", texts),
        pytest.raises(UserError, match=r"another process works on this run \(process"),
    ):
        opened(tmp_path / "run", texts)
    opened(tmp_path / "run", texts).close()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="not empty and no run directory"):
        opened(tmp_path, results(1))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_kill_while_creating_is_no_obstacle(tmp_path, monkeypatch):
    texts = results(2)
    for victim in ("write_rows", "replace"):

        def die(path, _content):
            path.with_suffix(path.suffix + ".tmp").write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(store, victim, die)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path / "run", texts)
        monkeypatch.undo()
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
    same(read_results(tmp_path / "run"), texts)


def test_full_disk_leaves_what_was_recorded(tmp_path, monkeypatch):
    texts = results(4)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts[:2])

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match=r"the disk is full.*everything recorded before is intact"):
            run.append(texts[2:])
        with pytest.raises(UserError, match="the disk is full"):
            run.save_state({}, [])
        monkeypatch.undo()
    same(read_results(tmp_path / "run"), texts[:2])
    with opened(tmp_path / "run", texts) as run:
        run.append(texts[2:])
    same(read_results(tmp_path / "run"), texts)


def test_arrays_that_read_back_differently_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "load_arrays", lambda path: {"a": np.ones(3)})
    with pytest.raises(OSError, match="reads back differently"):
        files.save_arrays(tmp_path / "a", {"a": np.zeros(3)})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no run directory"), ("{", "not valid JSON"), (json.dumps({"format": 99}), "run format 99")],
)
def test_unreadable_configs(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)


def test_a_damaged_part_is_named(tmp_path):
    texts = results(2)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
    (tmp_path / "run" / "traces" / "000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="embeddings/000000: damaged part"):
        read_results(tmp_path / "run")


@pytest.mark.parametrize("content", ["[]", '{"format": 1}', '{"experiment": "x"}'])
def test_a_config_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"run format (None|1); this version reads 2"):
        read_results(str(tmp_path))

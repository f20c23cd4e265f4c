"""A saved state is used only by the run that it comes from."""

import json
import shutil
import zlib

import numpy as np
import pytest
from options import quick_of
from store_runs import IDENTITY, finished, interrupted, opened, results, same, task

from onestep_jax import OneStep, read_results
from onestep_jax.prototokens.reconstruction import decoding_of
from onestep_jax.store import verify
from onestep_jax.store.names import committed
from onestep_jax.store.saved_states import state_files
from onestep_jax.store.status import read_status

LEFT_ASIDE = r"run: saved state 000001-0000-000000 is left aside: .*`onestep verify DIR --drop` sets it aside"


def tokens_of(texts, group=1, positions=4):
    """The tokens of texts as slots have them, (tasks, group, positions)."""
    array = np.zeros((len(texts), group, positions), np.int32)
    for row, text in zip(array, texts, strict=True):
        row[0, : len(text.tokens)] = text.tokens
    return array


def left_by(folder, texts, record, arrays, identity=IDENTITY):
    """A state in a folder from which everything else of its run has been deleted."""
    with opened(folder, texts, identity) as run:
        run.save_state(arrays, record)
    for path in folder.iterdir():
        if path.name != "state":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def forget_origin(folder):
    """Make a state what versions wrote that did not say whose it is."""
    for path in (folder / "state").glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: content[key] for key in ("checksum", "state")}))


def check_left_aside(folder, texts, identity=IDENTITY):
    """The state is named, used by nobody, and taken away by `--drop`."""
    before = {path: path.read_bytes() for path in (folder / "state").rglob("*") if path.is_file()}
    with pytest.warns(UserWarning, match=LEFT_ASIDE) as said:
        run = opened(folder, texts, identity)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    with run:
        assert run.saved_states() == []
        run.append(texts[:1])
    with pytest.warns(UserWarning, match=LEFT_ASIDE):
        assert read_status(folder).in_flight == []
    found = verify.verify(folder)
    assert found.damaged_states == ["000001-0000-000000"]
    assert [problem.damage for problem in found.problems] == [True]
    assert {path: path.read_bytes() for path in (folder / "state").rglob("*") if path.is_file()} == before
    verify.set_aside(folder, found)
    assert verify.verify(folder).problems == []
    assert committed(folder, "state") == []
    opened(folder, texts, identity).close()
    same(read_results(folder), texts[:1])


def test_a_state_says_whose_it_is_and_is_read_by_versions_that_do_not_ask(tmp_path):
    texts = results(3)
    with opened(tmp_path / "run", texts) as run:
        run.save_state({"a": np.zeros(2)}, {"tasks": [task(2, 5)], "outcomes": [task(0, 9)]})
    content = json.loads(state_files(tmp_path / "run", "000001-0000-000000")["state"].read_text())
    assert content["text_ids"] == {"0": texts[0].text_id, "2": texts[2].text_id}
    assert content["run"]
    assert set(content["state"]) == {"record", "elapsed", "checksums"}
    assert content["checksum"] == zlib.crc32(json.dumps(content["state"]).encode())


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", ["tasks", "outcomes"])
def test_a_state_of_other_texts_is_left_aside(tmp_path, old, kind):
    texts, others = results(4), results(8)[4:]
    arrays = {"slot_000": np.zeros((2, 3)), "slot_001": tokens_of(others[:2])}
    left_by(tmp_path / "run", others, {kind: [task(0, 5), task(1, 7)]}, arrays)
    if old:
        forget_origin(tmp_path / "run")
    check_left_aside(tmp_path / "run", texts)


@pytest.mark.parametrize("old", [False, True])
def test_a_state_of_a_longer_run_is_left_aside(tmp_path, old):
    texts = results(9)
    left_by(tmp_path / "run", texts, {"tasks": [task(8, 5)]}, {"slot_000": tokens_of(texts[8:])})
    if old:
        forget_origin(tmp_path / "run")
    check_left_aside(tmp_path / "run", texts[:4])


def test_a_state_of_other_settings_is_left_aside(tmp_path):
    texts = results(4)
    left_by(tmp_path / "run", texts, {"tasks": [task(1, 5)]}, {"slot_000": tokens_of(texts[1:2])})
    check_left_aside(tmp_path / "run", texts, IDENTITY | {"seed": 1})


@pytest.mark.parametrize("outcomes", [False, True])
def test_a_state_that_does_not_say_whose_it_is_is_known_by_its_tokens(tmp_path, outcomes):
    texts = results(4)
    record = {"tasks": [task(3, 5), task(1, 7)], "outcomes": [task(0, 9)] if outcomes else []}
    arrays = {"slot_000": np.zeros((2, 3)), "slot_001": tokens_of([texts[3], texts[1]])}
    with opened(tmp_path / "run", texts) as run:
        run.save_state(arrays, record)
    forget_origin(tmp_path / "run")
    with opened(tmp_path / "run", texts) as run:
        ((name, found),) = run.saved_states()
        assert found == record
        np.testing.assert_array_equal(run.load_state_arrays(name)["slot_001"], arrays["slot_001"])
    assert [flight.index for flight in read_status(tmp_path / "run").in_flight] == [1, 3]
    assert verify.verify(tmp_path / "run").problems == []


@pytest.mark.parametrize("change", ["a token", "a length", "an order", "no tokens"])
def test_one_other_token_is_enough(tmp_path, change):
    texts = results(4)
    tokens = tokens_of(texts[:2])
    if change == "a token":
        tokens[1, 0, 2] += 1
    if change == "a length":
        tokens[1, 0, 3] = 1
    arrays = {"slot_001": tokens[::-1] if change == "an order" else tokens}
    left_by(tmp_path / "run", texts, {"tasks": [task(0, 5), task(1, 7)]}, {} if change == "no tokens" else arrays)
    forget_origin(tmp_path / "run")
    check_left_aside(tmp_path / "run", texts)


def test_an_empty_state_is_nobodys_and_goes(tmp_path):
    with opened(tmp_path / "run", results(2)) as run:
        run.save_state({}, {})
    forget_origin(tmp_path / "run")
    opened(tmp_path / "run", results(2)).close()
    assert committed(tmp_path / "run", "state") == []


# --- whole fits ---


@pytest.mark.parametrize("old", quick_of([False, True]))
def test_a_fit_of_other_texts_takes_nothing_from_what_was_left(tiny, token_lists, tmp_path, old):
    run = tmp_path / "run"
    interrupted(tiny, token_lists[:4], run)
    for path in [run / "config.json", run / "texts.parquet", *(run / "results").iterdir()]:
        path.unlink()
    if old:
        forget_origin(run)
    with pytest.warns(UserWarning, match="is left aside"):
        found = finished(tiny, token_lists[4:8], run)
    clean = finished(tiny, token_lists[4:8], tmp_path / "clean")
    for ours, theirs in zip(found, clean, strict=True):
        assert ours.accuracy == (ours.predicted == ours.tokens).mean()
        assert (ours.accuracy, ours.steps) == (theirs.accuracy, theirs.steps)
    assert [problem.where.split()[0] for problem in verify.verify(run, decoding_of(tiny)).problems] == ["state"]


@pytest.mark.long
@pytest.mark.parametrize("group", [1, 2])
def test_a_fit_goes_on_from_a_state_that_does_not_say_whose_it_is(tiny, token_lists, tmp_path, group):
    run, texts = tmp_path / "run", [*token_lists[:4], token_lists[4][:5]]
    how = {"scheme": OneStep(share="m", group=group)} if group > 1 else {}
    interrupted(tiny, texts, run, **how)
    forget_origin(run)
    flights = {flight.index: flight.steps for flight in read_status(run).in_flight}
    assert flights
    found = finished(tiny, texts, run, **how)
    clean = finished(tiny, texts, tmp_path / "clean", **how)
    assert [text.steps for text in found] == [text.steps for text in clean]
    assert [text.accuracy for text in found] == [text.accuracy for text in clean]
    assert all(found[index].steps >= steps for index, steps in flights.items())

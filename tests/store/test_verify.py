"""`verify` and `read_status` on directories made of nothing; tests/cli/test_cli.py has the commands on real runs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from store_runs import IDENTITY, SETTINGS, opened, results, same, task

from onestep_jax import read_results
from onestep_jax.errors import UserError
from onestep_jax.store import commits, verify
from onestep_jax.store.parquet import write_rows
from onestep_jax.store.run import join_run, open_run
from onestep_jax.store.status import Flight, read_status


def problems(folder, again=None):
    return [(problem.text_id, problem.what) for problem in verify.verify(folder, again).problems]


@pytest.mark.long
def test_a_kill_while_merging_is_no_problem(tmp_path, monkeypatch):
    texts = results(commits.COMPACT_AT)
    monkeypatch.setattr(commits, "remove_part", lambda folder, name: None)
    with opened(tmp_path / "run", texts) as run:
        for text in texts:
            run.append([text])
    found = verify.verify(tmp_path / "run")
    assert (found.problems, found.recorded, found.twice) == ([], len(texts), len(texts))
    monkeypatch.undo()
    opened(tmp_path / "run", texts).close()
    assert verify.verify(tmp_path / "run").twice == 0


def test_a_text_recorded_twice_and_otherwise(tmp_path):
    texts = results(2)
    other = dataclasses.replace(texts[1], vectors=texts[0].vectors)
    with opened(tmp_path / "run", texts, processes=2) as run:
        run.append(texts)
        with join_run(tmp_path / "run", IDENTITY, 1) as beside:
            beside.append([other])
    what = "recorded otherwise in part 000001-0001-000000"
    assert problems(tmp_path / "run") == [(texts[1].text_id, what)]
    kept = [texts[0], other]
    same(read_results(tmp_path / "run"), kept)  # the newer one is what counts, also once parts are merged
    assert verify.set_aside(tmp_path / "run", verify.verify(tmp_path / "run")) == 1
    assert problems(tmp_path / "run") == []
    same(read_results(tmp_path / "run"), kept)


def test_a_row_that_contradicts_itself(tmp_path):
    texts = results(3)
    texts[1] = dataclasses.replace(texts[1], c_tokens=2)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
    ((text_id, what),) = problems(tmp_path / "run")
    assert text_id == texts[1].text_id
    assert "its row says accuracy 1.0 and 2 exact tokens, its predicted ids say 3" in what
    dropped(tmp_path / "run", texts, wrong=1)


def dropped(folder, texts, wrong):
    """Set aside what is wrong with one text: the others stay, and that one is to be made again."""
    assert verify.set_aside(folder, verify.verify(folder)) == 2
    assert problems(folder) == []
    same(read_results(folder), [text for i, text in enumerate(texts) if i != wrong])
    assert [path.name.partition("-")[0] for path in (folder / "damaged").iterdir()] == ["000001"] * 3
    with opened(folder, texts) as run:
        assert texts[wrong].text_id not in run.recorded()


def test_a_row_that_contradicts_itself_in_two_parts_is_set_aside_in_both(tmp_path):
    texts = results(3)
    wrong = dataclasses.replace(texts[1], c_tokens=2)
    with opened(tmp_path / "run", texts) as run:
        run.append([texts[0], wrong])
        run.append([wrong, texts[2]])
    found = verify.verify(tmp_path / "run")
    assert (len(found.problems), found.twice) == (1, 1)
    verify.set_aside(tmp_path / "run", found)
    assert problems(tmp_path / "run") == []
    same(read_results(tmp_path / "run"), [texts[0], texts[2]])


def test_a_text_of_another_run_and_tokens_of_another_text(tmp_path):
    texts = results(3)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
    rows = [{"index": i, "text_id": text.text_id, "tokens": text.tokens} for i, text in enumerate(texts[:2])]
    write_rows(tmp_path / "run" / "texts.parquet", rows)
    assert problems(tmp_path / "run") == [(texts[2].text_id, "a text that is none of this run")]
    rows[0]["tokens"] = texts[2].tokens
    write_rows(tmp_path / "run" / "texts.parquet", rows)
    told = "its token ids are not those that it is named after; the same onestep fit writes it again"
    assert (texts[0].text_id, told) in problems(tmp_path / "run")
    opened(tmp_path / "run", texts).close()
    assert problems(tmp_path / "run") == []


def decoding(dtype="float32", changed=(0, 1, 2), **computed):
    """Of two texts, of which some tokens come out otherwise than recorded."""

    def decode(results, progress):
        assert results.model == IDENTITY["model"]
        return [SimpleNamespace(tokens=text.predicted + np.isin(np.arange(3), changed)) for text in results]

    return verify.Decoding(decode, {"dtype": dtype, **computed})


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 0), ("bfloat16", 1)])
@pytest.mark.parametrize("other", [0, 1, 2])
def test_how_many_tokens_may_decode_otherwise(tmp_path, dtype, allowed, other):
    texts = results(2)
    with opened(tmp_path / "run", texts, IDENTITY | {"dtype": dtype}) as run:
        run.append(texts)
    found = verify.verify(tmp_path / "run", decoding(dtype, changed=range(other)))
    assert (found.decoded, found.apart, found.otherwise) == (2, "", [])
    assert len(found.problems) == (2 if other > allowed else 0)
    assert all(problem.damage for problem in found.problems)
    assert len(found.damaged_parts) == (1 if other > allowed else 0)


@pytest.mark.parametrize(
    ("dtype", "computed", "told"),
    [
        ("bfloat16", {}, "dtype: float32 there, bfloat16 here"),
        ("float32", {"device": "TPU v5e", "matmul precision": None}, "device: cpu there, TPU v5e here"),
        ("float32", {"matmul precision": "highest"}, "matmul precision: None there, highest here"),
    ],
)
def test_what_another_arithmetic_decodes_otherwise_is_no_damage(tmp_path, dtype, computed, told):
    texts = results(2)
    settings = {**SETTINGS, "device": "cpu", "matmul precision": None}
    order = [(text.text_id, text.tokens) for text in texts]
    with open_run(tmp_path / "run", IDENTITY | {"dtype": "float32"}, settings, order) as run:
        run.append(texts)
    found = verify.verify(tmp_path / "run", decoding(dtype, **computed))
    assert (found.problems, found.damaged_parts) == ([], {})
    assert (found.apart, found.otherwise) == (told, [text.text_id for text in texts])
    found = verify.verify(tmp_path / "run", decoding(**{"device": "cpu", "matmul precision": None}))
    assert (len(found.problems), found.apart, found.otherwise) == (2, "", [])


def test_vectors_that_decode_to_other_tokens_are_set_aside(tmp_path):
    texts = results(3)
    with opened(tmp_path / "run", texts, IDENTITY | {"dtype": "float32"}) as run:
        run.append(texts)

    def decode(results, progress):
        return [SimpleNamespace(tokens=text.predicted + (text.index == 2)) for text in results]

    third = verify.Decoding(decode, {"dtype": "float32"})
    assert [text_id for text_id, _ in problems(tmp_path / "run", third)] == [texts[2].text_id]
    assert verify.set_aside(tmp_path / "run", verify.verify(tmp_path / "run", third)) == 2
    assert problems(tmp_path / "run", third) == []
    same(read_results(tmp_path / "run"), texts[:2])


def test_setting_aside_needs_the_run_at_rest(tmp_path):
    texts = results(1)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
        run.wait()
        with pytest.raises(UserError, match="another process works on this run"):
            verify.set_aside(tmp_path / "run", verify.verify(tmp_path / "run"))


@pytest.mark.long
def test_the_rate_is_that_of_the_session(tmp_path, monkeypatch):
    texts = results(40)
    monkeypatch.setattr(commits, "COMPACT_AT", 4)
    for first in range(0, 20, 5):
        with opened(tmp_path / "run", texts) as run:
            run.append(texts[first : first + 5])
    with opened(tmp_path / "run", texts, processes=2) as run:
        assert read_status(tmp_path / "run").an_hour is None
        run._committer._began -= 1e6  # beside which the seconds of the test are nothing
        for text in texts[20:39]:
            run.append([text])  # enough for a merge, after which each still counts once
        run.wait()
        assert read_status(tmp_path / "run").an_hour == pytest.approx(19 * 3600 / 1e6, rel=0.001)
        with join_run(tmp_path / "run", IDENTITY, 1) as beside:
            beside._committer._began -= 4e6
            beside.save_state({}, {"tasks": [task(39, 8)]})
        found = read_status(tmp_path / "run")
        assert found.an_hour == pytest.approx(19 * 3600 / 4e6, rel=0.001)
        assert (found.texts, len(found.recorded), found.left) == (40, 39, 1)
        assert found.owner is not None
    assert read_status(tmp_path / "run").owner is None


def test_a_run_that_has_just_begun_has_no_rate(tmp_path):
    with opened(tmp_path / "run", results(2)):
        assert read_status(tmp_path / "run").an_hour is None


def test_what_a_resume_goes_on_with(tmp_path):
    texts = results(5)
    with opened(tmp_path / "run", texts) as run:
        run.save_state({}, {"tasks": [task(0, 30), task(1, 7), task(2, 9)], "outcomes": [task(3, 50)]})
    with opened(tmp_path / "run", texts) as run:
        run.save_state({}, {"tasks": [task(1, 20), task(3, 4, seed=1), {"texts": [4], "seed": 0, "trace": []}]})
        run.append([texts[2]])
    found = read_status(tmp_path / "run")
    expected = [(0, 0, 30), (1, 0, 20), (3, 1, 4), (4, 0, 0)]
    assert found.in_flight == [Flight(index, texts[index].text_id, seed, steps) for index, seed, steps in expected]
    assert found.outlook == "4 texts to do, 4 of them from where they were saved"
    with opened(tmp_path / "run", texts) as run:
        run.append([texts[i] for i in (0, 1, 3, 4)])
    assert read_status(tmp_path / "run").outlook == "nothing to do"
    with pytest.raises(UserError, match="no run directory"):
        read_status(tmp_path)

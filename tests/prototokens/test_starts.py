"""Start vectors of a fit from elsewhere: they are where the first seed begins, and part of a run's identity."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from onestep_jax import Cramming, OneStep, Results, UserError, fit, read_results
from onestep_jax.fitting.plan import resolve
from onestep_jax.prototokens.starts import StartVectors, read_vectors, start_vectors, with_starts
from onestep_jax.store.export import write_vectors
from onestep_jax.tokens import text_ids

D = 32
HOW = {"preset": "paper", "steps": 4, "slots": 4, "chunk": 2}


@pytest.fixture(scope="module")
def texts(token_lists):
    return token_lists[:3]


@pytest.fixture(scope="module")
def ids(texts):
    return text_ids([np.array(text, np.int32) for text in texts])


@pytest.fixture(scope="module")
def vectors(ids):
    rng = np.random.default_rng(5)
    return {text_id: {name: rng.normal(size=D).astype(np.float32) for name in "em"} for text_id in ids}


@pytest.fixture(scope="module")
def random_run(tiny, texts, tmp_path_factory) -> Results:
    """A fit with random start vectors, recorded with its path."""
    return fit(tiny, texts, run=tmp_path_factory.mktemp("runs") / "random", record=True, seeds=2, **HOW)


def same(one, other):
    assert list(one) == list(other)
    for text_id in one:
        for name in "em":
            np.testing.assert_array_equal(one[text_id][name], other[text_id][name])


# --- where a fit begins ---


@pytest.fixture(scope="module")
def first_step(tiny, texts, vectors):
    """After one step of a fit from the vectors, so that the kept vectors are where it began."""
    return fit(tiny, texts, start=vectors, record=True, seeds=2, **HOW | {"steps": 1, "chunk": 1})


def test_the_first_seed_begins_there_and_later_ones_do_not(tiny, first_step, vectors, texts):
    for text in first_step:
        trials = {trial.seed: trial for trial in text.trials}
        assert sorted(trials) == [0, 1]
        assert text.steps == 2
    drawn = fit(tiny, texts, record=True, seeds=2, **HOW | {"steps": 1, "chunk": 1})
    for text, other in zip(first_step, drawn, strict=True):
        assert text.trials[0].loss != other.trials[0].loss
        assert text.trials[1].loss == pytest.approx(other.trials[1].loss, rel=1e-6)
        if text.seed == 0:
            for name in "em":
                np.testing.assert_array_equal(text.vectors[name], vectors[text.text_id][name])
    assert any(text.seed == 0 for text in first_step)


def test_vectors_of_results_of_a_run_and_of_a_file_are_one(tiny, texts, ids, random_run, tmp_path):
    write_vectors(random_run, tmp_path / "vectors.safetensors")
    given = [random_run, start_vectors(random_run, tiny).vectors, read_vectors(tmp_path / "vectors.safetensors")]
    starts = []
    for start in given:
        plan = resolve(tiny, texts, start=start, **HOW)
        starts.append((plan.scheme.start, plan.identity))
    for start, identity in starts:
        for name in "em":
            np.testing.assert_array_equal(start[name], np.stack([text.vectors[name] for text in random_run]))
        assert identity == starts[0][1]
    again = fit(tiny, texts, start=random_run, **HOW | {"steps": 1, "chunk": 1, "seeds": 1})
    for text, before in zip(again, random_run, strict=True):
        for name in "em":
            np.testing.assert_array_equal(text.vectors[name], before.vectors[name])
        assert text.accuracy == before.accuracy


def test_results_of_another_model_are_refused(tiny, texts, random_run):
    results = dataclasses.replace(random_run, model="another")
    for start in (results, StartVectors(start_vectors(random_run, tiny).vectors, model="another")):
        with pytest.raises(UserError, match="the start vectors belong to model another, not to 'tiny'"):
            fit(tiny, texts, start=start)


def test_arrangement_and_prefix_are_those_of_the_vectors(tiny, texts, random_run):
    """The run is one of [e] [m]×(N−1); `fast` takes another arrangement where nothing is said."""
    assert resolve(tiny, texts).scheme.arrangement == "unguided-e"
    assert resolve(tiny, texts, start=random_run).scheme.arrangement == "one-step"
    begun = dataclasses.replace(random_run, scheme=OneStep("one-step", prefix=(3, 4)).describe())
    for how in ({}, {"scheme": OneStep()}):
        assert resolve(tiny, texts, start=begun, **how).scheme.prefix == (3, 4)
    assert resolve(tiny, texts, start=begun, scheme=OneStep(prefix=(5,))).scheme.prefix == (5,)
    plan = resolve(tiny, texts, start=begun, prefixes=[[1], [2], [3]])
    assert (plan.scheme.prefix, [ids.tolist() for ids in plan.prefixes]) == (None, [[1], [2], [3]])
    shared = dataclasses.replace(random_run, scheme=OneStep(share="m", group=3).describe())
    assert resolve(tiny, texts, start=shared).scheme.shared == frozenset()
    with pytest.raises(UserError, match=r"are for \[e\] \[m\]×\(N−1\), and the fit is of \[e\] \[m\]×N; leave"):
        fit(tiny, texts, start=random_run, scheme=OneStep("unguided-e"))


def test_copies_start_where_their_text_does(tiny, texts, ids, vectors):
    own = {**vectors, f"{ids[1]}-1": {name: np.full(D, 0.5, np.float32) for name in "em"}}
    plan = resolve(tiny, texts, start=own, copies=2, **HOW)
    start = plan.scheme.start
    assert plan.ids == (ids[0], f"{ids[0]}-1", ids[1], f"{ids[1]}-1", ids[2], f"{ids[2]}-1")
    expected = [own[ids[0]]] * 2 + [own[ids[1]], own[f"{ids[1]}-1"]] + [own[ids[2]]] * 2
    for name in "em":
        np.testing.assert_array_equal(start[name], np.stack([row[name] for row in expected]))


def test_missing_texts_are_counted(tiny, texts, ids, vectors):
    with pytest.raises(UserError, match=f"2 of 3 texts have no start vectors, the first is {ids[0]}; .*draw"):
        fit(tiny, texts, start={ids[1]: vectors[ids[1]]}, **HOW)


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_missing_texts_are_drawn_as_they_would_have_been(tiny, texts, ids, vectors, preset):
    how = {"preset": preset, "steps": 1, "chunk": 1, "seeds": 1, "slots": 4, "seed": 3}
    whole = fit(tiny, texts, **how)
    some = fit(tiny, texts, start={ids[1]: vectors[ids[1]]}, start_missing="draw", **how)
    for i, (text, other) in enumerate(zip(some, whole, strict=True)):
        for name in "em":
            if i == 1:
                np.testing.assert_array_equal(text.vectors[name], vectors[ids[1]][name])
            else:
                np.testing.assert_allclose(text.vectors[name], other.vectors[name], rtol=1e-6)


def test_a_start_belongs_to_the_identity_of_a_run(tiny, texts, vectors, random_run, tmp_path):
    how = HOW | {"seeds": 1}
    first = fit(tiny, texts, run=tmp_path / "run", start=vectors, **how)
    again = fit(tiny, texts, run=tmp_path / "run", start=vectors, **how)
    same(start_vectors(first, tiny).vectors, start_vectors(again, tiny).vectors)
    for other in (random_run, None):
        with pytest.raises(UserError, match="run"):
            fit(tiny, texts, run=tmp_path / "run", start=other, **how)
    assert len(read_results(tmp_path / "run")) == 3


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("m"), "start vectors of text .* are {'e': .*needs {'e': "),
        (lambda row: row.update(e=np.zeros(D + 1)), "start vectors of text .* are {'e': \\(33,\\)"),
        (lambda row: row.update(x=np.zeros(D)), "start vectors of text"),
        (lambda row: row.update(e="e"), "start vectors of text .*: expected numbers"),
        (lambda row: row.update(e=["a"] * D), "start vectors of text .*: expected numbers"),
        (lambda row: row.update(e=[[1.0], [2.0, 3.0]]), "start vectors of text .*: expected numbers"),
        (lambda row: row.update(m=np.full(D, np.nan)), "start vectors of text .*: m holds a NaN or an infinity"),
        (lambda row: row.update(m=np.full(D, 1e300)), "start vectors of text .*: m holds a NaN or an infinity"),
    ],
)
def test_vectors_that_cannot_be(tiny, texts, ids, vectors, change, said):
    wrong = {text_id: dict(row) for text_id, row in vectors.items()}
    change(wrong[ids[1]])
    with pytest.raises(UserError, match=said) as caught:
        fit(tiny, texts, start=wrong, **HOW)
    assert ids[1] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_arguments_that_cannot_be(tiny, texts, ids, vectors):
    for how, said in (
        ({"start": vectors, "start_missing": "drawn"}, "unknown value of start_missing 'drawn' .did you mean 'draw'"),
        ({"start_missing": "drawn"}, "unknown value of start_missing 'drawn'"),
        ({"start": 3}, "start = 3, of type int: expected Results, or vectors by text_id and leaf"),
        ({"start": {ids[0]: np.zeros(D), **dict.fromkeys(ids[1:], 0)}}, f"start vectors of text {ids[0]}"),
        ({"start": vectors, "scheme": OneStep(share="m", group=3)}, "start vectors go to texts that share no vector"),
        (
            {"start": vectors, "scheme": OneStep(start={name: np.zeros((3, D)) for name in "em"})},
            "start vectors of the scheme, and start=",
        ),
        ({"start": vectors, "scheme": OneStep("one-vector")}, "start vectors of text"),
        ({"start": vectors, "scheme": Cramming(2)}, "start vectors of text"),
    ):
        with pytest.raises(UserError, match=said):
            fit(tiny, texts, **HOW | how)


def test_schemes_take_their_own_leaves(ids):
    rows = {text_id: {"mem": np.full((2, 4), i, np.float32)} for i, text_id in enumerate(ids)}
    found = with_starts(Cramming(2), StartVectors(rows), "error", ids, 4, seed=0, scale=1.0)
    np.testing.assert_array_equal(found.start["mem"], np.stack([row["mem"] for row in rows.values()]))
    rows = {text_id: {"e": jax.numpy.full(4, i)} for i, text_id in enumerate(ids)}
    found = with_starts(OneStep("one-vector"), StartVectors(rows), "error", ids, 4, seed=0, scale=1.0)
    assert found.start["e"].dtype == np.float32


# --- files ---


def test_files_that_are_none(tmp_path, random_run):
    path = tmp_path / "vectors.safetensors"
    write_vectors(random_run, path)
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:-1], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"vectors.safetensors: cannot be read .*; give a file that onestep export"):
            read_vectors(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_vectors(tmp_path)
    with pytest.raises(UserError, match=r"none.safetensors: cannot be read"):
        read_vectors(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"e": np.zeros((2, 4))}, None),
        ({"e": np.zeros((2, 4))}, {"text_ids": "["}),
        ({"e": np.zeros((2, 4))}, {"text_ids": "[" * 100_000}),
        ({"e": np.zeros((2, 4))}, {"text_ids": '{"a": 1}'}),
        ({"e": np.zeros((2, 4))}, {"text_ids": '["a"]'}),
        ({"e": np.float32(1.0)}, {"text_ids": '["a"]'}),
        ({"x": np.zeros((1, 4))}, {"text_ids": '["a"]'}),
    ],
)
def test_files_of_something_else(tmp_path, tensors, metadata):
    path = tmp_path / "other.safetensors"
    save_file({name: np.asarray(array, np.float32) for name, array in tensors.items()}, path, metadata)
    with pytest.raises(UserError, match=r"other.safetensors: .*give a file that onestep export wrote") as caught:
        read_vectors(path)
    assert "\n" not in str(caught.value)


def test_a_file_gives_vectors_by_text(tiny, tmp_path, random_run):
    write_vectors(random_run, tmp_path / "vectors.safetensors")
    found, expected = read_vectors(tmp_path / "vectors.safetensors"), start_vectors(random_run, tiny)
    same(found.vectors, expected.vectors)
    assert found[1:] == expected[1:]

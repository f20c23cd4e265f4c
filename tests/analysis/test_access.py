"""The access test: measures against definitions, alignment with what the one pass gives, and a test that can find."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Model, OneStep, Results, UserError, fit
from onestep_jax.analysis import access as module
from onestep_jax.analysis.access import (
    COMBINATIONS,
    MEASURES,
    access,
    common_prefix,
    common_substring,
    exact,
    overlap,
    start_vectors,
)
from onestep_jax.model.generation import generate


@pytest.fixture(scope="module")
def results(tiny: Model, one_device, token_lists) -> Results:
    """Six texts, one of them shorter."""
    texts = [*token_lists[:5], token_lists[5][:7]]
    return fit(tiny, texts, steps=400, scheme=OneStep(), placement=one_device, slots=8)


@pytest.fixture(scope="module")
def with_bos(tiny: Model) -> Model:
    return dataclasses.replace(tiny, tokenizer=SimpleNamespace(bos_token_id=60))


def test_measures():
    a, b = np.array([1, 2, 3, 4, 5, 5]), np.array([1, 2, 9, 5, 5, 4])
    assert exact(a, b) == 3 / 6
    assert common_prefix(a, b) == 2
    assert common_prefix(a, a) == 6
    assert common_prefix(a, b + 1) == 0
    assert common_substring(a, np.array([9, 2, 3, 4, 9, 5, 5])) == 3
    assert common_substring(a, a + 10) == 0
    assert overlap(a, b) == 5 / 6
    assert overlap(a, a[::-1]) == 1
    assert overlap(np.array([7, 7, 7]), np.array([7, 8, 9])) == 1 / 3


def test_substring_against_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(3, size=(2, 12)).tolist()
        runs = [a[i:j] for i in range(12) for j in range(i + 1, 13)]
        longest = max((len(run) for run in runs for k in range(12) if b[k : k + len(run)] == run), default=0)
        assert common_substring(np.array(a), np.array(b)) == longest


def test_starts_are_compared_with_the_control_that_saw_the_same_tokens(tiny: Model, results: Results):
    starts = ["e", "e m", "m", "t", "t t2"]
    found = access(tiny, results, combinations=starts, temperatures=(0.0,), permutations=99)
    targets = np.stack([text.tokens[:7] for text in results])
    out = {start: found.generated[start, 0.0] for start in starts}
    assert {control: [row.start for row in rows] for control, rows in found.beyond.items()} == {
        "t": ["e"] * len(MEASURES),
        "t t2": ["e m"] * len(MEASURES),
    }
    for control, start, seen in (("t", "e", 1), ("t t2", "e m", 2)):
        # the one pass gives the last of the tokens that were seen
        compared = {start: out[start][:, 1:], control: out[control]}
        for row in found.beyond[control]:
            own, other = (
                np.mean([MEASURES[row.measure](a, b) for a, b in zip(made, targets[:, seen:], strict=True)])
                for made in (compared[start], compared[control])
            )
            assert (row.own, row.other, row.tokens) == (pytest.approx(own), pytest.approx(other), 7 - seen)
            assert row.difference == pytest.approx(own - other)
            assert 1 / 2**6 <= row.p <= 1
    assert access(tiny, results, combinations=["e"], temperatures=(0.0,), permutations=9).beyond == {}


def test_start_vectors(with_bos: Model, results: Results):
    e, m = results.vectors["e"], results.vectors["m"]
    ids = np.array([60, *results[2].tokens[:2]])
    bos, first, second = np.asarray(with_bos.embed(with_bos.params, ids))
    expected = {"e": [e[2]], "e m": [e[2], m[2]], "m": [m[2]], "m e": [m[2], e[2]], "BOS e": [bos, e[2]]}
    expected |= {"BOS e m": [bos, e[2], m[2]], "BOS": [bos], "t": [first], "BOS t": [bos, first]}
    expected |= {"t t2": [first, second]}
    assert expected.keys() == set(COMBINATIONS)
    for start, vectors in expected.items():
        np.testing.assert_array_equal(start_vectors(with_bos, list(results), start)[2], np.stack(vectors))


def test_generated_is_generation_from_the_vectors(tiny: Model, results: Results):
    options = {"others": 3, "permutations": 9, "seed": 5}
    found = access(tiny, results, combinations=["e", "m e"], temperatures=(0.0, 0.7), batch=4, **options)
    assert found.generated.keys() == {("e", 0.0), ("e", 0.7), ("m e", 0.0), ("m e", 0.7)}
    for (start, temperature), out in found.generated.items():
        prompts = start_vectors(tiny, list(results), start)
        again = generate(tiny, prompts, count=7, temperature=temperature, seed=5, stop=(), batch=4)
        np.testing.assert_array_equal(out, [one.tokens for one in again])
    again = access(tiny, results, combinations=["m e"], temperatures=(0.7,), batch=4, **options)
    assert again.rows == [row for row in found.rows if (row.start, row.temperature) == ("m e", 0.7)]
    assert [row.measure for row in again.rows] == list(MEASURES)


@pytest.mark.long
def test_what_the_one_pass_gives_is_not_compared(tiny: Model, results: Results):
    """[e] gives token 0 and [e, m] token 1 because they were trained to; comparison begins after them."""
    found = access(tiny, results, temperatures=(0.0,), permutations=9)
    solved = results.accuracy == 1
    assert solved.sum() > 3
    assert {row.start for row in found.rows} == {start for start in COMBINATIONS if "BOS" not in start}
    targets = np.stack([text.tokens[:7] for text in results])
    np.testing.assert_array_equal(found.generated["e", 0.0][solved, 0], targets[solved, 0])
    np.testing.assert_array_equal(found.generated["e m", 0.0][solved, 0], targets[solved, 1])
    sizes = {row.start: row.tokens for row in found.rows}
    assert sizes == {"e": 6, "e m": 5, "m": 7, "m e": 7, "t": 6, "t t2": 5}
    places = {"e": (1, 1), "e m": (1, 2), "m": (0, 0), "m e": (0, 0), "t": (0, 1), "t t2": (0, 2)}
    for row in found.rows:
        if row.measure == "exact":
            a, b = places[row.start]
            same = found.generated[row.start, 0.0][:, a:] == targets[:, b:]
            assert row.own == pytest.approx(same.mean())


def test_texts_that_can_be_read_are_found(tiny: Model, results: Results):
    """Texts that are the model's own greedy continuation of their e: reading them back is perfect."""
    prompts = start_vectors(tiny, list(results), "e")
    spoken = [one.tokens for one in generate(tiny, prompts, count=8, stop=())]
    texts = tuple(dataclasses.replace(text, tokens=ids) for text, ids in zip(results, spoken, strict=True))
    found = access(tiny, dataclasses.replace(results, texts=texts), combinations=["e"], temperatures=(0.0,))
    rows = {row.measure: row for row in found.rows}
    assert rows.keys() == set(MEASURES)
    assert rows["exact"].own == rows["overlap"].own == 1
    assert rows["prefix"].own == rows["substring"].own == 7
    for row in found.rows:
        assert row.difference == pytest.approx(row.own - row.other)
        assert row.difference > 0
        assert row.p < 0.01
    readers = access(tiny, dataclasses.replace(results, texts=texts), combinations=["m"], temperatures=(0.0,))
    assert min(row.p for row in readers.rows) > 0.01


def test_alignment_where_e_is_unguided(tiny: Model):
    assert module._aligned("e m", True) == (0, 1)
    assert module._aligned("e", True) == (0, 0)
    assert module._aligned("t", True) == (1, 0)
    assert module._aligned("t t2", True) == (2, 0)


def test_other_texts_are_other_texts(results: Results):
    names = ["a", "a-1", "b", "b-1", "c", "c-1"]
    texts = [dataclasses.replace(text, text_id=name) for text, name in zip(results, names, strict=True)]
    choice = module._other_texts(texts, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(choice[:, 0], np.arange(6))
    for row in choice:
        assert sorted(row[1:] // 2) == sorted(pair for pair in (0, 0, 1, 1, 2, 2) if pair != row[0] // 2)


def test_room_in_the_context(with_bos: Model, results: Results):
    short = dataclasses.replace(with_bos, config=dataclasses.replace(with_bos.config, context=8))
    found = access(short, results, combinations=["BOS e m"], temperatures=(0.0,), permutations=9)
    assert found.generated["BOS e m", 0.0].shape == (6, 5)


def test_bfloat16(tiny: Model, results: Results):
    half = dataclasses.replace(
        tiny, params={**tiny.params, "embed": {"embedding": tiny.params["embed"]["embedding"].astype(jnp.bfloat16)}}
    )
    assert start_vectors(half, list(results), "t")[0].dtype == np.float32


def test_refusals(tiny: Model, results: Results):
    with pytest.raises(UserError, match="has no BOS"):
        access(tiny, results, combinations=["BOS e"])
    with pytest.raises(UserError, match="did you mean 'e m'"):
        access(tiny, results, combinations=["e  m"])
    with pytest.raises(UserError, match="others = 0"):
        access(tiny, results, others=0)
    with pytest.raises(UserError, match="two different"):
        access(tiny, dataclasses.replace(results, texts=(results[0],)))
    cut = tuple(dataclasses.replace(text, tokens=text.tokens[:2]) for text in results)
    with pytest.raises(UserError, match="too short"):
        access(tiny, dataclasses.replace(results, texts=cut), combinations=["e m"])
    with pytest.raises(UserError, match="belong to model"):
        access(dataclasses.replace(tiny, fingerprint="f" * 16), results)

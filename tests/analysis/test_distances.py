"""Distances of learned vectors: against brute force, geometry, and counting by formula."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.analysis.distances import (
    Relations,
    cosine_distances,
    learned_vectors,
    nearer_by,
    plain_ids,
    relation_distances,
    relation_pairs,
    separations,
    summary,
)
from onestep_jax.store.results import Results, TextResult

ALL = np.array(list(itertools.combinations(range(4), 2)))


def design(contexts: int = 5, texts: int = 4, seeds: int = 3) -> tuple[list[str], list[str]]:
    """Identities of the paper's design (Figure 6): one solution of each continuation, more seeds of the last."""
    rows = [(f"c{c}", f"c{c}-t{t}") for c in range(contexts) for t in range(texts - 1)]
    rows += [(f"c{c}", f"c{c}-t{texts - 1}") for c in range(contexts) for _ in range(seeds)]
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    return [context for context, _ in shuffled], [text for _, text in shuffled]


def brute_force(contexts: list[str], texts: list[str]) -> list[set[tuple[int, int]]]:
    found: list[set[tuple[int, int]]] = [set(), set(), set()]
    for i, j in itertools.combinations(range(len(texts)), 2):
        found[0 if texts[i] == texts[j] else 1 if contexts[i] == contexts[j] else 2].add((i, j))
    return found


def test_pairs_are_those_of_brute_force():
    contexts, texts = design()
    for pairs, expected in zip(relation_pairs(contexts, texts), brute_force(contexts, texts), strict=True):
        got = [tuple(pair) for pair in pairs.tolist()]
        assert len(got) == len(set(got))
        assert set(got) == expected


def test_pairs_are_as_many_as_the_formula_says():
    # 50 contexts with nine texts of one solution and one of ten, as in the paper: 19 rows a context.
    same_text, same_context, different = relation_pairs(*design(50, 10, 10), most=10**6)
    assert len(same_text) == 50 * 45
    assert len(same_context) == 50 * (19 * 18 // 2 - 45)
    assert len(different) == 50 * 49 // 2 * 19 * 19


def test_a_sample_is_of_the_relation_without_repeats_and_repeatable():
    contexts, texts = design()
    whole, drawn = relation_pairs(contexts, texts), relation_pairs(contexts, texts, most=40, seed=3)
    for every, some in zip(whole, drawn, strict=True):
        assert len(some) == min(40, len(every))
        assert len({tuple(pair) for pair in some.tolist()}) == len(some)
        assert {tuple(pair) for pair in some.tolist()} <= {tuple(pair) for pair in every.tolist()}
    again, other = (relation_pairs(contexts, texts, most=40, seed=seed) for seed in (3, 4))
    assert all(np.array_equal(x, y) for x, y in zip(drawn, again, strict=True))
    assert not np.array_equal(drawn.different_contexts, other.different_contexts)


def test_every_pair_is_drawn_as_often():
    contexts, texts = design(3, 2, 1)
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(600):
        for pair in relation_pairs(contexts, texts, most=4, seed=seed).different_contexts.tolist():
            counts[tuple(pair)] = counts.get(tuple(pair), 0) + 1
    assert len(counts) == 12
    assert all(140 < count < 260 for count in counts.values()), "200 expected, standard deviation 11.5"


def test_relations_without_pairs_are_empty():
    same_text, same_context, different = relation_distances(np.eye(3), ["a", "b", "c"], ["1", "2", "3"])
    assert (len(same_text), len(same_context), len(different)) == (0, 0, 3)
    assert [row["relation"] for row in summary(Relations(same_text, same_context, different))] == ["different_contexts"]
    assert all(pairs.shape == (0, 2) for pairs in relation_pairs([], []))


def test_known_angles():
    vectors = np.array([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [5.0, 5.0]])
    got = cosine_distances(vectors, ALL)
    right, oblique = 1.0, np.sqrt(0.5)
    np.testing.assert_allclose(got, [right, 2.0, 1 - oblique, right, 1 - oblique, 1 + oblique], atol=1e-15)
    assert got.max() <= 2


def test_equal_vectors_are_at_zero_and_near_ones_keep_their_digits():
    rng = np.random.default_rng(0)
    vector, other = rng.normal(size=(2, 64))
    other -= vector * (other @ vector) / (vector @ vector)
    tilted = vector + 1e-9 * other * np.linalg.norm(vector) / np.linalg.norm(other)
    got = cosine_distances(np.stack([vector, vector, 1e-200 * vector, tilted]), np.array([[0, 1], [0, 2], [0, 3]]))
    assert got[0] == 0
    assert got[1] < 1e-30
    np.testing.assert_allclose(got[2], 0.5e-18, rtol=1e-6)


def test_distances_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onestep_jax.analysis.distances.ROWS_AT_A_TIME", 7 * 5)
    contexts, texts = design()
    vectors = np.random.default_rng(2).normal(size=(len(texts), 7)).astype(np.float32)
    pairs = relation_pairs(contexts, texts)
    for relation, distances in zip(pairs, relation_distances(vectors, contexts, texts), strict=True):
        expected = [
            1 - float(np.dot(u, v) / np.sqrt(np.dot(u, u) * np.dot(v, v)))
            for u, v in ((vectors[i].astype(float), vectors[j].astype(float)) for i, j in relation)
        ]
        np.testing.assert_allclose(distances, expected, atol=1e-14)


def test_a_vector_without_direction_is_refused():
    for value in (0.0, np.nan, np.inf):
        vectors = np.ones((3, 4))
        vectors[1] = value
        with pytest.raises(UserError, match="row 1: a vector that is zero or not finite"):
            cosine_distances(vectors, np.array([[0, 2]]))


def test_identities_that_contradict_themselves_are_refused():
    with pytest.raises(UserError, match="row 1: text 't' follows two contexts"):
        relation_pairs(["a", "b"], ["t", "t"])
    with pytest.raises(UserError, match="2 contexts for 1 texts"):
        relation_pairs(["a", "b"], ["t"])
    with pytest.raises(UserError, match="2 vectors for 1 texts"):
        relation_distances(np.ones((2, 3)), ["a"], ["t"])
    with pytest.raises(UserError, match="most = 0"):
        relation_pairs(["a"], ["t"], most=0)


def test_nearer_relations_are_told_apart():
    contexts, texts = design(6, 5, 4)
    rng = np.random.default_rng(0)
    centres = {name: rng.normal(size=32) for name in [*contexts, *texts]}
    vectors = np.stack(
        [
            centres[context] + 0.7 * centres[text] + 0.1 * rng.normal(size=32)
            for context, text in zip(contexts, texts, strict=True)
        ]
    )
    distances = relation_distances(vectors, contexts, texts)
    means = [row["mean"] for row in summary(distances)]
    assert means == sorted(means)
    assert [(row["nearer"], row["farther"]) for row in separations(distances)] == [
        ("same_text", "same_context"),
        ("same_text", "different_contexts"),
        ("same_context", "different_contexts"),
    ]
    assert all(row["auc"] > 0.95 for row in separations(distances))
    (first, *_) = summary(distances)
    values = distances.same_text
    assert first["pairs"] == len(values) == 6 * 6
    expected = [values.mean(), values.std(), *np.percentile(values, [0, 25, 50, 75, 100])]
    got = [first[key] for key in ("mean", "std", "min", "quartile_1", "median", "quartile_3", "max")]
    np.testing.assert_allclose(got, expected)


def gap_of(vectors: np.ndarray, contexts: list[str], texts: list[str], **options: Any):
    pairs = relation_pairs(contexts, texts)
    return nearer_by(relation_distances(vectors, contexts, texts), pairs, contexts, texts, **options)


def test_the_interval_of_a_difference_finds_what_is_there():
    contexts, texts = design(6, 5, 4)
    rng = np.random.default_rng(0)
    centres = {name: rng.normal(size=32) for name in [*contexts, *texts]}
    vectors = np.stack([centres[c] + centres[t] + rng.normal(size=32) for c, t in zip(contexts, texts, strict=True)])
    means = {row["relation"]: row["mean"] for row in summary(relation_distances(vectors, contexts, texts))}
    for nearer, farther in itertools.combinations(means, 2):
        found = gap_of(vectors, contexts, texts, nearer=nearer, farther=farther, draws=300)
        assert found.gap == pytest.approx(means[farther] - means[nearer])
        assert 0 < found.low < found.gap < found.high < 1
        assert (found.contexts, found.texts) == (6, 30)
        back = gap_of(vectors, contexts, texts, nearer=farther, farther=nearer, draws=300)
        assert (back.low, back.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_the_interval_knows_that_pairs_share_vectors():
    """Pairs of one context are near or far together, so 1.96 · std / √pairs is far too narrow."""

    def drawn(names: list[str], rng: np.random.Generator) -> np.ndarray:
        """Vectors of which those of every other context, at random, lie together."""
        centres = {name: rng.normal(size=8) * 2 * rng.integers(2) for name in sorted(set(names))}
        return np.stack([centres[name] + rng.normal(size=8) for name in names])

    many, few = design(300, 4, 1), design(8, 4, 1)
    distances = relation_distances(drawn(many[0], np.random.default_rng(9)), *many)
    expected = distances.different_contexts.mean() - distances.same_context.mean()
    held, naive = [], []
    for case in range(40):
        vectors = drawn(few[0], np.random.default_rng(case))
        found = gap_of(vectors, *few, draws=100, seed=case)
        held.append(found.low <= expected <= found.high)
        distances = relation_distances(vectors, *few)
        sides = (distances.same_context, distances.different_contexts)
        error = np.sqrt(sum(side.var() / len(side) for side in sides))
        naive.append(abs(found.gap - expected) < 1.96 * error)
    assert np.mean(held) >= 0.85
    assert np.mean(naive) < 0.8


def test_differences_are_within_strata():
    """The far relation has more pairs of a stratum that is far; within both strata the two relations are alike."""
    pairs = Relations(np.zeros((0, 2), int), np.array([[0, 1], [2, 3]]), np.array([[0, 2], [0, 3], [1, 2], [1, 3]]))
    distances = Relations(np.zeros(0), np.array([1.0, 2.0]), np.array([1.0, 2.0, 2.0, 2.0]))
    strata = {"same_context": np.array([0, 1]), "different_contexts": np.array([0, 1, 1, 1])}
    rows = ["a", "a", "b", "b"], ["1", "2", "3", "4"]
    assert nearer_by(distances, pairs, *rows, strata=strata, draws=10).gap == 0
    assert nearer_by(distances, pairs, *rows, draws=10).gap == 0.25
    alone = {"same_context": np.array([0, 0]), "different_contexts": np.array([1, 1, 1, 1])}
    assert np.isnan(nearer_by(distances, pairs, *rows, strata=alone, draws=10)).tolist()[:3] == [True] * 3


def result(text_id: str, vectors: dict[str, np.ndarray]) -> TextResult:
    """A result of which only the identity and the vectors matter."""
    blank: dict[str, Any] = {field.name: None for field in dataclasses.fields(TextResult)}
    return TextResult(**blank | {"text_id": text_id, "vectors": vectors})


def test_vectors_and_identities_of_results():
    rows = [{"e": np.full(2, i, np.float32), "mem": np.arange(6, dtype=np.float32).reshape(3, 2)} for i in range(2)]
    results = Results((result("ab12", rows[0]), result("ab12-1", rows[1])), {"arrangement": "one-step"}, "model")
    assert plain_ids(results) == ["ab12", "ab12"]
    np.testing.assert_array_equal(learned_vectors(results), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(learned_vectors(results, "mem"), [range(6)] * 2)
    with pytest.raises(UserError, match="unknown leaf 'f'"):
        learned_vectors(results, "f")

"""Smoke runs of the cards of Tables 1 to 4 and of the baseline: what must hold on the smallest models and texts too."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest
from smoke import smoke

from onestep_jax import Decoded, Model, Results, TextResult, read_results, text_nats
from onestep_jax.analysis.metrics import compression
from onestep_jax.experiment.cards import load_card
from onestep_jax.experiment.study import Study
from onestep_jax.store.reading import read_config
from onestep_jax.texts.corpora import load_tokens

pytestmark = pytest.mark.long

ROUNDING = 1e-4  # in logits, of float32 at different positions


def demo(model: Model, length: int) -> list[np.ndarray]:
    """The texts of the smoke runs."""
    return load_tokens(model, "demo", count=4, length=length)


def test_gen_gives_as_many_texts_as_asked(tmp_path: Path, two_layers: Model):
    """The demo has eight contexts; more texts are further continuations of these."""
    study = Study(tmp_path, two_layers)
    ten, three = study.texts("gen", 10, 4), study.texts("gen", 3, 4)
    assert [len(ids) for ids in ten] == [4] * 10
    np.testing.assert_array_equal(ten[:3], three)
    np.testing.assert_array_equal(ten[:8], load_tokens(two_layers, "gen", count=8, length=4))
    assert len({tuple(ids) for ids in ten}) == 10


def test_table1_arrangements(tmp_path: Path, two_layers: Model):
    """Equal inputs give equal outputs, whatever the vector: a run of one vector at the beginning gives one token.

    Or a few that tie: the loss is least where all tokens of the text are equally likely, and rounding then decides.
    """
    apply = jax.jit(two_layers.apply)
    (rows,) = smoke("table1_arrangements", tmp_path, two_layers).values()
    accuracy = {(row["arrangement"], row["length"]): row["accuracy mean"] for row in rows}
    assert len(rows) == 10
    assert all(row["texts"] == 4 for row in rows)
    for length in (4, 8):
        assert 0 < accuracy["[e]×N", length] < accuracy["[e]×N/2 [m]×N/2", length] < 1
        for solved in ("[e,m]×N/2", "[e] [m]×N", "[e] [m]×(N−1)"):
            assert accuracy[solved, length] == 1
    runs = tmp_path / "table1_arrangements" / "runs"
    parts = [("one-vector", 1), ("halves", 2)]
    for text, part in [(text, part) for name, part in parts for text in read_results(runs / name)]:
        count = len(text.tokens) // part
        logits_TV = np.asarray(apply(two_layers.params, np.tile(text.vectors["e"], (count, 1))))
        assert np.ptp(logits_TV, axis=0).max() < ROUNDING
        tied = np.flatnonzero(logits_TV[0] > logits_TV[0].max() - ROUNDING)
        assert set(text.predicted[:count]) <= set(tied)
    assert [row["paper mean"] for row in rows if row["length"] == 4] == [0.17, 0.12, 1, 1, 1]
    assert all(row["paper mean"] == "" for row in rows if row["length"] == 8)


def test_table2_sharing(tmp_path: Path, two_layers: Model):
    tables = smoke("table2_sharing", tmp_path, two_layers)
    rows = {(row["shared"], row["texts a group"]): row for row in tables["table2"]}
    assert set(rows) == {("e", 1), ("e", 4), ("m", 1), ("m", 4)}
    for (leaf, group), row in rows.items():
        seeds = [of for of in tables["table2_seeds"] if (of["shared"], of["texts a group"]) == (leaf, group)]
        assert [of["seed"] for of in seeds] == [0, 1]
        assert row["avg mean"] == pytest.approx(np.mean([of["mean"] for of in seeds]), abs=1e-5)
        assert max(of["mean"] for of in seeds) - 1e-6 <= row["max mean"] <= 1
        assert row["vectors a text"] == 1 + 1 / group
        whole = (row["avg first mean"] + 7 * row["avg rest mean"]) / 8
        assert row["avg mean"] == pytest.approx(whole, abs=1e-5)
        assert row["avg rest mean"] == pytest.approx(np.mean([of["rest mean"] for of in seeds]), abs=1e-5)
        assert row["avg rest mean"] <= row["max rest mean"] <= 1
    for leaf in ("e", "m"):
        assert rows[leaf, 1]["avg mean"] == 1
        assert rows[leaf, 4]["steps of a group"] > rows[leaf, 1]["steps of a group"]
        results = read_results(tmp_path / "table2_sharing" / "runs" / f"{leaf}-4")
        if leaf == "e":  # token 1 is read at the shared vector alone
            assert len({int(text.predicted[0]) for text in results.texts[:4]}) == 1
            assert rows["e", 4]["avg first mean"] < 1
        other = {"e": "m", "m": "e"}[leaf]
        shared, own = results.vectors[leaf], results.vectors[other]
        assert len(np.unique(shared[:4], axis=0)) == len(np.unique(shared[4:], axis=0)) == 1
        assert len(np.unique(shared, axis=0)) == 2
        assert len(np.unique(own, axis=0)) == len(results) == 8
        best = {tuple(text.tokens): 0.0 for text in results}
        for text in results:
            best[tuple(text.tokens)] = max(best[tuple(text.tokens)], text.accuracy)
        assert len(best) == 4
        assert rows[leaf, 4]["max mean"] == pytest.approx(np.mean(list(best.values())), abs=1e-5)
        means = [row["mean"] for row in tables["table2_seeds"] if (row["shared"], row["texts a group"]) == (leaf, 4)]
        assert means == pytest.approx([results.accuracy[:4].mean(), results.accuracy[4:].mean()], abs=1e-5)


def test_table3_capacity(tmp_path: Path, two_layers: Model):
    tables = smoke("table3_capacity", tmp_path, two_layers)
    rows = {(row["m"], row["method"]): row for row in tables["table3"]}
    assert set(rows) == {("own", "grid"), ("own", "search"), ("shared", "grid")}
    texts = demo(two_layers, 8)
    for (m, method), row in rows.items():
        own = [of for of in tables["table3_texts"] if (of["m"], of["method"]) == (m, method)]
        assert [of["text"] for of in own] == [0, 1, 2, 3]
        assert row["texts"] == 4
        assert row["C_tokens max"] == max(of["C_tokens"] for of in own)
        nats = [
            sum(text_nats(two_layers, [ids])[0].nats[: int(of["tokens"])]) for ids, of in zip(texts, own, strict=True)
        ]
        np.testing.assert_allclose([of["H_LM, nats"] for of in own], nats, rtol=1e-4)
        assert row["H_LM mean, nats"] == pytest.approx(np.mean(nats), rel=1e-4)
        assert row["exact tokens mean"] <= row["exact horizon mean"] <= 8
        assert row["paper C_tokens"] == ""
    assert rows["own", "grid"]["C_tokens mean"] == rows["own", "grid"]["at the longest length"] * 2 == 8
    assert rows["shared", "grid"]["C_tokens mean"] <= rows["own", "grid"]["C_tokens mean"]
    assert rows["shared", "grid"]["gradient evaluations"] > rows["own", "grid"]["gradient evaluations"]
    (compared,) = tables["table3_search"]
    assert compared["same capacity"] == compared["no smaller capacity"] == 1
    assert compared["fits of the search"] < compared["fits of the grid"] == 12
    assert 0 < compared["work, gradient evaluations"] < 1
    shared = read_results(tmp_path / "table3_capacity" / "runs" / "0-demo-shared-grid" / "round-000")
    for length in (4, 5, 8):
        m = np.stack([text.vectors["m"] for text in shared if len(text.tokens) == length])
        assert len(m) == 4
        assert len(np.unique(m, axis=0)) == 1


def test_vectors(tmp_path: Path, two_layers: Model):
    """Floats are those of the run directories, capacities those of their texts; d beyond the width is left out."""
    tables = smoke("vectors", tmp_path, two_layers)
    rows = {(row["series"], row["number"]): row for row in tables["vectors"]}
    keys = {("plain", 1): "plain-1", ("memory", 1): "memory-1", ("m", 2): "m-2", ("fixed", 4): "fixed-4"}
    keys |= {("shared", 4): "shared-4", ("memory own", 4): "memory-own-4"}
    assert list(rows) == list(keys)
    D, texts = two_layers.embed_width, load_tokens(two_layers, "demo", count=2, length=8)
    h_lm = [one.nats for one in text_nats(two_layers, texts)]
    for key, row in rows.items():
        runs = [read_results(folder) for folder in sorted((tmp_path / "vectors" / "runs" / keys[key]).glob("round-*"))]
        first = {leaf: np.stack([text.vectors[leaf] for text in runs[0].texts[:2]]) for leaf in runs[0].vectors}
        stored = sum(np.unique(leaf, axis=0).size / 2 for leaf in first.values())
        assert row["floats"] == stored == compression(two_layers, runs[0][0], runs[0].scheme).floats
        longest = [0, 0]
        for text in (text for run in runs for text in run):
            owner = [list(ids[: len(text.tokens)]) for ids in texts].index(list(text.tokens))
            right = [n for n in (4, 8) if n <= len(text.tokens) and (text.predicted[:n] == text.tokens[:n]).all()]
            longest[owner] = max([longest[owner], *right])
        assert row["tokens mean"] == np.mean(longest)
        assert row["nats mean"] == pytest.approx(np.mean([h_lm[i][:n].sum() for i, n in enumerate(longest)]), rel=1e-4)
        assert row["tokens a float"] == pytest.approx(row["tokens mean"] / row["floats"], rel=1e-4)
        own = [of for of in tables["vectors_texts"] if (of["series"], of["number"]) == key]
        assert [of["tokens"] for of in own] == longest
        assert row["gradient evaluations"] == sum(of["gradient evaluations"] for of in own)
    floats = {key: row["floats"] for key, row in rows.items()}
    assert floats["plain", 1] == 2 * D
    assert floats["m", 2] == 3 * D
    assert floats["fixed", 4] == 4 + D
    assert floats["shared", 4] == 4 + D + 5 * D / 2
    assert rows["shared", 4]["floats of the vectors"] == 2 * D
    assert rows["m", 2]["tokens mean"] == rows["plain", 1]["tokens mean"] == 8
    assert rows["fixed", 4]["tokens mean"] < 8  # four numbers say too little


def test_table4_training_time(tmp_path: Path, two_layers: Model):
    (rows,) = smoke("table4_training_time", tmp_path, two_layers).values()
    assert [(row["fitted"], row["length"]) for row in rows] == [("one at a time", 8), ("batched", 8)]
    for row in rows:
        assert row["texts"] == row["solved"] == row["reconstructed"] == 4
        assert 0 < row["seconds mean"] == row["seconds a solved text"] < 60
        assert 0 < row["seconds least"] <= row["seconds median"] <= row["seconds most"] < 60
        assert row["milliseconds a step"] * row["steps mean"] == pytest.approx(1000 * row["seconds mean"], rel=1e-3)
        assert row["paper seconds"] == ""
    assert rows[0]["steps mean"] == pytest.approx(rows[1]["steps mean"], rel=0.2)
    runs = tmp_path / "table4_training_time" / "runs"
    one, batched = (read_config(runs / name)["settings"] for name in ("one-at-a-time-8", "batched-8"))
    assert one["slots"] == one["devices"] == batched["devices"] == 1
    assert batched["slots"] >= 4


def test_baseline_cramming(tmp_path: Path, two_layers: Model):
    """Up to the first error, generation and prediction from the true text see the same tokens; after it they part."""
    tables = smoke("baseline_cramming", tmp_path, two_layers)
    short, long = tables["cramming"]
    assert (short["length"], long["length"]) == (4, 16)
    for row in (short, long):
        assert row["forced tokens before an error"] == row["generated tokens before an error"]
        assert row["forced exact"] == row["generated exact"]
        assert row["texts"] == 4
    assert short["forced mean"] > long["forced mean"] > long["generated mean"]
    (best,) = tables["cramming_best"]
    own = tables["cramming_texts"]
    for way in ("forced", "generated"):
        assert best[f"{way} tokens max"] == max(row[f"{way} tokens"] for row in own) == 4
        assert best[f"{way} H_LM mean, nats"] == pytest.approx(np.mean([row[f"{way} H_LM, nats"] for row in own]), 1e-4)
    assert best["reported forced tokens"] == ""


def crammed(count: int, errors: list[int]) -> TextResult:
    """A fit of the first `count` tokens of a text, wrong at these positions when the true text is read."""
    tokens = np.arange(count, dtype=np.int32)
    predicted = tokens.copy()
    predicted[[at for at in errors if at < count]] = -1
    right = int((predicted == tokens).sum())
    numbers = {"accuracy": right / count, "c_tokens": right, "loss": 0.0, "steps": 1, "best_step": 0, "seconds": 0.0}
    names = {"index": 0, "text_id": f"{count:016x}", "seed": 0, "status": "exhausted", "h_lm": float(count)}
    vectors = {"mem": np.zeros((1, 4), np.float32)}
    nats = np.ones(count, np.float32)
    return TextResult(tokens=tokens, vectors=vectors, predicted=predicted, nats=nats, **names, **numbers)


def test_cramming_counts_what_is_generated(monkeypatch: pytest.MonkeyPatch):
    """One wrong token in a hundred passes as 99 % when forced; generation that it derails holds a short prefix only."""
    card = load_card("baseline_cramming")
    fits = Results(tuple(crammed(n, errors) for n in (8, 100) for errors in ([9], [])), {}, "", "")
    derailed = [fit.tokens.copy() for fit in fits]
    derailed[2][9:] = -1
    made = [
        Decoded(fit.text_id, ids, None, None, float((ids == fit.tokens).mean()), ())
        for fit, ids in zip(fits, derailed, strict=True)
    ]
    monkeypatch.setattr(card, "regenerate", lambda _model, _results: made)
    ways = {"forced": list(fits), "generated": card._generated(types.SimpleNamespace(model=None), fits)}
    row = card._at_length(ways, 100)
    assert (row["forced mean"], row["forced at 0.99"], row["forced exact"]) == (0.995, 1, 0.5)
    assert (row["generated mean"], row["generated at 0.99"], row["generated exact"]) == (0.545, 0.5, 0.5)
    assert row["forced tokens before an error"] == row["generated tokens before an error"] == 54.5
    capacities = {way: card._capacities(found, 2) for way, found in ways.items()}
    assert [text["forced tokens"] for text in card._by_text(capacities)] == [100, 100]
    assert [text["generated tokens"] for text in card._by_text(capacities)] == [8, 100]
    best = card._best(capacities)
    assert (best["forced H_LM mean, nats"], best["generated H_LM mean, nats"]) == (100, 54)
    assert (best["forced at the longest length"], best["generated at the longest length"]) == (2, 1)

"""Smoke runs of the cards that look into proto-tokens: access, attention, seeds, failures, prices, paths, control.

Whatever follows from causality is exact: the first output sees e alone, so e brings the first token of its own text.
"""

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from smoke import read_csv, smoke

from onestep_jax import Model, TextResult, generate, load_model, read_results, text_nats
from onestep_jax.analysis import absorption as absorption_analysis
from onestep_jax.analysis.prefix_table import read_prefix_table
from onestep_jax.cli.parser import main
from onestep_jax.experiment.cards import load_card
from onestep_jax.prototokens.reconstruction import decode
from onestep_jax.store.reading import read_config
from onestep_jax.texts.corpora import contexts, continuations, load_tokens
from onestep_jax.tokens import as_text

pytestmark = pytest.mark.long

KINDS = ("encoder", "random")


def demo(model: Model, count: int = 4) -> list[np.ndarray]:
    """The texts of the smoke runs."""
    return load_tokens(model, "demo", count=count, length=8)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = (Counter(a.tolist()) & Counter(b.tolist())).total()
    return 2 * shared / (len(a) + len(b))


def test_access(tmp_path: Path, two_layers: Model):
    tables = smoke("access", tmp_path, two_layers)
    rows = {(row["compared with"], row["start"], row["measure"]): row for row in tables["access"]}
    assert len(rows) == len(tables["access"]) == 4 * 6 + 5 * 2 + 2 * 4
    assert all(row["texts"] == 4 for row in rows.values())
    assert all(row["difference"] == pytest.approx(row["own"] - row["other"], abs=1e-5) for row in rows.values())

    # the control: the one pass gives the text whole, and no other text; 1 / 4^4 is the least possible p
    assert [rows["fitted", "one pass", name]["own"] for name in ("exact", "prefix", "substring", "overlap")] == [
        1,
        8,
        8,
        1,
    ]
    assert rows["fitted", "one pass", "exact"]["other"] < 0.2
    assert rows["fitted", "one pass", "exact"]["p"] < 0.02
    # what one pass was trained on is not compared: the first token after e, the second after e m
    assert [rows["fitted", start, "exact"]["tokens"] for start in ("e", "e m", "BOS")] == [7, 6, 8]
    for start in ("e", "e m", "BOS"):
        assert rows["fitted", start, "exact"]["own"] < 0.5
        assert rows["fitted", start, "exact"]["p"] > 0.02
    assert {row["start"] for row in rows.values() if row["paper"] == "nothing related"} == {"e", "e m"}
    # beside what is generated from the same true tokens alone
    for start, control in (("e", "t"), ("e m", "t t2")):
        for measure in ("exact", "prefix", "substring", "overlap"):
            own, other, row = (
                rows[*key, measure] for key in (("fitted", start), ("fitted", control), (control, start))
            )
            assert (row["own"], row["other"], row["tokens"]) == (own["own"], other["own"], own["tokens"])
            assert 1 / 2**4 <= row["p"] <= 1

    # fitted are the beginnings of the model's own continuations, the rest is what comes after
    given = contexts(two_layers, "demo", count=4, length=8)
    whole = np.stack([one for (one,) in continuations(two_layers, given, length=16)])
    results = read_results(tmp_path / "access" / "runs" / "continuations")
    np.testing.assert_array_equal(np.stack([text.tokens for text in results]), whole[:, :8])
    prompts = [text.vectors["e"][None] for text in results]
    out = np.stack([one.tokens for one in generate(two_layers, prompts, count=8, stop=())])
    table = np.array([[overlap(one, ids[8:]) for ids in whole] for one in out])
    row = rows["rest", "e", "overlap"]
    assert row["own"] == pytest.approx(np.diag(table).mean(), abs=1e-5)
    assert row["other"] == pytest.approx(table[~np.eye(4, dtype=bool)].mean(), abs=1e-5)
    strings = {(row["text"], row["start"]): row["generated"] for row in tables["access_texts"]}
    assert [strings[i, "e"] for i in range(4)] == [as_text(two_layers.tokenizer, ids) for ids in out]
    assert len({strings[i, "BOS"] for i in range(4)}) == 1


def test_attention(tmp_path: Path):
    tables = smoke("attention", tmp_path)
    rows = tables["attention"]
    assert len(rows) == 8 * 8
    for row in rows:
        assert row["e mean"] + row["itself mean"] + row["others mean"] == pytest.approx(1, abs=1e-4)
        assert row["prefix mean"] == row["prefix uniform"] == 0
        assert row["e uniform"] == pytest.approx(np.mean([1 / (t + 1) for t in range(1, 8)]), abs=1e-5)
        assert row["e / uniform"] == pytest.approx(row["e mean"] / row["e uniform"], abs=1e-4)
    # some head fetches e, some looks away
    assert max(row["e / uniform"] for row in rows) > 1.5
    assert min(row["e / uniform"] for row in rows) < 0.5
    positions = tables["attention_positions"]
    assert [(row["layer"], row["position"]) for row in positions] == [(i, t) for i in range(8) for t in range(1, 8)]
    for layer in range(8):
        by_position = np.mean([row["e mean over heads"] for row in positions if row["layer"] == layer])
        by_head = np.mean([row["e mean"] for row in rows if row["layer"] == layer])
        assert by_position == pytest.approx(by_head, abs=1e-4)
    assert all(row["e of the highest head"] >= row["e mean over heads"] for row in positions)

    ablations = {row["replaced"]: row for row in tables["ablations"]}
    assert ablations["kept"]["accuracy mean"] == 1
    assert len(ablations) == 9
    assert all(row["accuracy mean"] < 0.6 for kind, row in ablations.items() if kind != "kept")
    assert {kind for kind, row in ablations.items() if row["donor accuracy mean"] != ""} == {"e=other", "m=other"}
    # the first token comes from e alone
    assert ablations["e=other"]["donor accuracy mean"] >= 1 / 8
    assert all(ablations[kind]["accuracy mean"] >= 1 / 8 for kind in ("m=e", "m=0", "m=mean", "m=other"))


def test_seed_stability(tmp_path: Path, two_layers: Model):
    tables = smoke("seed_stability", tmp_path, two_layers)
    leaves = {row["leaf"]: row for row in tables["seed_stability"]}
    results = read_results(tmp_path / "seed_stability" / "runs" / "copies")
    owner = [text.text_id.partition("-")[0] for text in results]
    assert len(results) == 12
    assert sorted(Counter(owner).values()) == [3, 3, 3, 3]
    for name, row in leaves.items():
        unit = results.vectors[name] / np.linalg.norm(results.vectors[name], axis=1, keepdims=True)
        pairs = list(combinations(range(12), 2))
        same = [1 - unit[i] @ unit[j] for i, j in pairs if owner[i] == owner[j]]
        assert (row["within pairs"], row["between pairs"]) == (12, 54)
        assert row["within mean"] == pytest.approx(np.mean(same), abs=1e-4)
        assert 0.3 < row["within mean"] < row["between mean"] < 1.2
        assert row["auc"] > 0.5
        assert row["by chance"] == pytest.approx(3 / 11, abs=1e-5)
        assert row["variance between texts"] > row["by chance"]
    assert (leaves["e"]["paper within from"], leaves["e"]["paper within to"]) == (0.7, 0.9)
    assert leaves["m"]["paper within from"] == ""
    fitted, exchanged = tables["exchange"]
    assert (fitted["pairs"], fitted["accuracy mean"], fitted["exact"]) == (12, 1, 1)
    # e and m belong together; what is left is the first token, which needs e alone, and what comes right by chance
    assert exchanged["pairs"] == 24
    assert 1 / 8 <= exchanged["accuracy mean"] < 0.6


def test_failures(tmp_path: Path, two_layers: Model):
    tables = smoke("failures", tmp_path, two_layers)
    whole = np.stack(demo(two_layers))
    results = list(read_results(tmp_path / "failures" / "runs" / "lengths"))
    for row in tables["failures_lengths"]:
        length = int(row["length"])
        texts = [text for text in results if len(text.tokens) == length]
        wrong = np.stack([text.predicted != text.tokens for text in texts])
        assert row["wrong"] == wrong.sum() > 0
        assert row["accuracy mean"] == pytest.approx(1 - wrong.mean(), abs=1e-5)
        assert (
            0 < row["never right"] <= row["wrong"]
        )  # the kept vectors were scored, so a token right there was once hit
        for column in ("position", "relative", "nats", "occurrences"):
            bins = [one for one in tables["failures"] if (one["length"], one["by"]) == (length, column)]
            assert sum(one["tokens"] for one in bins) == row["tokens"] == 4 * length
            assert sum(one["wrong"] for one in bins) == row["wrong"]
            assert all(one["rate"] == pytest.approx(one["wrong"] / one["tokens"], abs=1e-5) for one in bins)
        by_place = [one for one in tables["failures"] if (one["length"], one["by"]) == (length, "position")]
        assert [one["wrong"] for one in by_place][:2] == wrong[:, :2].sum(0).tolist()
        # occurrences are counted in the whole texts, for shorter prefixes too
        ids, counts = np.unique(whole, return_counts=True)
        once = int(np.isin(whole[:, :length], ids[counts == 1]).sum())
        found = [one for one in tables["failures"] if (one["length"], one["by"]) == (length, "occurrences")]
        assert (found[0]["low"], found[0]["tokens"]) == (1, once)
    position, nats = (
        next(row for row in tables["failures_association"] if (row["length"], row["by"]) == (8, by))
        for by in ("position", "nats")
    )
    assert position["auc"] > 0.6  # later tokens fail
    assert nats["rank correlation with first hit"] > 0.1  # surprising tokens come late


def test_absorption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packaged, tables = load_model("default"), smoke("absorption", tmp_path)
    rows, (summary,) = tables["absorption_tokens"], tables["absorption"]
    assert [(row["text"], row["position"]) for row in rows] == [(i, t) for i in range(4) for t in range(8)]
    assert all(row["solved"] == "True" for row in rows)
    assert (summary["horizon min"], summary["horizon max"]) == (8, 8)
    nats = np.concatenate([one.nats for one in text_nats(packaged, demo(packaged))])
    np.testing.assert_allclose([row["nats"] for row in rows], nats, rtol=1e-3)
    later = [row for row in rows if row["position"] > 0]
    rho = spearmanr([row["nats"] for row in later], [row["evaluations"] for row in later]).statistic
    assert summary["rank correlation with nats"] == pytest.approx(rho, abs=1e-4)
    assert summary["tokens"] == 28
    evaluations = [row["evaluations"] for row in rows]
    assert summary["came of itself"] == pytest.approx(np.mean(np.equal(evaluations, 0)), abs=1e-5)
    assert summary["with position"] > 0  # later tokens cost more
    assert 20 < sum(evaluations) / 4 < 400

    def not_again(*_args, **_options):
        raise AssertionError("a finished batch is absorbed again")

    monkeypatch.setattr(absorption_analysis, "absorb", not_again)
    assert main(["experiment", "absorption", "--smoke", "--out", str(tmp_path)]) == 0
    assert read_csv(tmp_path / "absorption" / "absorption_tokens.csv") == rows


def test_trajectories(tmp_path: Path, two_layers: Model):
    tables = smoke("trajectories", tmp_path, two_layers)
    paths = {(row["text"], row["leaf"], row["copy"]): row for row in tables["trajectories"]}
    assert len(paths) == len(tables["trajectories"]) == 2 * 3 * 3
    for text in range(2):
        for copy in range(3):
            e, m, both = (paths[text, leaf, copy] for leaf in ("e", "m", "e and m"))
            assert both["accuracy"] == 1
            assert both["displacement"] ** 2 == pytest.approx(e["displacement"] ** 2 + m["displacement"] ** 2, rel=1e-4)
            assert max(e["length"], m["length"]) < both["length"] < e["length"] + m["length"]
            for row in (e, m, both):
                assert 0 < row["displacement"] <= row["reach"] < row["length"]
                assert 0.2 < row["displacement / length"] < 1
            points = [p for p in tables["trajectories_points"] if (p["text"], p["path"]) == (text, copy)]
            assert len(points) == both["points"]
            assert points[-1]["accuracy"] == 1
            assert points[-1]["loss"] < points[0]["loss"]
    for row in tables["trajectories_planes"]:
        walked = row["axis 1 of random walks"] + row["axis 2 of random walks"]
        assert 0 < walked < 1
        assert 0.2 < row["variance of axis 1"] + row["variance of axis 2"] < 1
    for text in range(2):
        points = [p for p in tables["trajectories_points"] if p["text"] == text]
        first, second = (np.var([p[axis] for p in points]) for axis in ("axis_1", "axis_2"))
        row = next(r for r in tables["trajectories_planes"] if (r["text"], r["leaf"]) == (text, "e and m"))
        assert first / second == pytest.approx(row["variance of axis 1"] / row["variance of axis 2"], rel=1e-3)


def test_random_walks_have_the_start_and_the_steps_of_a_path():
    points = np.random.default_rng(0).standard_normal((40, 30)).cumsum(axis=0)
    walk = load_card("trajectories")._random_walk(points, np.random.default_rng(1))
    np.testing.assert_array_equal(walk[0], points[0])
    steps = [np.linalg.norm(np.diff(one, axis=0), axis=1) for one in (walk, points)]
    np.testing.assert_allclose(*steps, rtol=1e-9)
    cosines = np.sum(np.diff(walk, axis=0) * np.diff(points, axis=0), axis=1) / steps[0] ** 2
    assert abs(cosines.mean()) < 0.15


def test_control_untrained(tmp_path: Path, two_layers: Model):
    tables = smoke("control_untrained", tmp_path, two_layers)
    rows = {(row["weights"], row["length"]): row for row in tables["control_untrained"]}
    kinds = ("trained", "permuted", "init")
    assert list(rows) == [(kind, length) for kind in kinds for length in (4, 8)]
    assert all((row["models"], row["fits"]) == (1, 2) for row in rows.values())
    assert all("part" not in row for table in tables.values() for row in table)
    # no training is needed for a short text
    for kind in ("trained", "permuted"):
        assert rows[kind, 4]["exact"] == 1
        assert rows[kind, 8]["accuracy mean"] > 0.9
        assert 5 < rows[kind, 4]["steps median of exact"] < rows[kind, 8]["steps median of exact"] < 120
    models = {row["weights"]: row for row in tables["control_untrained_models"]}
    assert len({row["fingerprint"] for row in models.values()}) == 3
    std = {kind: models[kind]["input embedding std"] for kind in kinds}
    assert std["permuted"] == pytest.approx(std["trained"], rel=1e-5)
    assert std["init"] == pytest.approx(0.02, rel=0.01)
    assert all(models[kind]["start std"] == 1 for kind in kinds)
    # only the trained model knows the language: ln 4096 = 8.32
    assert rows["trained", 8]["nats per token"] < 6.5
    assert rows["init", 8]["nats per token"] == pytest.approx(np.log(4096), abs=0.2)
    assert rows["permuted", 8]["nats per token"] > 8
    h_lm = np.mean([one.total for one in text_nats(two_layers, demo(two_layers, 2))])
    assert models["trained"]["h_lm mean"] == pytest.approx(h_lm, rel=1e-4)
    assert models["permuted"]["h_lm under trained mean"] == pytest.approx(h_lm, rel=1e-4)
    assert models["permuted"]["h_lm mean"] > 8 * np.log(4096)
    for kind in kinds:
        least = 8 * rows[kind, 8]["exact"] + 4 * (rows[kind, 4]["exact"] - rows[kind, 8]["exact"])
        assert models[kind]["c_tokens mean"] == pytest.approx(least)


def test_sink(tmp_path: Path, two_layers: Model):
    tables = smoke("sink", tmp_path, two_layers)
    rows = {(row["weights"], row["prefix"], row["layer"]): row for row in tables["sink"]}
    layers = two_layers.config.layers
    assert len(rows) == len(tables["sink"]) == 2 * 2 * (layers + 1)
    # what enters the first block are the embeddings: of BOS at position 0 of every text
    bos = np.asarray(two_layers.embed(two_layers.params, np.array([two_layers.tokenizer.bos_token_id])))
    assert rows["trained", "bos", 0]["norm at 0"] == pytest.approx(np.linalg.norm(bos), rel=1e-5)
    assert all(0 <= row["weight on 0"] <= 1 for key, row in rows.items() if key[2] < layers)
    fits = {(row["weights"], row["e"], row["prefix"]): row for row in tables["sink_fits"]}
    assert len(fits) == 8
    for (weights, guided, prefix), row in fits.items():
        arrangement = {"guided": "one-step", "unguided": "unguided-e"}[guided]
        results = read_results(tmp_path / "sink" / "runs" / f"{weights}-{guided}-{prefix}")
        assert results.scheme["arrangement"] == arrangement
        assert ("prefix" in results.scheme) == (prefix == "bos")
        assert row["solved"] == results.solved
        assert row["first token"] == pytest.approx(np.mean([text.predicted[0] == text.tokens[0] for text in results]))


def test_growth(tmp_path: Path, two_layers: Model):
    tables = smoke("growth", tmp_path, two_layers)
    runs = tmp_path / "growth" / "runs"
    folders = {"geometric": "geometric", "geometric, warm": "geometric-warm"}
    folders |= {"every, fresh": "every-fresh", "growth": "growth"}
    read = {way: read_prefix_table(runs / folder) for way, folder in folders.items()}
    rows = {row["way"]: row for row in tables["growth"]}
    assert list(rows) == list(read)
    assert read["geometric"].lengths == read["geometric, warm"].lengths == (2, 4, 8, 16)
    assert read["every, fresh"].lengths == read["growth"].lengths == tuple(range(2, 17))
    most = np.mean([found.tokens for found in read["growth"].capacities()])
    for way, table in read.items():
        found, row = table.capacities(), rows[way]
        assert row["tokens mean"] == np.mean([text.tokens for text in found])
        assert row["nats mean"] == pytest.approx(np.mean([text.h_lm for text in found]), rel=1e-5)
        assert row["evaluations"] == sum(result.steps for result in table.found.values())
        assert row["fits"] == len(table.found)
        assert row["short of growth, tokens"] == pytest.approx(1 - row["tokens mean"] / most, abs=1e-5)
        texts = [text for text in tables["growth_texts"] if text["way"] == way]
        assert [text["tokens"] for text in texts] == [text.tokens for text in found]
        # the same budget a length for every way
        assert {read_config(path.parent)["identity"]["steps"] for path in runs.rglob("config.json")} == {30}
    assert most > rows["geometric"]["tokens mean"]

    fresh, grown = read["every, fresh"], read["growth"]
    for text in (0, 1):
        stages = [row for row in tables["growth_stages"] if row["text"] == text]
        assert [row["length"] for row in stages] == list(grown.row(text))
        assert np.cumsum([row["evaluations"] for row in stages]).tolist() == [row["so far"] for row in stages]
        last = None
        for row in stages:
            result, other = grown.row(text)[row["length"]], fresh.row(text).get(row["length"])
            assert row["evaluations"] == result.steps
            assert row["right before a step"] == np.sum(result.trials[0].first_hit == 0)
            assert row["solved"] == str(result.accuracy == 1)
            if last is not None:
                assert row["moved"] == pytest.approx(apart(last, result), rel=1e-4)
            if other is not None:
                assert row["evaluations, fresh"] == other.steps
            if row["to fresh"] != "":
                assert row["to fresh"] == pytest.approx(apart(result, other), rel=1e-4, abs=1e-4)
            last = result if result.accuracy == 1 else last
        (path,) = [row for row in tables["growth_paths"] if row["text"] == text]
        assert path["path"] == pytest.approx(
            sum(row["moved"] for row in stages[1:] if row["solved"] == "True"), rel=1e-4
        )
        assert 0 < path["displacement"] < path["path"]


def apart(one: TextResult, other: TextResult) -> float:
    return float(np.sqrt(sum(np.sum((one.vectors[leaf] - other.vectors[leaf]) ** 2) for leaf in ("e", "m"))))


def test_prefix_suffix(tmp_path: Path, two_layers: Model):
    tables = smoke("prefix_suffix", tmp_path, two_layers)
    rows = {(row["prefix"], row["text"]): row for row in tables["prefix_suffix_texts"]}
    pieces = load_tokens(two_layers, "demo", count=2, length=7)
    own = [ids[:3] for ids in pieces]
    for kind, before in (
        ("true", own),
        ("other", own[::-1]),
        ("bos", [np.array([two_layers.tokenizer.bos_token_id])] * 2),
    ):
        nats = text_nats(two_layers, [ids[3:] for ids in pieces], prefixes=before)
        for text in (0, 1):
            row = rows[kind, text]
            assert row["tokens"] in (0, 2, 4)
            assert row["nats"] == pytest.approx(float(nats[text].nats[: int(row["tokens"])].sum()), rel=1e-4, abs=1e-6)
    summary = {row["prefix"]: row for row in tables["prefix_suffix"]}
    assert summary["true"]["tokens mean"] == np.mean([rows["true", text]["tokens"] for text in (0, 1)])


def test_encoder(tmp_path: Path, two_layers: Model):
    tables = smoke("encoder", tmp_path, two_layers)
    rows = tables["encoder"]
    assert [(row["length"], row["corrections"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    # A correction of an untrained encoder changes nothing, and neither does it say anything of the text.
    for first, second in (rows[:2], rows[2:]):
        assert first["nats"] == second["nats"]
    assert {row["vectors"] for row in tables["encoder_floors"]} == {"constant", "another text", "untrained"}
    for row in tables["encoder_start"]:
        assert (row["solved from random"], row["cost of the training"]) == (2, 0)
        names = {name: f"demo-{row['length']:.0f}-{name}" for name in KINDS}
        runs = {name: read_results(tmp_path / "encoder" / "runs" / folder) for name, folder in names.items()}
        assert row["evaluations from random"] == runs["random"].steps.mean()
        assert row["evaluations from the encoder"] == runs["encoder"].steps.mean() + 1


def test_margins(tmp_path: Path, two_layers: Model):
    tables = smoke("margins", tmp_path, two_layers)
    rows = {row["margin"]: row for row in tables["margins"]}
    assert list(rows) == [0, 1]
    half = load_model(two_layers.source, dtype="bfloat16")
    for margin, row in rows.items():
        results = read_results(tmp_path / "margins" / "runs" / f"margin-{margin:g}")
        assert (row["texts"], row["solved"], row["exact"]) == (3, results.status.count("solved"), results.solved)
        assert row["solved"] == 3
        assert row["evaluations"] == pytest.approx(results.steps.mean(), rel=1e-5)
        assert row["times ε = 0"] == pytest.approx(row["evaluations"] / rows[0]["evaluations"], rel=1e-5)
        assert row["lead median"] == pytest.approx(np.median(results.margin), rel=1e-5)
        assert results.margin.min() >= margin
        low = np.mean([one.accuracy == 1 for one in decode(half, results)])
        assert row["exact in bfloat16"] == pytest.approx(low, rel=1e-5)
        assert row["exact in PyTorch"] in ("", 1)
        assert row["exact under noise 0.003"] >= row["exact under noise 0.03"]
        texts = [one for one in tables["margins_texts"] if one["margin"] == margin]
        assert [one["lead"] for one in texts] == pytest.approx(results.margin.tolist(), rel=1e-5)
        assert row["noise radius median"] == np.median([one["noise radius"] for one in texts])
        fits = read_results(tmp_path / "margins" / "runs" / f"capacity-{margin:g}")
        longest = [max((len(t.tokens) for t in fits.texts[i::3] if t.status == "solved"), default=0) for i in range(3)]
        (capacity,) = (one for one in tables["margins_capacity"] if one["margin"] == margin)
        assert (capacity["tokens mean"], capacity["tokens max"]) == (np.mean(longest), max(longest))
        by_length = [one["solved"] for one in tables["margins_lengths"] if one["margin"] == margin]
        assert sum(by_length) == fits.status.count("solved")
    assert rows[1]["noise radius median"] > rows[0]["noise radius median"]
    assert rows[1]["evaluations"] > rows[0]["evaluations"]

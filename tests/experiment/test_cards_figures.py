"""The recipe cards of Figures 3 to 7 at their smallest size: what must come out, and that it is measured."""

import numpy as np
import pytest
from smoke import read_csv, smoke

from onestep_jax import text_nats
from onestep_jax.analysis import similarity
from onestep_jax.cli.parser import main
from onestep_jax.errors import UserError
from onestep_jax.store.reading import read_results
from onestep_jax.texts.corpora import load_tokens

pytestmark = pytest.mark.long


def test_figure3(tmp_path, two_layers):
    tables = smoke("figure3_information", tmp_path, two_layers)
    rows = tables["figure3"]
    assert [(row["vectors"], row["text"]) for row in rows] == [(k, i) for k in (1, 2) for i in range(4)]
    # Both arrangements hold 8 tokens of the model; its [mem] holds fewer in as many steps.
    assert all(row["tokens"] == 8 for row in rows if row["vectors"] == 2)
    assert all(row["autoregressive tokens"] in (0, 2, 8) for row in rows)
    assert any(row["autoregressive tokens"] == 2 for row in rows)
    texts = load_tokens(two_layers, "demo", count=4, length=8)
    for row in rows:
        ends = [int(row["tokens"]), int(row["autoregressive tokens"])]
        expected = [text_nats(two_layers, [texts[int(row["text"])][:end]])[0].total if end else 0.0 for end in ends]
        np.testing.assert_allclose([row["nats"], row["autoregressive nats"]], expected, rtol=1e-4)
        if ends[1]:
            assert row["ratio"] == pytest.approx(row["nats"] / row["autoregressive nats"], rel=1e-4)
            assert row["generated tokens"] >= 2  # without an error in 2 tokens, teacher forcing is generation
    for k, summary in zip((1, 2), tables["figure3_summary"], strict=True):
        own = [row for row in rows if row["vectors"] == k]
        assert summary["nats mean"] == pytest.approx(np.mean([row["nats"] for row in own]), rel=1e-4)
        assert summary["tokens at the longest length"] == sum(row["tokens"] == 8 for row in own)
        assert summary["paper ratio typical"] == 0.5
    shared = read_results(tmp_path / "figure3_information" / "runs" / "one-pass-1" / "round-000")
    for length in (2, 8):
        m = np.stack([text.vectors["m"] for text in shared if len(text.tokens) == length])
        assert (m == m[:1]).all()


def test_figure4(tmp_path, two_layers):
    tables = smoke("figure4_throughput", tmp_path, two_layers)
    rows = {(row["length"], row["batch"]): row for row in tables["figure4"]}
    assert set(rows) == {(length, batch) for length in (2, 8) for batch in (1, 4)}
    for (length, batch), row in rows.items():
        for way in ("one pass", "autoregressive"):
            assert 0 < row[f"{way} ms least"] <= row[f"{way} ms"] <= row[f"{way} ms most"]
            assert row[f"{way} tokens/s"] == pytest.approx(1e3 * batch * length / row[f"{way} ms"], rel=1e-4)
        assert row["ratio"] == pytest.approx(row["autoregressive ms"] / row["one pass ms"], rel=1e-4)
    # The programs that are timed make what was fitted; eight tokens one by one are eight passes over the layers.
    runs = tmp_path / "figure4_throughput" / "runs"
    exact = [text.accuracy == 1 for text in read_results(runs / "one-pass")]
    for place, length in enumerate((2, 8)):
        own = sum(exact[4 * place : 4 * place + 4])
        assert {rows[length, batch]["one pass lossless"] for batch in (1, 4)} == {own}
    assert rows[8, 1]["one pass lossless"] == 4
    assert rows[8, 1]["autoregressive ms least"] > 1.5 * rows[8, 1]["one pass ms least"]
    assert rows[2, 1]["autoregressive lossless"] > 0
    longest = tables["figure4_longest"][0]
    assert longest["one pass length"] == 8
    assert longest["one pass tokens/s"] == rows[8, 1]["one pass tokens/s"]
    far = longest["autoregressive length"]
    assert rows[far, 1]["autoregressive lossless"] > 0
    assert longest["ratio"] == pytest.approx(
        longest["one pass tokens/s"] / rows[far, 1]["autoregressive tokens/s"], 1e-4
    )
    assert longest["paper ratio"] == 279
    assert tables["figure4_longest"][1]["paper ratio"] == ""


def test_figure5(tmp_path, two_layers, capsys, monkeypatch):
    tables = smoke("figure5_text_distance", tmp_path, two_layers)
    assert "semantic distances left out" in capsys.readouterr().out
    rows = tables["figure5"]
    assert {row["measure"] for row in rows} == {"token"}
    pairs = {name: sum(row["pairs"] for row in rows if row["relation"] == name) for name in NAMES}
    assert pairs == {"same_context": 4 * 5, "different_contexts": 6 * 16}
    assert all(0 <= row["from"] <= row["text distance mean"] <= row["to"] <= 1 for row in rows)
    assert all(0 < row["e distance mean"] < 2 for row in rows)
    (gap,) = tables["figure5_gap"]
    assert (gap["same context pairs"], gap["different contexts pairs"]) == (20, 96)
    assert gap["exact"] > 0.5
    assert (gap["share"], gap["contexts resampled"], gap["texts resampled"]) == ("none", 4, 12)
    assert gap["low"] < gap["nearer by"] < gap["high"]

    run = tmp_path / "figure5_text_distance" / "runs" / "share-none"

    def again(name, *settings):
        out = tmp_path / name
        command = ["experiment", "figure5_text_distance", "--smoke", "--model", two_layers.source, "--out", str(out)]
        command += ["--runs", str(run), *settings]
        return main(command), out / "figure5_text_distance"

    # Fits read from a run directory give the same numbers; those of other texts, or shared otherwise, are refused.
    code, folder = again("read")
    assert (code, read_csv(folder / "figure5.csv")) == (0, rows)
    assert again("seeds", "--seeds", "3")[0] == 2
    assert again("share", "--share", "m")[0] == 2
    capsys.readouterr()

    def embed(texts, folder=None, batch=64):
        return np.stack([np.random.default_rng(list(text.encode())).normal(size=384) for text in texts])

    monkeypatch.setattr(similarity, "sentence_embeddings", embed)
    code, folder = again("semantic", "--encoder", "download")
    both = read_csv(folder / "figure5.csv")
    assert code == 0
    assert [row for row in both if row["measure"] == "token"] == rows
    semantic = [row for row in both if row["measure"] == "semantic"]
    assert {name: sum(row["pairs"] for row in semantic if row["relation"] == name) for name in NAMES} == pairs
    assert all(0.7 < row["text distance mean"] < 1.3 for row in semantic)  # random directions
    assert len(read_csv(folder / "figure5_gap.csv")) == 2

    def refuse(texts, folder=None, batch=64):
        raise UserError("no encoder here")

    monkeypatch.setattr(similarity, "sentence_embeddings", refuse)
    code, folder = again("without", "--encoder", "download")
    assert "semantic distances left out: no encoder here" in capsys.readouterr().out
    assert (code, read_csv(folder / "figure5.csv")) == (0, rows)
    assert again("folder", "--encoder", str(tmp_path / "nowhere"))[0] == 2


NAMES = ("same_context", "different_contexts")


def test_figure6(tmp_path):
    tables = smoke("figure6_distances", tmp_path)
    rows = {(row["way"], row["relation"]): row for row in tables["figure6"]}
    for way in ("m shared by all", "m of each text"):
        found = [rows[way, name] for name in ("same_text", *NAMES)]
        # 4 contexts of 4 fits each: two of the last continuation, one of each other.
        assert [row["pairs"] for row in found] == [4, 20, 96]
        assert all(0 < row["min"] <= row["median"] <= row["max"] < 2 for row in found)
        assert all(row["fits"] == 16 for row in found)
        assert all(0.8 < row["accuracy mean"] <= 1 for row in found)
        assert [row["mean"] for row in found] == sorted(row["mean"] for row in found)
    assert rows["m shared by all", "same_text"]["paper from"] == 0.7
    assert rows["m shared by all", "same_context"]["paper from"] == ""
    assert rows["m of each text", "same_text"]["paper from"] == ""
    auc = {(row["way"], row["nearer"], row["farther"]): row["auc"] for row in tables["figure6_auc"]}
    assert len(auc) == 6
    assert auc["m shared by all", "same_text", "different_contexts"] > 0.75
    for row in tables["figure6_auc"]:
        near, far = (rows[row["way"], row[side]]["mean"] for side in ("nearer", "farther"))
        assert row["nearer by"] == pytest.approx(far - near, abs=1e-5)
        assert row["low"] < row["nearer by"] < row["high"]
        assert (row["contexts resampled"], row["texts resampled"]) == (4, 12)
    runs = tmp_path / "figure6_distances" / "runs"
    m = read_results(runs / "share-m").vectors["m"]
    assert (m == m[:1]).all()
    assert len(np.unique(read_results(runs / "share-none").vectors["m"], axis=0)) == 16


def test_figure7(tmp_path, two_layers):
    tables = smoke("figure7_connectivity", tmp_path, two_layers)
    line, curve = tables["figure7"]
    assert (line["way"], curve["way"]) == ("straight line", "Bézier curve")
    assert line["pairs"] == curve["pairs"] == len(tables["figure7_pairs"]) == 2
    assert line["least accuracy mean"] < 0.6
    assert curve["least accuracy mean"] > line["least accuracy mean"] + 0.2
    assert curve["accuracy mean"] > 0.9
    assert line["length ratio max"] == 1
    assert 1 < curve["length ratio mean"] <= curve["length ratio max"] < 1.5
    assert curve["paper length ratio max"] == 1.2
    first, *between, last = tables["figure7_tau"]
    for end in (first, last):  # the solutions themselves
        assert (end["line min"], end["curve min"]) == (1, 1)
    assert [row["tau"] for row in tables["figure7_tau"]] == pytest.approx(np.linspace(0, 1, 9))
    assert np.mean([row["line mean"] for row in between]) == pytest.approx((9 * line["accuracy mean"] - 2) / 7, 1e-4)
    assert all(row["line min"] <= row["line mean"] for row in between)

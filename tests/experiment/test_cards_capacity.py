"""Smoke runs of the cards about where capacity comes from: parts of a model, its training, its attention to e."""

import csv
import importlib.util
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smoke import read_csv, smoke

from onestep_jax import Model, UserError, decode, load_model, read_results, text_nats
from onestep_jax.cli.parser import main
from onestep_jax.experiment.cards import load_card
from onestep_jax.model.untrained import untrained
from onestep_jax.texts.corpora import load_tokens
from onestep_jax.texts.named_sources import read_words

pytestmark = pytest.mark.long

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
KEPT = (0, 3, 6)
SIZES = "--vocab-size 300 --width 32 --layers 3 --heads 4 --kv-heads 2 --ffn 48 --context 48 --window 16 --batch 4"
RECIPE = f"{SIZES} --steps 6 --warmup 2 --long-fraction 0".split()


@pytest.fixture
def summaries(monkeypatch: pytest.MonkeyPatch):
    """What makes a line of a card's tables for the page of results."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    import summaries

    return summaries.ITEMS


def as_stored(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Tables as the page of results reads them, all cells text."""
    found = {}
    for path in folder.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found[path.stem] = list(csv.DictReader(file))
    return found


def test_parts_of_a_model(tmp_path: Path, two_layers: Model, summaries):
    words = "--kinds trained,permuted --parts embeddings,mlp,layers:1-1+head --lengths 4 --steps 60".split()
    words += ["--model", two_layers.source]
    assert main(["experiment", "control_untrained", "--smoke", *words, "--out", str(tmp_path)]) == 0
    folder = tmp_path / "control_untrained"
    rows = {row["part"]: row for row in read_csv(folder / "control_untrained.csv")}
    models = {row["part"]: row for row in read_csv(folder / "control_untrained_models.csv")}
    parts = ["embeddings", "mlp", "layers:1-1+head"]
    assert list(rows) == list(models) == ["none", "all", *parts]
    assert {part: row["weights"] for part, row in rows.items()} == {"none": "trained"} | dict.fromkeys(
        ["all", *parts], "permuted"
    )
    runs = ["permuted-embeddings-0", "permuted-mlp-0", "permuted-layers-1-1+head-0"]
    for part, run in zip(parts, runs, strict=True):
        model = untrained(two_layers, 0, parts=part.split("+"))
        assert models[part]["fingerprint"] == model.fingerprint
        results = read_results(folder / "runs" / run)
        made = [text.accuracy for text in decode(model, results)]
        assert rows[part]["accuracy mean"] == pytest.approx(np.mean(made), abs=1e-5)
        assert rows[part]["steps mean"] == pytest.approx(results.steps.mean(), abs=1e-4)
    # the vectors are no rows of the table, so without a prefix new ones change nothing but the nats
    assert models["embeddings"]["prefix"] == 0
    same = {"accuracy mean", "steps mean", "exact"}
    assert {rows["embeddings"][name] == rows["none"][name] for name in same} == {True}
    assert rows["embeddings"]["nats per token"] > rows["none"]["nats per token"] + 1
    assert (folder / "control_untrained_parts.png").stat().st_size > 10_000
    said = summaries["control_untrained"].ours(as_stored(folder))
    assert "trained 1.00" in said
    assert "permuted layers:1-1+head" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "mpl"], "unknown part of a model 'mpl'.*did you mean 'mlp'"),
        (["--parts", "mlp+layers:8"], "'layers:8': expected layers within 0-7"),
        (["--parts", "mlp", "--kinds", "trained"], "--parts without a kind of new weights: add one of init"),
    ],
)
def test_parts_are_refused_before_the_first_fit(tmp_path: Path, words, message, capsys):
    import re

    assert main(["experiment", "control_untrained", "--smoke", *words, "--out", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "control_untrained" / "runs").exists()


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretraining of six updates, stopped after none and gone on with, with three checkpoints."""
    work = tmp_path_factory.mktemp("pretraining")
    words = read_words(EXPERIMENTS.parent / "onestep_jax" / "data" / "words.txt.xz")[:300]
    for number, name in enumerate(("train", "validation")):
        (work / name).mkdir()
        drawn = np.random.default_rng(number).choice(words, size=2000)
        (work / name / "text.txt").write_text(" ".join(drawn), encoding="utf-8")
    kept = ["--checkpoints", ",".join(map(str, KEPT))]
    pretrain(work, *RECIPE, *kept, "--stop-after", "0")
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["step-000000"]
    pretrain(work, *RECIPE, *kept)
    return work


def pretrain(work: Path, *words: str) -> None:
    """Run the script in this process."""
    spec = importlib.util.spec_from_file_location("pretrain_default", EXPERIMENTS / "packaged" / "pretrain_default.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_default"] = script
    handler = signal.getsignal(signal.SIGTERM)
    places = ["--train", work / "train", "--validation", work / "validation", "--work", work, "--out", work / "out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pretrain_default.py", *map(str, places), *words])
        try:
            spec.loader.exec_module(script)
            script.main()
        finally:
            signal.signal(signal.SIGTERM, handler)


def checkpoints(work: Path) -> list[str]:
    return [str(work / "checkpoints" / f"step-{step:06d}") for step in KEPT]


def test_checkpoints_of_a_pretraining(pretraining: Path):
    assert sorted(path.name for path in (pretraining / "checkpoints").iterdir()) == [
        f"step-{step:06d}" for step in KEPT
    ]
    first, middle, last, out = (
        load_model(folder, dtype="float32") for folder in (*checkpoints(pretraining), pretraining / "out")
    )
    assert last.fingerprint == out.fingerprint
    assert len({first.fingerprint, middle.fingerprint, last.fingerprint}) == 3
    assert first.tokenizer.get_vocab() == out.tokenizer.get_vocab()
    # as before the first update: norms of one, and a table of standard deviation 1 / √D
    assert set(np.unique(first.params["norm"]["scale"])) == {1.0}
    assert np.std(first.params["embed"]["embedding"]) == pytest.approx(32**-0.5, rel=0.05)
    for name in ("7", "2"):
        with pytest.raises(SystemExit, match=f"--checkpoints {name}: "):
            pretrain(pretraining, *RECIPE, "--checkpoints", name)


def test_dynamics_of_a_pretraining(tmp_path: Path, pretraining: Path, summaries):
    names = checkpoints(pretraining)
    words = ["--model", names[-1], "--models", ",".join(names)]
    sizes = "--count 2 --lengths 2,4 --steps 40".split()
    assert main(["experiment", "dynamics", "--smoke", *words, *sizes, "--out", str(tmp_path)]) == 0
    rows = read_csv(tmp_path / "dynamics" / "dynamics.csv")
    lengths = read_csv(tmp_path / "dynamics" / "dynamics_lengths.csv")
    assert [(row["checkpoint"], row["step"]) for row in rows] == list(zip(names, KEPT, strict=True))
    assert [(row["step"], row["length"]) for row in lengths] == [(step, n) for step in KEPT for n in (2, 4)]
    last = load_model(names[-1])
    texts = load_tokens(last, "demo", count=2, length=4)
    for name, row in zip(names, rows, strict=True):
        model = load_model(name)
        assert row["fingerprint"] == model.fingerprint
        nats = np.concatenate([one.nats for one in text_nats(model, texts)])
        assert row["nats per token"] == pytest.approx(nats.mean(), rel=1e-4)
        run = load_card("dynamics")._run(name)
        results = read_results(tmp_path / "dynamics" / "runs" / run)
        assert [text.accuracy for text in decode(model, results)] == results.accuracy.tolist()
        whole = [max((len(t.tokens) for t in list(results)[i::2] if t.accuracy == 1), default=0) for i in range(2)]
        assert row["c_tokens mean"] == np.mean(whole)
        assert row["evaluations mean"] == pytest.approx(results.steps.mean(), rel=1e-5)
        for length in (2, 4):
            (one,) = [r for r in lengths if (r["step"], r["length"]) == (row["step"], length)]
            found = [text.accuracy for text in results if len(text.tokens) == length]
            assert one["accuracy mean"] == pytest.approx(np.mean(found), abs=1e-5)
    # of an even distribution over 300 tokens they are 5.70
    assert rows[0]["nats per token"] == pytest.approx(np.log(300), abs=1)
    assert summaries["dynamics"].ours(as_stored(tmp_path / "dynamics")).startswith("capacity by checkpoint: step 0 ")


def test_dynamics_of_fresh_and_trained_weights(tmp_path: Path, two_layers: Model):
    ends = f"untrained:init:0:{two_layers.source},{two_layers.source}"
    tables = smoke("dynamics", tmp_path, two_layers, "--models", ends)
    fresh, trained = tables["dynamics"]
    assert (fresh["step"], trained["step"]) == ("", "")
    assert fresh["nats per token"] > trained["nats per token"] + 3
    assert trained["c_tokens mean"] >= fresh["c_tokens mean"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "default,OTHER"], "another tokenizer or vocabulary than that of 'default'"),
        (["--models", "default,default"], "--models: a checkpoint is named twice"),
        (["--models", "default", "--revisions", "step0,step0"], None),
    ],
)
def test_checkpoints_that_do_not_fit_together(tmp_path: Path, pretraining: Path, words, message, capsys):
    import re

    words = [word.replace("OTHER", checkpoints(pretraining)[0]) for word in words]
    sizes = "--count 1 --lengths 2 --steps 3".split()
    status = main(["experiment", "dynamics", "--smoke", *words, *sizes, "--out", str(tmp_path)])
    assert status == (0 if message is None else 2)
    assert message is None or re.search(message, capsys.readouterr().err)


def test_revisions_are_those_of_the_hub(monkeypatch: pytest.MonkeyPatch, two_layers: Model):
    card, asked = load_card("dynamics"), []

    def loaded(source, **options):
        asked.append((source, options))
        return two_layers

    monkeypatch.setattr(card, "load_model", loaded)
    settings = card.Config(revisions=("step0", "step1000"))
    assert [name for name, _ in card._checkpoints(settings, two_layers)] == ["step0", "step1000"]
    assert asked == [(settings.model, {"revision": step, "dtype": "float32"}) for step in ("step0", "step1000")]
    with pytest.raises(UserError, match="no checkpoints: give --models"):
        list(card._checkpoints(card.Config(revisions=()), two_layers))
    names = {"step143000": 143000, "runs/step-3/step-000010/": 10, "org/model-step 5": 5, "step-7/last": None}
    assert {name: card.step_of(name) for name in names} == names


def test_knockout(tmp_path: Path, summaries):
    packaged, tables = load_model("default"), smoke("knockout", tmp_path)
    layers = packaged.config.layers
    rows = {(row["hidden"], row["way"], row["first"], row["last"]): row for row in tables["knockout"]}
    assert len(rows) == len(tables["knockout"]) == 1 + 2 * (3 * layers + layers - 2)
    results = read_results(tmp_path / "knockout" / "runs" / "texts")

    def direct(hidden: str, first: int, last: int) -> tuple[float, float]:
        """Accuracy and nats per token, by a pass over [e, m, …, m] whose masks are written out."""
        found = []
        for text in results:
            count = len(text.tokens)
            x_TD = jnp.asarray(np.stack([text.vectors["e"], *[text.vectors["m"]] * (count - 1)]))
            masks = {}
            for i in range(layers):
                seen = np.ones((count, count), bool)
                for t in range(1, count) if first <= i <= last else ():
                    seen[t, 0 if hidden == "e" else slice(1, t)] = False
                masks[f"block_{i}"] = {"attention": {"seen": jnp.asarray(seen)}}
            logits_TV = packaged.head(packaged.params, packaged.hidden(packaged.params, x_TD, masks=masks))
            right = np.asarray(logits_TV.argmax(-1)) == text.tokens
            nats = -np.asarray(jax.nn.log_softmax(logits_TV))[np.arange(count), text.tokens]
            found.append((right.mean(), nats.mean()))
        return tuple(np.mean(found, axis=0))

    kept = rows["nothing", "none", "", ""]
    assert kept["accuracy mean"] == pytest.approx(np.mean([text.accuracy for text in decode(packaged, results)]))
    for hidden in ("e", "m"):
        for way, first, last in (("one", 1, 1), ("window", 2, 4), ("up to", 0, 5), ("from", 0, layers - 1)):
            row = rows[hidden, way, first, last]
            accuracy, nats = direct(hidden, first, last)
            assert row["accuracy mean"] == pytest.approx(accuracy, abs=1e-5)
            assert row["nats per token mean"] == pytest.approx(nats, rel=1e-3)
            assert row["layers"] == last - first + 1
    # the same layers by two ways
    same = ("accuracy mean", "nats per token mean")
    whole = [rows["e", way, 0, layers - 1] for way in ("up to", "from")]
    assert [whole[0][name] for name in same] == [whole[1][name] for name in same]
    assert whole[0]["accuracy mean"] < 0.5 < kept["accuracy mean"]
    replaced = {row["replaced"]: row for row in tables["knockout_replaced"]}
    assert replaced["kept"]["accuracy mean"] == kept["accuracy mean"]
    said = summaries["knockout"].ours(as_stored(tmp_path / "knockout"))
    assert f"nothing hidden {kept['accuracy mean']:.2f}" in said
    assert f"in all layers {whole[0]['accuracy mean']:.2f}" in said

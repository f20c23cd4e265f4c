"""`encode`: results like those of a fit, the same however the texts are put together or the work is interrupted."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import relative
from encoders import random_encoder, random_weights

from onestep_jax import UserError, decode, encode, load_encoder, read_results, save_encoder, text_nats
from onestep_jax.cli.parser import main
from onestep_jax.encoder import encode as encode_module
from onestep_jax.encoder.corrections import correct, score
from onestep_jax.encoder.folder import make_encoder
from onestep_jax.encoder.reading import read
from onestep_jax.model.checkpoint import load_model, save_model
from onestep_jax.prototokens.reconstruction import decoding_of
from onestep_jax.store.status import read_status
from onestep_jax.store.verify import verify

PREFIX = (7, 3)


@pytest.fixture(scope="module")
def encoder(little):
    return random_encoder(little, prefix=PREFIX)


@pytest.fixture(scope="module")
def tokens():
    """Texts of 4, 3 and 4 tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(61, size=length).astype(np.int32) for length in (4, 3, 4)]


@pytest.fixture(scope="module")
def results(little, encoder, tokens):
    return encode(little, encoder, tokens, batch=2)


def same(one, other, exact=True):
    assert [text.text_id for text in one] == [text.text_id for text in other]
    for a, b in zip(one, other, strict=True):
        for name in a.vectors:
            assert relative(a.vectors[name], b.vectors[name]) <= (0 if exact else 1e-5)
        np.testing.assert_array_equal(a.predicted, b.predicted)
        np.testing.assert_allclose(a.nats, b.nats, rtol=1e-5)
        np.testing.assert_allclose(a.trials[0].trace, b.trials[0].trace, rtol=0 if exact else 1e-4)
        np.testing.assert_array_equal(a.trials[0].first_hit, b.trials[0].first_hit)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert (a.index, a.status, a.accuracy, a.steps) == (b.index, b.status, b.accuracy, b.steps)


def way_by_hand(model, encoder, tokens_T, steps):
    """Vectors, nats and emitted tokens after 0, 1, … corrections."""
    past = model.past(model.params, jnp.asarray(PREFIX))

    @jax.jit
    def way(tokens_T):
        given = (model.network, encoder.design, model.params)
        z_LD = read(*given, encoder.weights, tokens_T)
        found = []
        for k in range(steps + 1):
            z_kLD, _ = correct(*given, encoder.weights, past, z_LD, tokens_T, steps=k)
            scored = score(*given, past, z_kLD, tokens_T)
            found.append((z_kLD, scored.nats, scored.predicted_T))
        return found

    return jax.tree.map(np.asarray, way(jnp.asarray(tokens_T)))


def test_results_are_those_of_the_parts(little, encoder, tokens, results):
    """The best vectors on the way: most tokens exact, then the lowest loss."""
    nats = text_nats(little, tokens, prefixes=[np.array(PREFIX, np.int32)] * 3)
    for i, (text, tokens_T) in enumerate(zip(results, tokens, strict=True)):
        way = way_by_hand(little, encoder, tokens_T, 2)
        hits = [float((predicted == tokens_T).mean()) for _, _, predicted in way]
        best = sorted(range(3), key=lambda k: (-hits[k], way[k][1]))[0]
        assert (text.best_step, text.steps, text.status, text.index, text.seed) == (best, 2, "refined", i, 0)
        np.testing.assert_allclose(np.stack([text.vectors[name] for name in "em"]), way[best][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(text.predicted, way[best][2])
        np.testing.assert_array_equal(text.tokens, tokens_T)
        np.testing.assert_array_equal(text.prefix, PREFIX)
        np.testing.assert_array_equal(text.nats, nats[i].nats)
        assert text.h_lm == pytest.approx(float(nats[i].nats.sum()), rel=1e-5)
        assert text.loss == pytest.approx(float(way[best][1]), rel=1e-4)
        assert text.accuracy == pytest.approx(hits[best])
        (trial,) = text.trials
        right_KT = np.stack([predicted for _, _, predicted in way]) == tokens_T
        first = [next((k for k in range(3) if right_T[k]), -1) for right_T in right_KT.T]
        assert trial.first_hit.tolist() == first
        assert -1 in first
        expected = [(k, way[k][1], hits[k]) for k in range(3)]
        np.testing.assert_allclose(trial.trace, expected, rtol=1e-4)
        assert (trial.loss, trial.accuracy, trial.status) == (text.loss, text.accuracy, "refined")
    assert results.scheme["prefix"] == list(PREFIX)
    assert (results.model, results.source) == (little.fingerprint, "little")


def emitted(model, tokens_T):
    """An encoder that gives every text the same vectors, and what these emit."""
    made = random_encoder(model, reader="none", prefix=PREFIX)
    (read_only,) = encode(model, made, [tokens_T], refine=0, batch=1)
    return made, read_only.predicted


def stepping(model, made, size):
    """The encoder with steps of that size."""
    steps = {"diagonal": np.full((2, 64), size, np.float32)}
    return make_encoder(model, made.design, made.weights | {"steps": steps}, {})


def test_the_best_on_the_way_are_kept(little, tokens):
    """All but one token of the text are what the vectors emit; steps lead away, nowhere, or a little nearer."""
    made, target = emitted(little, tokens[0])
    target = np.where(np.arange(4) == 2, (target + 1) % 61, target).astype(np.int32)
    for size in (-50.0, 0.0):
        (text,) = encode(little, stepping(little, made, size), [target], batch=1)
        assert (text.best_step, text.steps, text.accuracy, text.status) == (0, 2, 0.75, "refined")
        np.testing.assert_array_equal(text.trials[0].first_hit, [0, 0, -1, 0])
        assert (text.trials[0].trace[-1, 1] > text.loss) == (size < 0)
    (text,) = encode(little, stepping(little, made, 0.02), [target], batch=1)
    assert (text.best_step, text.accuracy) == (2, 0.75)  # equally exact, of a lower loss


def test_a_text_that_is_exact_takes_no_more_corrections(little, tokens):
    """As a fit ends there; its status says what was done, and the evaluations are those that were made."""
    made, target = emitted(little, tokens[0])
    ended, gone_on = encode(little, stepping(little, made, 0.02), [target, tokens[0]], batch=2)
    assert (ended.status, ended.steps, ended.best_step, ended.accuracy) == ("encoded", 0, 0, 1)
    assert ended.trials[0].trace.shape == (1, 3)
    np.testing.assert_array_equal(ended.trials[0].first_hit, np.zeros(4))
    assert (gone_on.status, gone_on.steps) == ("refined", 2)
    assert 0 < ended.seconds < gone_on.seconds


def test_the_decode_program_has_the_last_word_on_an_exact_text(half, tokens, monkeypatch):
    """In bfloat16 a correction may disagree; then the text goes on, as in a fit, and that word is what is told."""
    made, target = emitted(half, tokens[0])
    given = []

    def doubting(model, texts, **how):
        given.append([text.vectors["e"] for text in texts])
        found = decode(model, texts, **how)
        if len(given) == 1:
            (one,) = found
            found = [dataclasses.replace(one, tokens=np.where(np.arange(4) == 1, (one.tokens + 1) % 61, one.tokens))]
        return found

    monkeypatch.setattr(encode_module, "decode", doubting)
    (text,) = encode(half, stepping(half, made, 1e-4), [target], batch=1)
    assert (text.status, text.steps, text.best_step, text.accuracy) == ("refined", 1, 1, 1)
    np.testing.assert_array_equal(text.trials[0].trace[:, 2], [0.75, 1])
    np.testing.assert_array_equal(text.trials[0].first_hit, [0, 1, 0, 0])
    assert text.vectors["e"].dtype == np.float32
    assert [len(vectors) for vectors in given] == [1, 1, 1]  # refuted, confirmed, recorded
    np.testing.assert_array_equal(given[1], given[2])


def test_texts_are_encoded_alike_alone_and_together(little, encoder, tokens, results):
    for i, tokens_T in enumerate(tokens):
        (alone,) = encode(little, encoder, [tokens_T], batch=1)
        same([dataclasses.replace(alone, index=i)], [results[i]], exact=False)
    told = []
    encode(little, encoder, tokens, batch=1, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (3, 3)]  # of 3 tokens, and of 4


def test_results_keep_nothing_else_alive(results):
    """Not the vectors after the other corrections, nor those of the other texts."""
    for text in results:
        for array in (
            *text.vectors.values(),
            text.predicted,
            text.nats,
            text.trials[0].trace,
            text.trials[0].first_hit,
        ):
            assert array.base is None


def test_fewer_corrections(little, encoder, tokens):
    read_only = encode(little, encoder, tokens, refine=0, batch=2)
    for text, tokens_T in zip(read_only, tokens, strict=True):
        assert (text.status, text.steps, text.best_step, len(text.trials[0].trace)) == ("encoded", 0, 0, 1)
        way = way_by_hand(little, encoder, tokens_T, 0)
        np.testing.assert_allclose(np.stack([text.vectors[name] for name in "em"]), way[0][0], rtol=1e-4, atol=1e-5)
    assert {text.steps for text in encode(little, encoder, tokens[:1], refine=1, batch=1)} == {1}
    with pytest.raises(UserError, match="refine = 3: this encoder has 2 corrections; give 0 to 2"):
        encode(little, encoder, tokens, refine=3)


def test_what_cannot_be_encoded(little, encoder, tokens):
    for change, said in (
        (
            {"encoder": dataclasses.replace(encoder, model="0" * 16)},
            "the encoder belongs to model 0000000000000000, not",
        ),
        ({"encoder": "default"}, "encoder = 'default', of type str: expected what load_encoder returns"),
        ({"texts": "w1 w2"}, "texts = 'w1 w2', of type str: expected strings, or lists of token ids"),
        ({"texts": 3}, "texts = 3, of type int: expected strings, or lists of token ids"),
        ({"texts": []}, "no texts: expected at least one"),
        ({"texts": [[61]]}, "token id 61 is not in the model's vocabulary"),
        ({"texts": ["w1"]}, "'little' has no tokenizer"),
        ({"length": 0}, "length = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"texts": [np.zeros(61, np.int32)]}, "length 61 needs 65 positions, beyond the model's context of 64"),
        ({"texts": [np.zeros(63, np.int32)]}, "63 tokens, the model's context has room for 62"),
    ):
        given = {"encoder": encoder, "texts": tokens} | change
        with pytest.raises(UserError, match=said) as caught:
            encode(little, **given)
        assert "\n" not in str(caught.value)


def test_longer_texts_are_warned_of(little, encoder):
    with pytest.warns(UserWarning, match="the encoder was trained for 4 tokens, and a text has 6") as told:
        (text,) = encode(little, encoder, [[1, 2, 3, 4, 5, 6]], refine=0, batch=1)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert len(text.predicted) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(little, encoder, [[1, 2, 3, 4, 5, 6]], length=4, refine=0, batch=1)


# --- runs ---


class Killed(Exception):
    pass


def test_an_interrupted_run_goes_on(little, encoder, tokens, results, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "_AT_A_TIME", 2)
    told = []

    def kill(done, of):
        told.append((done, of))
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        encode(little, encoder, tokens, run=tmp_path / "run", batch=2, progress=kill)
    assert told == [(1, 3), (2, 3), (3, 3)]
    before = read_results(tmp_path / "run")
    assert [text.index for text in before] == [0, 1]
    told.clear()
    found = encode(little, encoder, tokens, run=tmp_path / "run", batch=2, progress=lambda *done: told.append(done))
    assert told == [(3, 3)]
    same(found, results, exact=False)
    same(read_results(tmp_path / "run"), found)
    for a, b in zip(before, found, strict=False):
        np.testing.assert_array_equal(a.vectors["e"], b.vectors["e"])
    assert encode(little, encoder, tokens, run=tmp_path / "run").solved == found.solved


def test_a_run_is_of_one_encoder_and_one_number_of_corrections(little, encoder, tokens, results, tmp_path):
    encode(little, encoder, tokens, run=tmp_path / "run", batch=2)
    other = make_encoder(little, encoder.design, random_weights(little, encoder.design, 1), {})
    for given, how, said in (
        (other, {}, "encoder"),
        (encoder, {"refine": 1}, "refine"),
        (encoder, {"length": 3}, "length"),
    ):
        with pytest.raises(UserError, match=said):
            encode(little, given, tokens, run=tmp_path / "run", **how)


@pytest.fixture(scope="module")
def recorded(tiny_folder, little, encoder, tmp_path_factory):
    """Folder of a checkpoint, of its encoder and of a run of words."""
    home = tmp_path_factory.mktemp("home")
    save_model(little, home / "model")
    for path in tiny_folder.glob("tokenizer*"):
        (home / "model" / path.name).write_bytes(path.read_bytes())
    model = load_model(home / "model")
    made = make_encoder(model, encoder.design, encoder.weights, {})
    save_encoder(made, home / "encoder")
    encode(model, load_encoder(home / "encoder", model), ["w1 w2 w3 w4", "w5 w6 w7 w8"], run=home / "run")
    return home


def test_the_commands_of_a_fit_take_the_run(recorded, capsys, tmp_path):
    model, run = load_model(recorded / "model"), recorded / "run"
    found = read_results(run)
    assert verify(run, decoding_of(model)).problems == []
    for text, one in zip(found, decode(model, found), strict=True):
        np.testing.assert_array_equal(one.tokens, text.predicted)
    status = read_status(run)
    assert (status.texts, status.ends["refined"], status.left) == (2, 2, 0)
    for words in (
        f"decode {run} --model {recorded}/model",
        f"verify {run} --model {recorded}/model",
        f"status {run}",
        f"status {run} --json",
        f"export {run} --out {tmp_path}/a.safetensors",
        f"report {run} --out {tmp_path}/report",
    ):
        assert main(words.split()) == 0, words
    said = capsys.readouterr().out
    assert "2 refined" in said
    assert '"refined"' in said
    assert "refined" in (tmp_path / "report" / "report.html").read_text()


def test_a_fit_begins_at_what_an_encoder_gives(recorded, tmp_path):
    """By the command: the vectors kept after one step are the encoder's, also from the run and the file."""
    model = load_model(recorded / "model")
    texts = ["w1 w2 w3 w4", "w5 w6 w7 w8"]
    expected = encode(model, load_encoder(recorded / "encoder", model), texts)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    assert main(f"export {recorded}/run --out {tmp_path}/a.safetensors".split()) == 0
    words = f"fit --model {recorded}/model --texts {tmp_path}/texts.txt --split lines --length 4 --steps 1 --seeds 1"
    for i, start in enumerate((f"encoder:{recorded}/encoder", f"run:{recorded}/run", f"{tmp_path}/a.safetensors")):
        assert main([*words.split(), "--start", start, "--run", str(tmp_path / str(i))]) == 0
        for text, begun in zip(read_results(tmp_path / str(i)), expected, strict=True):
            for name in "em":
                np.testing.assert_allclose(text.vectors[name], begun.vectors[name], rtol=1e-5)

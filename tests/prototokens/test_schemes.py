"""The arrangements of Table 1, sharing over texts and copies, the autoregressive baseline, recorded paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Cramming, OneStep, UserError, decode, fit, generate, read_results, regenerate
from onestep_jax.fitting.optimizers import PRESETS, Preset
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.schemes import ARRANGEMENTS, bare, draw, from_description
from onestep_jax.tokens import id_words

LAYOUTS = {
    "one-vector": {1: "e", 2: "ee", 5: "eeeee"},
    "halves": {1: "e", 2: "em", 4: "eemm", 5: "eeemm"},
    "alternating": {1: "e", 2: "em", 4: "emem", 5: "ememe"},
    "unguided-e": {1: "em", 2: "emm", 5: "emmmmm"},
    "one-step": {1: "e", 2: "em", 5: "emmmm"},
}
SCHEMES = [*(OneStep(name) for name in ARRANGEMENTS), Cramming(), Cramming(3)]
NAMES = [*ARRANGEMENTS, "cramming-1", "cramming-3"]


def leaves_of(scheme, seed=0, width=32):
    ids = jnp.asarray(id_words("0123456789abcdef", seed))[None]
    drawn = draw(scheme, ids, width, 1.0)
    return {name: leaf if name in scheme.shared else leaf[0] for name, leaf in drawn.items()}


def test_every_arrangement_has_a_layout():
    assert set(LAYOUTS) == set(ARRANGEMENTS)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("padding", [0, 3])
def test_layout(name, padding):
    scheme = OneStep(name)
    leaves = {leaf: jnp.full(2, float(ord(leaf))) for leaf in scheme.leaf_shapes(2)}
    for length, layout in LAYOUTS[name].items():
        x = scheme.inputs(leaves, jnp.zeros((length + padding, 2)), jnp.int32(length))
        assert len(x) == length + padding + scheme.extra
        assert "".join(chr(int(row[0])) for row in x[: len(layout)]) == layout
        assert scheme.extra + length == len(layout)
        np.testing.assert_array_equal(scheme.reads(length), len(layout) - length + np.arange(length))


@pytest.mark.parametrize("vectors", [1, 3])
def test_cramming_stands_before_the_text(tiny, vectors):
    scheme = Cramming(vectors)
    leaves = leaves_of(scheme)
    text_TD = tiny.embed(tiny.params, jnp.array([5, 6, 7, 8]))
    x = scheme.inputs(leaves, text_TD, jnp.int32(4))
    np.testing.assert_array_equal(x, np.r_[leaves["mem"], text_TD[:3]])
    assert leaves["mem"].shape == (vectors, 32)
    np.testing.assert_array_equal(scheme.reads(4), vectors - 1 + np.arange(4))


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_score_is_the_plain_forward_pass(tiny, scheme):
    tokens = jnp.array([5, 6, 7, 8, 9])
    leaves = leaves_of(scheme)
    nats, hits, predicted, _ = score_text(tiny, scheme, tiny.params, leaves, jnp.pad(tokens, (0, 4)), jnp.int32(5))
    x = scheme.inputs(leaves, tiny.embed(tiny.params, tokens), jnp.int32(5))
    logits = tiny.apply(tiny.params, x)[-5:]
    log_p = jax.nn.log_softmax(logits)
    assert nats == pytest.approx(-float(log_p[jnp.arange(5), tokens].mean()), rel=1e-5)
    np.testing.assert_array_equal(predicted[:5], jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(hits, np.r_[np.asarray(predicted[:5] == tokens), np.zeros(4, bool)])


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_only_a_teacher_forced_scheme_sees_the_text(tiny, scheme):
    leaves = leaves_of(scheme)
    seen = [
        score_text(tiny, scheme, tiny.params, leaves, jnp.array(tokens), jnp.int32(4))[2]
        for tokens in ([1, 2, 3, 4], [40, 30, 20, 10])
    ]
    assert np.array_equal(*seen) != scheme.teacher_forced


def test_equal_inputs_give_equal_outputs(tiny):
    def spread(scheme):
        x = scheme.inputs(leaves_of(scheme), jnp.zeros((6, 32)), jnp.int32(6))
        return np.ptp(np.asarray(tiny.apply(tiny.params, x)), axis=0).max()

    assert spread(OneStep("one-vector")) < 1e-4
    assert spread(OneStep("one-step")) > 0.1


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_descriptions_come_back(scheme):
    assert bare(from_description(scheme.describe())) == scheme
    assert "N" in scheme.notation


def test_what_cannot_be_is_refused():
    for call, message in (
        (lambda: OneStep("onestep"), "did you mean 'one-step'"),
        (lambda: OneStep("cramming"), r"Cramming\(vectors=K\)"),
        (lambda: OneStep("one-vector", share="m", group=2), r"\[e\]×N has e to share"),
        (lambda: Cramming(0), "at least 1"),
        (lambda: Cramming(start={"e": np.zeros((1, 4))}), "expected vectors for mem"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.fixture(scope="module")
def by_arrangement(tiny, token_lists, one_device):
    texts = [tokens[:4] for tokens in token_lists[:4]]
    schemes = {name: OneStep(name) for name in ARRANGEMENTS}
    return {name: fit(tiny, texts, scheme=one, steps=600, placement=one_device) for name, one in schemes.items()}


def test_two_vectors_do_what_one_cannot(by_arrangement):
    assert by_arrangement["one-step"].solved == 4
    assert by_arrangement["unguided-e"].solved == 4
    assert by_arrangement["alternating"].solved == 4
    assert by_arrangement["one-vector"].accuracy.mean() < 0.8


def test_decoding_gives_what_was_recorded(tiny, by_arrangement):
    for results in by_arrangement.values():
        for again, text in zip(decode(tiny, results), results, strict=True):
            assert again.accuracy == text.accuracy
            np.testing.assert_array_equal(again.tokens, text.predicted)
            assert text.c_tokens == np.sum(text.predicted == text.tokens)


def test_an_extra_input_takes_room(tiny):
    with pytest.raises(UserError, match=r"context of 64 positions less 1 of \[e\] \[m\]×N"):
        fit(tiny, [[1] * 64], length=64, scheme=OneStep("unguided-e"))
    with pytest.raises(UserError, match="62 tokens, the model's context has room for 61"):
        fit(tiny, [[1] * 62], scheme=Cramming(4))
    assert len(fit(tiny, [[1] * 61], scheme=Cramming(4), steps=1)) == 1


@pytest.mark.long
def test_cramming_is_teacher_forced_and_generated(tiny, token_lists, tmp_path):
    texts = [token_lists[0], token_lists[1][:5], token_lists[2]]
    run = fit(tiny, texts, scheme=Cramming(2), preset="cramming", steps=2000, run=tmp_path / "run")
    assert run.vectors["mem"].shape == (3, 2, 32)
    assert run.solved >= 1
    forced, generated = decode(tiny, run), regenerate(tiny, run)
    assert [one.accuracy for one in forced] == run.accuracy.tolist()
    for text, one in zip(run, generated, strict=True):
        (new,) = generate(tiny, [text.vectors["mem"]], count=len(text.tokens), stop=())
        np.testing.assert_array_equal(one.tokens, new.tokens)
        assert one.accuracy == np.mean(new.tokens == text.tokens)
        if text.accuracy == 1:  # without an error, generation goes the way of the forced text
            assert one.accuracy == 1


@pytest.mark.long
def test_an_early_error_derails_generation(tiny, token_lists):
    run = fit(tiny, token_lists[:6], scheme=Cramming(), preset="cramming", steps=40)
    forced, generated = decode(tiny, run), regenerate(tiny, run)
    assert run.solved < 6
    for one, other in zip(forced, generated, strict=True):
        first = min([8, *(wrong.position for wrong in one.wrong)])
        np.testing.assert_array_equal(one.tokens[: first + 1], other.tokens[: first + 1])
    assert sum(one.accuracy for one in generated) < sum(one.accuracy for one in forced)
    with pytest.raises(UserError, match="is not autoregressive"):
        regenerate(tiny, fit(tiny, token_lists[:1], steps=1))


@pytest.mark.long
def test_copies_are_fits_of_their_own(tiny, token_lists, one_device, tmp_path):
    texts = [tokens[:3] for tokens in token_lists[:3]]
    run = fit(tiny, texts, copies=3, steps=800, placement=one_device, run=tmp_path / "run")
    assert [text.tokens.tolist() for text in run] == [tokens for tokens in texts for _ in range(3)]
    assert [text.text_id.split("-")[1:] for text in run] == [[], ["1"], ["2"]] * 3
    assert len({text.vectors["e"].tobytes() for text in run}) == 9
    alone = fit(tiny, texts, steps=800, placement=one_device)
    for text, one in zip(alone, run.texts[::3], strict=True):
        assert text.text_id == one.text_id
        assert text.trials[0].trace[0, 1] == pytest.approx(one.trials[0].trace[0, 1], rel=1e-4)


def test_copies_of_a_group_share_its_vector(tiny, token_lists, one_device):
    texts = [tokens[:3] for tokens in token_lists[:3]]
    run = fit(tiny, texts, copies=2, scheme=OneStep(share="m", group=6), steps=1500, placement=one_device)
    assert len({text.vectors["m"].tobytes() for text in run}) == 1
    assert len({text.vectors["e"].tobytes() for text in run}) == 6
    assert run.accuracy.mean() > 0.8


def test_recorded_paths_hold_the_vectors_that_scored(tiny, token_lists, one_device, tmp_path):
    texts = [token_lists[0], token_lists[1][:5]]
    options = {"steps": 300, "chunk": 5, "placement": one_device, "preset": "paper"}
    run = fit(tiny, texts, record=True, run=tmp_path / "run", **options)
    assert fit(tiny, texts, **options)[0].trials[0].path is None
    for text in run:
        (trial,) = text.trials
        assert trial.path is not None
        assert {name: leaf.shape for name, leaf in trial.path.items()} == dict.fromkeys("em", (len(trial.trace), 32))
        for point in (0, 3, -1):
            leaves = {name: jnp.asarray(leaf[point]) for name, leaf in trial.path.items()}
            found = score_text(tiny, OneStep(), tiny.params, leaves, jnp.asarray(text.tokens), len(text.tokens))
            assert float(found[0]) == pytest.approx(trial.trace[point, 1], rel=1e-4)
            assert float(found[1].mean()) == pytest.approx(trial.trace[point, 2])


def test_a_recorded_path_goes_on_after_a_stop(tiny, token_lists, one_device, tmp_path):
    texts = token_lists[:3]
    options = {"steps": 120, "chunk": 5, "placement": one_device, "preset": "paper", "record": True, "slots": 3}

    class Stop(Exception):
        pass

    calls = []

    def stop(progress):
        calls.append(progress)
        if len(calls) == 8:
            raise Stop

    with pytest.raises(Stop):
        fit(tiny, texts, run=tmp_path / "run", save_every=0.0, progress=stop, **options)
    went_on = fit(tiny, texts, run=tmp_path / "run", **options)
    straight = fit(tiny, texts, **options)
    for ours, theirs in zip(went_on, straight, strict=True):
        (here,), (there,) = ours.trials, theirs.trials
        points = np.isin(there.trace[:, 0], here.trace[:, 0])
        assert points.sum() == len(here.trace) >= len(there.trace) - 1
        assert here.trace[-1, 0] == there.trace[-1, 0]
        for name in "em":
            np.testing.assert_allclose(here.path[name], there.path[name][points], rtol=1e-3, atol=1e-4)


def test_patience_ends_a_hopeless_text(tiny, one_device):
    preset = PRESETS["cramming"]
    impatient = Preset(preset.start, preset.optimizer, patience=25)
    (text,) = fit(tiny, [list(range(60))], preset=impatient, scheme=OneStep("one-vector"), placement=one_device)
    assert text.status == "exhausted"
    (trial,) = text.trials
    assert 26 <= trial.steps < 5000
    best = trial.trace[:, 2].max()
    assert text.accuracy == pytest.approx(best, abs=1e-6) or text.accuracy >= best


def test_predictions_and_nats_are_stored(tiny, token_lists, tmp_path):
    kept = fit(tiny, token_lists[:3], steps=50, run=tmp_path / "run")
    again = read_results(tmp_path / "run")
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_array_equal(one.predicted, other.predicted)
        np.testing.assert_array_equal(one.nats, other.nats)
        assert np.isnan(one.nats[0])
        assert one.h_lm == pytest.approx(float(np.nansum(one.nats)))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"e": np.zeros((2, 32)), "m": np.zeros((3, 32))}, r"'e' have shape \(2, 32\); expected \(3, 32\)"),
        ({"e": np.zeros((3, 32)), "m": np.zeros((3, 31))}, r"'m' have shape \(3, 31\)"),
    ],
)
def test_start_vectors_of_a_wrong_shape(tiny, token_lists, start, message):
    with pytest.raises(UserError, match=message):
        fit(tiny, token_lists[:3], scheme=OneStep(start=start), steps=1)

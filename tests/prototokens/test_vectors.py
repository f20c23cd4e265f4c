"""Several e and m, and vectors of few dimensions: what enters the model, what is trained, what a run keeps of it."""

import json

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from options import quick_of

from onestep_jax import Cramming, ManyVectors, OneStep, Projected, UserError, decode, fit, generate, read_results
from onestep_jax.analysis.attention import attention
from onestep_jax.analysis.capacity import grid, search
from onestep_jax.analysis.metrics import compression
from onestep_jax.cli.parser import main
from onestep_jax.fitting.plan import resolve
from onestep_jax.prototokens.assembly import input_rows
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.projection import fixed_map
from onestep_jax.prototokens.reconstruction import decoding_of, regenerate
from onestep_jax.prototokens.schemes import draw, floats_of, from_description
from onestep_jax.prototokens.starts import read_vectors
from onestep_jax.store.export import write_vectors
from onestep_jax.store.verify import verify
from onestep_jax.tokens import id_words

D = 32
MANY, ONE = ManyVectors(3, 2), OneStep()
FIXED, OWN = Projected(ONE, 5), Projected(MANY, 3, "own", leaves=("e", "m"))
SHARED = Projected(ONE, 4, "shared", group=2)
BOTH = Projected(OneStep("unguided-e", share="m", group=2), 4)
APART = Projected(OneStep(group=2), 4)
SCHEMES = {"many": MANY, "fixed": FIXED, "own": OWN, "shared": SHARED, "fixed e, shared m": BOTH, "in groups": APART}
QUICK = (0, 1, 3)


def ids_of(texts, seed=0):
    return jnp.asarray([id_words(f"{i:016x}", seed) for i in range(texts)])


def leaves_of(scheme, width=D):
    drawn = draw(scheme, ids_of(scheme.group), width, 1.0)
    return {name: leaf if name in scheme.shared else leaf[0] for name, leaf in drawn.items()}


def rows_of(scheme, leaves, count, padding=0):
    return np.asarray(scheme.inputs(leaves, jnp.zeros((count + padding, D)), jnp.int32(count)))


# --- which position predicts which token ---


@pytest.mark.parametrize(
    ("scheme", "layouts"),
    [  # N → the inputs, where those in brackets predict no token; digits are e, letters m
        (ManyVectors(), {1: "0", 3: "0aa"}),
        (ManyVectors(guided=0), {1: "(0)a", 3: "(0)aaa"}),
        (ManyVectors(3), {1: "(01)2", 4: "(01)2aaa"}),
        (ManyVectors(3, guided=0), {2: "(012)aa"}),
        (ManyVectors(3, guided=3), {1: "0", 2: "01", 3: "012", 5: "012aa"}),
        (ManyVectors(1, 3), {1: "0", 3: "0ab", 6: "0abcab"}),
        (ManyVectors(2, 2), {5: "(0)1abab"}),
        (ManyVectors(2, 3, guided=0), {2: "(01)ab", 5: "(01)abcab"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", [0, 4])
def test_layout(scheme, layouts, padding):
    leaves = {"e": jnp.arange(scheme.e)[:, None] + 48.0, "m": jnp.arange(scheme.m)[:, None] + 97.0}
    for count, layout in layouts.items():
        x_TD = scheme.inputs(leaves, jnp.zeros((count + padding, 1)), jnp.int32(count))
        plain = layout.replace("(", "").replace(")", "")
        assert "".join(chr(int(row[0])) for row in x_TD[: len(plain)]) == plain
        assert len(x_TD) == count + padding + scheme.extra
        assert scheme.extra == (layout.index(")") - 1 if ")" in layout else 0) == len(plain) - count
        np.testing.assert_array_equal(scheme.reads(count), scheme.extra + np.arange(count))


@settings(deadline=None)
@given(e=st.integers(1, 4), m=st.integers(1, 4), guided=st.integers(0, 4), count=st.integers(1, 9))
def test_inputs_of_a_shorter_text_are_the_first_of_a_longer_one(e, m, guided, count):
    """So a solution of N tokens is one of every shorter prefix."""
    scheme = ManyVectors(e, m, min(guided, e))
    leaves = {"e": np.arange(e * D).reshape(e, D) * 1.0, "m": -1.0 - np.arange(m * D).reshape(m, D)}
    long = rows_of(scheme, leaves, 10)
    np.testing.assert_array_equal(rows_of(scheme, leaves, count), long[: count + scheme.extra])


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_token_depends_on_no_input_behind_the_one_that_predicts_it(tiny, scheme):
    x_TD, (first, *_) = rows_of(scheme, leaves_of(scheme), 6), scheme.reads(6)
    logits_TV = np.asarray(tiny.apply(tiny.params, jnp.asarray(x_TD)))
    for token in (0, 3):
        changed = x_TD.copy()
        changed[first + token + 1 :] += 1.0
        np.testing.assert_allclose(
            tiny.apply(tiny.params, jnp.asarray(changed))[: first + token + 1],
            logits_TV[: first + token + 1],
            atol=1e-4,
        )
        changed[first + token] += 1.0
        assert (
            np.abs(tiny.apply(tiny.params, jnp.asarray(changed))[first + token] - logits_TV[first + token]).max() > 0.1
        )


# --- one e and one m are the paper's ---


@pytest.mark.parametrize(("name", "guided"), quick_of([("unguided-e", 0), ("one-step", 1)]))
@pytest.mark.parametrize("preset", quick_of(["fast", "paper"]))
def test_one_of_each_is_one_step(tiny, token_lists, one_device, name, guided, preset):
    how = {"steps": 30, "preset": preset, "seeds": 1, "placement": one_device, "slots": 4}
    one = fit(tiny, token_lists[:3], scheme=OneStep(name), **how)
    many = fit(tiny, token_lists[:3], scheme=ManyVectors(guided=guided), **how)
    for ours, theirs in zip(many, one, strict=True):
        assert (ours.status, ours.steps, ours.accuracy) == (theirs.status, theirs.steps, theirs.accuracy)
        np.testing.assert_allclose(ours.trials[0].trace, theirs.trials[0].trace, rtol=1e-4)
        for leaf in "em":
            np.testing.assert_allclose(ours.vectors[leaf][0], theirs.vectors[leaf], rtol=1e-3, atol=1e-4)
    drawn, plain = (draw(scheme, ids_of(2), D, 0.3) for scheme in (ManyVectors(), ONE))
    for leaf in "em":
        np.testing.assert_array_equal(drawn[leaf][:, 0], plain[leaf])


def test_more_vectors_than_one_differ_from_each_other(tiny):
    drawn = draw(ManyVectors(3, 2), ids_of(1), D, 1.0)
    rows = np.concatenate([drawn["e"][0], drawn["m"][0]])
    assert np.abs(np.corrcoef(rows) - np.eye(5)).max() < 0.8


# --- maps ---


@pytest.mark.parametrize(("dimensions", "width"), [(1, 7), (5, 32), (32, 32)])
def test_a_fixed_map_has_orthogonal_rows_of_one_length(dimensions, width):
    map_dD = fixed_map(3, dimensions, width)
    np.testing.assert_allclose(map_dD @ map_dD.T, width * np.eye(dimensions), atol=1e-4)
    np.testing.assert_array_equal(map_dD, fixed_map.__wrapped__(3, dimensions, width))
    assert np.abs(map_dD - fixed_map(4, dimensions, width)).max() > 0.1


def test_a_fixed_map_is_what_it_was():
    """Runs keep its seed alone."""
    kept = [[0.21585944, 1.5353295, 0.7721193], [0.53733855, 0.67887205, -1.5001333]]
    np.testing.assert_allclose(fixed_map(0, 2, 3), kept, rtol=1e-5)


@pytest.mark.parametrize("scheme", [FIXED, Projected(ONE, 5, "own"), SHARED, Projected(ONE, 24, "own")], ids=str)
def test_vectors_start_with_the_deviation_that_is_asked_for(scheme):
    width, scale = 256, 0.3
    found = []
    for seed in range(40):
        drawn = draw(scheme, ids_of(scheme.group, seed), width, scale)
        if "W" in drawn:
            assert not np.asarray(drawn["W"])[..., -1, :].any()
        leaves = {name: leaf if name in scheme.shared else leaf[0] for name, leaf in drawn.items()}
        rows = np.asarray(scheme.inputs(leaves, jnp.zeros((2, width)), jnp.int32(2)))
        found.append(rows.std(axis=1))
    np.testing.assert_allclose(np.sqrt(np.square(found).mean(axis=0)), scale, rtol=0.15)


def test_as_many_dimensions_as_the_model_has_are_the_vectors_themselves(tiny, token_lists):
    """The map is then a rotation: every vector has its z, which scores and descends as the vector does."""
    scheme, tokens = Projected(ONE, D, leaves=("e", "m")), jnp.asarray(token_lists[0])
    rotation_DD = fixed_map(0, D, D) / np.sqrt(D)
    plain = leaves_of(ONE)
    turned = {name: leaf @ rotation_DD.T for name, leaf in plain.items()}

    def loss(scheme, leaves):
        return score_text(tiny, scheme, tiny.params, leaves, tokens, jnp.int32(8)).nats

    value, slope = jax.value_and_grad(lambda leaves: loss(ONE, leaves))(plain)
    same, turned_slope = jax.value_and_grad(lambda leaves: loss(scheme, leaves))(turned)
    assert same == pytest.approx(float(value), rel=1e-5)
    for name in "em":
        np.testing.assert_allclose(turned_slope[name], slope[name] @ rotation_DD.T, atol=1e-5)


@pytest.mark.parametrize("scheme", [FIXED, Projected(ONE, 5, "own"), SHARED], ids=["fixed", "own", "shared"])
def test_gradients_are_those_of_the_vectors_through_the_map(tiny, token_lists, scheme):
    tokens, leaves, d = jnp.asarray(token_lists[0]), leaves_of(scheme), scheme.dimensions

    def loss(scheme, leaves):
        return score_text(tiny, scheme, tiny.params, leaves, tokens, jnp.int32(8)).nats

    x_TD = rows_of(scheme, leaves, 8)
    slope = jax.grad(lambda leaves: loss(ONE, leaves))({"e": jnp.asarray(x_TD[0]), "m": jnp.asarray(x_TD[1])})
    found = jax.grad(lambda leaves: loss(scheme, leaves))(leaves)
    map_dD = fixed_map(0, d, D) if scheme is FIXED else np.asarray(leaves["W"][:-1])
    np.testing.assert_allclose(found["e"], map_dD @ slope["e"] / np.sqrt(d), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["m"], slope["m"], rtol=1e-3, atol=1e-5)
    if scheme is not FIXED:
        np.testing.assert_allclose(
            found["W"][:-1], np.outer(leaves["e"], slope["e"]) / np.sqrt(d), rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(found["W"][-1], slope["e"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scheme", [MANY, FIXED, OWN], ids=["many", "fixed", "own"])
def test_gradients_against_finite_differences(tiny, token_lists, scheme):
    tokens, leaves = jnp.asarray(token_lists[0]), leaves_of(scheme)

    @jax.jit
    def loss(leaves):
        return score_text(tiny, scheme, tiny.params, leaves, tokens, jnp.int32(8)).nats

    slope = jax.grad(loss)(leaves)
    for name in leaves:
        way = slope[name] / jnp.linalg.norm(slope[name])
        ahead, behind = (float(loss(leaves | {name: leaves[name] + h * way})) for h in (1e-2, -1e-2))
        assert (ahead - behind) / 2e-2 == pytest.approx(float(jnp.linalg.norm(slope[name])), rel=0.02)


# --- fits ---


@pytest.fixture(scope="module")
def texts(token_lists):
    return [token_lists[0], token_lists[1][:5], token_lists[2], token_lists[3]]


class Fits(dict):
    """Name → run directory and results of a fit that ends in the middle, slots of two groups; made when asked for."""

    def __init__(self, model, texts, folder, placement):
        self._given, self._folder, self._placement = (model, texts), folder, placement

    def __missing__(self, name):
        how = {"steps": 40, "preset": "paper", "placement": self._placement}
        folder = self._folder / name
        self[name] = folder, fit(*self._given, scheme=SCHEMES[name], run=folder, **how)
        return self[name]


@pytest.fixture(scope="module")
def fitted(tiny, texts, one_device, tmp_path_factory):
    return Fits(tiny, texts, tmp_path_factory.mktemp("runs"), one_device)


@pytest.mark.parametrize("name", quick_of(SCHEMES, *QUICK))
def test_a_run_keeps_what_was_trained(tiny, fitted, name, tmp_path):
    scheme = SCHEMES[name]
    folder, results = fitted[name]
    read = read_results(folder)
    assert from_description(read.scheme).describe() == scheme.describe() == read.scheme
    for text, other in zip(results, read, strict=True):
        assert {leaf: vector.shape for leaf, vector in other.vectors.items()} == scheme.leaf_shapes(D)
        for leaf in text.vectors:
            np.testing.assert_array_equal(text.vectors[leaf], other.vectors[leaf])
    for decoded, text in zip(decode(tiny, read), read, strict=True):
        np.testing.assert_array_equal(decoded.tokens, text.predicted)
    assert not verify(folder, decoding_of(tiny)).problems
    for text, rows in zip(read, input_rows(tiny, read), strict=True):
        logits_TV = tiny.apply(tiny.params, jnp.asarray(rows.vectors_PD))
        np.testing.assert_array_equal(np.argmax(logits_TV[rows.first :], axis=-1), text.predicted)
    write_vectors(read, tmp_path / "vectors.safetensors")
    kept = read_vectors(tmp_path / "vectors.safetensors").vectors
    for text in read:
        np.testing.assert_equal(dict(kept[text.text_id]), dict(text.vectors))


@pytest.mark.parametrize("name", quick_of(SCHEMES, *QUICK))
def test_texts_of_a_group_share_what_the_scheme_says(tiny, fitted, name):
    scheme = SCHEMES[name]
    _, results = fitted[name]
    for leaf, vectors in results.vectors.items():
        assert len({vector.tobytes() for vector in vectors}) == (2 if leaf in scheme.shared else 4)
    expected = {"many": 5 * D, "fixed": 5 + D, "own": 5 * 3 + 4 * D, "shared": 4 + D + 5 * D / 2}
    expected |= {"fixed e, shared m": 4 + D / 2, "in groups": 4 + D}
    assert floats_of(scheme, D) == expected[name]
    assert compression(tiny, results[0], results.scheme).floats == floats_of(scheme, D)


@pytest.mark.parametrize("name", quick_of(["many", "fixed", "own"], 0, 1))
def test_texts_together_are_fitted_as_each_alone(tiny, texts, fitted, one_device, name):
    _, results = fitted[name]
    alone = fit(tiny, texts[1:2], scheme=SCHEMES[name], steps=40, preset="paper",
                placement=one_device)  # fmt: skip
    assert alone[0].text_id == results[1].text_id
    np.testing.assert_allclose(alone[0].trials[0].trace[:3, 1], results[1].trials[0].trace[:3, 1], rtol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_resumed_is_straight_through(tiny, texts, one_device, tmp_path, name, preset):
    scheme = SCHEMES[name]
    how = {"steps": 40, "preset": preset, "seeds": 1, "chunk": 4, "placement": one_device, "scheme": scheme}

    class Stop(Exception):
        pass

    calls = []

    def stop(progress):
        calls.append(progress)
        if len(calls) == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(tiny, texts, run=tmp_path / "run", save_every=0.0, progress=stop, **how)
    resumed, straight = fit(tiny, texts, run=tmp_path / "run", **how), fit(tiny, texts, **how)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert (ours.steps, ours.best_step, ours.status) == (theirs.steps, theirs.best_step, theirs.status)
        for leaf in theirs.vectors:
            np.testing.assert_allclose(ours.vectors[leaf], theirs.vectors[leaf], rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("scheme", [MANY, Projected(ONE, 24), Projected(ONE, 3, "own"), SHARED], ids=str)
def test_the_preset_solves_texts(tiny, token_lists, one_device, scheme):
    results = fit(tiny, token_lists[:4], scheme=scheme, steps=600, placement=one_device)
    assert results.solved >= 3


@pytest.mark.long
def test_crammed_vectors_of_few_dimensions_are_generated_from(tiny, token_lists, one_device):
    scheme = Projected(Cramming(2), 6, "own", prefix=(3,))
    results = fit(tiny, token_lists[:2], scheme=scheme, steps=60, placement=one_device)
    for text, found in zip(results, regenerate(tiny, results), strict=True):
        z_Kd, map_dD = text.vectors["mem"], text.vectors["W"]
        assert (z_Kd.shape, map_dD.shape) == ((2, 6), (7, D))
        mem_KD = z_Kd @ map_dD[:-1] / np.sqrt(6) + map_dD[-1]
        prompt = np.concatenate([tiny.embed(tiny.params, jnp.array([3])), mem_KD])
        (expected,) = generate(tiny, [prompt], count=8, stop=())
        np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.long
def test_capacities_are_found(tiny, token_lists):
    how = {"steps": 60, "seeds": 1}
    assert len(search(tiny, token_lists[:2], (2, 4), scheme=MANY, **how).capacities()) == 2
    found = grid(tiny, token_lists[:2], (2, 4), scheme=SHARED, **how)
    assert [capacity.longest_tried for capacity in found.capacities()] == [4, 4]
    with pytest.raises(UserError, match="search with groups of 2"):
        search(tiny, token_lists[:2], (2, 4), scheme=SHARED, **how)
    with pytest.raises(UserError, match="arrangement 'halves'"):
        search(tiny, token_lists[:2], (2, 4), scheme=Projected(OneStep("halves"), 8), **how)


# --- starts ---


@pytest.mark.parametrize("name", quick_of(["many", "fixed", "own"], 0, 1))
def test_a_fit_starts_at_vectors_of_the_same_scheme(tiny, texts, fitted, name):
    _, results = fitted[name]
    again = fit(tiny, texts, start=results, steps=1, seeds=1, preset="paper")
    for text, before in zip(again, results, strict=True):
        for leaf in before.vectors:
            np.testing.assert_array_equal(text.vectors[leaf], before.vectors[leaf])


def test_a_fit_starts_at_vectors_of_no_other_scheme(tiny, texts, fitted):
    _, fixed = fitted["fixed"]
    for scheme in (ONE, MANY, Projected(ONE, 5, seed=1), Projected(ONE, 6), Projected(ONE, 5, "own")):
        with pytest.raises(UserError, match=r"the start vectors are for .* and the fit is of"):
            fit(tiny, texts, start=fixed, scheme=scheme, steps=1)
    _, shared = fitted["shared"]
    with pytest.raises(UserError, match="start vectors go to texts that share no vector"):
        fit(tiny, texts, start=shared, steps=1)


# --- what cannot be ---


def test_what_cannot_be_is_refused(tiny, texts, fitted):
    for call, message in (
        (lambda: ManyVectors(0), "ManyVectors: e = 0: expected at least 1"),
        (lambda: ManyVectors(1, 0), "ManyVectors: m = 0: expected at least 1"),
        (lambda: ManyVectors(2, guided=3), "ManyVectors: guided = 3: expected at most 2"),
        (lambda: ManyVectors(share="mem", group=2), "has e and m to share"),
        (lambda: ManyVectors(start={"e": np.zeros((1, 1, D))}), "expected vectors for e and m"),
        (lambda: OneStep("many"), r"that scheme is ManyVectors\(e=K, m=K\)"),
        (lambda: Projected(ONE, 0), "Projected: dimensions = 0: expected at least 1"),
        (lambda: Projected(ONE, 4, "owned"), "unknown projection 'owned' .did you mean 'own'"),
        (lambda: Projected(ONE, 4, leaves=("mem",)), r"unknown vector of \[e\] \[m\]×\(N−1\) 'mem'"),
        (lambda: Projected(OneStep(share="m", group=2), 4, "shared", group=2), "a shared map, and a shared m"),
        (lambda: Projected(ONE, 4, group=2), r"Projected\(group=2\): a group shares the map"),
        (lambda: Projected(OneStep(prefix="bos"), 4, prefix="none"), "a prefix of its own, and one of the arrangement"),
        (lambda: Projected(OneStep(start={"e": np.zeros((1, D)), "m": np.zeros((1, D))}), 4), "belong to it and not"),
        (lambda: fit(tiny, texts, scheme=Projected(ONE, D + 1)), "33 dimensions .*: expected at most the 32 of"),
        (lambda: resolve(tiny, texts, scheme=Projected(ONE, 4, "shared", group=5)), "group = 5: expected at most"),
        (lambda: fit(tiny, [[1] * 64], scheme=ManyVectors(3)), "the model's context has room for 62"),
        (lambda: attention(tiny, fitted["fixed"][1]), "arrangement 'projected': expected 'one-step' or 'unguided-e'"),
        (lambda: attention(tiny, fitted["many"][1]), "arrangement 'many': expected 'one-step' or 'unguided-e'"),
        (lambda: from_description({"arrangement": "projected", "of": 3}), "scheme projected: of = 3"),
        (lambda: from_description({"arrangement": "projected", "of": FIXED.describe()}), "another arrangement within"),
        (lambda: from_description({"arrangement": "projected", "of": ONE.describe()}), "dimensions = None"),
        (lambda: from_description({"arrangement": "many", "vectors": 1}), "unknown key of scheme many 'vectors'"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_prefix_within_is_that_of_the_whole():
    scheme = Projected(OneStep("unguided-e", prefix=(3, 4)), 4)
    assert (scheme.prefix, scheme.of) == ((3, 4), OneStep("unguided-e"))
    assert scheme.describe()["prefix"] == [3, 4]
    assert from_description(scheme.describe()) == scheme


# --- the command line ---


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "described"),
    [
        ("--arrangement many --e-vectors 2 --m-vectors 3 --guided 0", ManyVectors(2, 3, 0)),
        ("--arrangement many --share m --group all", ManyVectors(share="m", group=2)),
        ("--dimensions 6", Projected(OneStep("unguided-e"), 6)),
        (
            "--dimensions 6 --projection-seed 4 --project e,m",
            Projected(OneStep("unguided-e"), 6, leaves=("e", "m"), seed=4),
        ),
        ("--dimensions 6 --projection shared --group 2", Projected(OneStep("unguided-e"), 6, "shared", group=2)),
        ("--arrangement cramming --vectors 2 --dimensions 3 --projection own", Projected(Cramming(2), 3, "own")),
    ],
)
def test_options_make_the_scheme(tiny_folder, tmp_path, capsys, words, described):
    (tmp_path / "texts.txt").write_text("w1 w2 w3 w4\nw5 w6 w7\n")
    how = f"--texts {tmp_path}/texts.txt --split lines --length 4 --steps 2 --seeds 1 --model {tiny_folder}"
    run = str(tmp_path / "run")
    assert main(["fit", *how.split(), "--prefix", "none", *words.split(), "--run", run]) == 0
    assert read_results(run).scheme == described.describe()
    assert main(["verify", run]) == 0
    assert main(["export", run, "--out", f"{run}.safetensors", "--inputs-embeds"]) == 0
    assert main(["report", run]) == 0
    capsys.readouterr()
    assert main(["decode", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--e-vectors 2", "--e-vectors goes with --arrangement many"),
        ("--arrangement cramming --guided 0", "--guided goes with --arrangement many"),
        ("--arrangement many --vectors 2", "--vectors goes with --arrangement cramming"),
        ("--arrangement many --guided 2", "ManyVectors: guided = 2: expected at most 1"),
        ("--projection own", "--projection goes with --dimensions"),
        ("--project e", "--project goes with --dimensions"),
        ("--projection-seed 1", "--projection-seed goes with --dimensions"),
        ("--dimensions 4 --projection own --projection-seed 1", "--projection-seed goes with --projection fixed"),
        ("--dimensions 4 --group 2", "--group 2 needs --share e or --share m, or --projection shared"),
        ("--dimensions 4 --projection won", "unknown projection 'won' (did you mean 'own'?)"),
        ("--dimensions 4 --project n", "unknown vector of"),
        ("--dimensions 257", "expected at most the 256 of this model's input vectors"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, words, said):
    texts = "fit --texts demo --limit 2 --length 4"
    assert main([*texts.split(), *words.split(), "--run", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onestep")]
    assert said in line
    assert not (tmp_path / "run").exists()

"""What is minimised and measured, against means over the ways of single texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import DESIGN, random_encoder

from onestep_jax import UserError
from onestep_jax.encoder.corrections import score
from onestep_jax.encoder.encoding import check_steps, evaluate, figures_of, ways_of
from onestep_jax.encoder.objective import Program, encode_text, mean_loss, past_of
from onestep_jax.encoder.reading import check_room, read

PREFIX = (7, 3)


@pytest.fixture(scope="module")
def encoder(little):
    return random_encoder(little, prefix=PREFIX)


@pytest.fixture(scope="module")
def program(little, encoder):
    return Program(little.network, encoder.design)


@pytest.fixture(scope="module")
def tokens_BT():
    return np.random.default_rng(0).integers(61, size=(5, 4)).astype(np.int32)


@pytest.fixture(scope="module")
def ways(little, encoder, program, tokens_BT):
    """Of each text alone."""
    past = past_of(program, little.params)
    way_of = jax.jit(lambda tokens_T: encode_text(program, little.params, encoder.weights, past, tokens_T, 2)[0])
    return [jax.tree.map(np.asarray, way_of(tokens_T)) for tokens_T in tokens_BT]


def test_a_way_begins_where_the_text_is_read_and_tells_what_the_decoder_makes_of_it(
    little, encoder, program, tokens_BT, ways
):
    """The vectors and what is told of them belong together, behind the prefix."""
    past = little.past(little.params, jnp.asarray(PREFIX))
    told = jax.jit(lambda z_LD, tokens_T: score(little.network, encoder.design, little.params, past, z_LD, tokens_T))
    for tokens_T, way in zip(tokens_BT, ways, strict=True):
        begun = jax.jit(read, static_argnums=(0, 1))(
            little.network, encoder.design, little.params, encoder.weights, tokens_T
        )
        np.testing.assert_allclose(way.z_KLD[0], begun, rtol=1e-4, atol=1e-5)
        for k in range(3):
            found = told(way.z_KLD[k], tokens_T)
            assert way.nats_K[k] == pytest.approx(float(found.nats), rel=1e-4)
            np.testing.assert_array_equal(way.predicted_KT[k], found.predicted_T)
    assert len({way.z_KLD[k].tobytes() for way in ways for k in range(3)}) == 15


def test_the_last_number_of_corrections_counts_twice(little, encoder, program, tokens_BT, ways):
    loss, figures = jax.jit(mean_loss, static_argnums=(0, 4))(program, little.params, encoder.weights, tokens_BT, 2)
    nats_K = np.mean([way.nats_K for way in ways], axis=0)
    np.testing.assert_allclose(figures.nats_K, nats_K, rtol=1e-5)
    assert loss == pytest.approx((nats_K[0] + nats_K[1] + 2 * nats_K[2]) / 4, rel=1e-5)
    assert len(set(nats_K.tolist())) == 3
    alone, figures = jax.jit(mean_loss, static_argnums=(0, 4))(program, little.params, encoder.weights, tokens_BT, 0)
    assert alone == pytest.approx(nats_K[0], rel=1e-5)
    assert figures.nats_K.shape == (1,)


def test_figures_of_texts(little, encoder, ways):
    """Targets are what vectors emit, which no text and no correction changes, but for two tokens."""
    design = dataclasses.replace(DESIGN, reader="none", prefix=PREFIX)
    steps = {"diagonal": jnp.zeros((2, 64))}
    still = dataclasses.replace(encoder, design=design, weights={"constant": ways[0].z_KLD[0], "steps": steps})
    targets_BT = np.stack([ways[0].predicted_KT[0]] * 4)
    targets_BT[0, 2] = (targets_BT[0, 2] + 1) % 61
    targets_BT[1, 0] = (targets_BT[1, 0] + 1) % 61
    rows = evaluate(little, still, list(targets_BT))
    assert [(row["length"], row["corrections"]) for row in rows] == [(4, 0), (4, 1), (4, 2)]
    for row in rows:
        assert row["accuracy"] == pytest.approx(14 / 16)
        assert row["exact"] == pytest.approx(2 / 4)
        assert row["horizon"] == pytest.approx((2 + 0 + 4 + 4) / 4)
        assert row["nats"] == pytest.approx(rows[0]["nats"])
    figures = figures_of(Program(little.network, design), little.params, still.weights, targets_BT, 2)
    np.testing.assert_allclose(figures.nats_K, [row["nats"] for row in rows], rtol=1e-5)
    np.testing.assert_allclose(figures.accuracy_K, 14 / 16)
    np.testing.assert_allclose(figures.exact_K, 2 / 4)
    assert [row["corrections"] for row in evaluate(little, still, list(targets_BT), refine=1)] == [0, 1]


@pytest.mark.parametrize(("parts", "room"), [({}, 60), ({"reader": "none"}, 62), ({"arrangement": "unguided-e"}, 60)])
def test_texts_beyond_the_context(little, parts, room):
    """Which holds the prefix of two and, behind the text, the queries."""
    made = random_encoder(little, prefix=PREFIX, **parts)
    check_room(little.config, made.design, room)
    with pytest.raises(UserError, match=f"length {room + 1} needs 65 positions, beyond the model's context of 64"):
        evaluate(little, made, [np.zeros(room + 1, np.int32)])


def test_ways_of_texts_of_several_lengths(little, encoder, program):
    """Each text once, with its own way, texts of one length together."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(61, size=length).astype(np.int32) for length in (3, 2, 3, 3, 2)]
    told = []
    given = (program, little.params, encoder.weights, texts, 0)
    found = list(ways_of(*given, batch=2, progress=lambda *done: told.append(done)))
    assert [rows for rows, _ in found] == [[1, 4], [0, 2, 3]]
    assert told == [(2, 5), (5, 5)]
    for rows, ways in found:
        for row, way in zip(rows, ways, strict=True):
            begun = read(little.network, encoder.design, little.params, encoder.weights, jnp.asarray(texts[row]))
            np.testing.assert_allclose(way.z_KLD[0], begun, rtol=1e-4, atol=1e-5)
            assert len(way.nats_K) == 1


def test_many_texts_are_a_group_after_the_other(little, encoder, program):
    texts = list(np.random.default_rng(2).integers(61, size=(6, 2)).astype(np.int32))
    found = ways_of(program, little.params, encoder.weights, texts, 0, batch=1)
    assert [rows for rows, _ in found] == [[0, 1, 2, 3], [4, 5]]


def test_a_text_that_is_exact_takes_no_more_corrections(little, encoder, program):
    """Two texts are what the vectors emit as they are read. That they leave changes the batches of the others, but not
    their ways."""
    design = dataclasses.replace(DESIGN, reader="none", prefix=PREFIX)
    constant = np.random.default_rng(3).normal(size=encoder.weights["constant"].shape).astype(np.float32)
    still = {"constant": constant, "steps": {"diagonal": np.zeros((2, constant.size), np.float32)}}
    program = program._replace(design=design)
    drawn = list(np.random.default_rng(0).integers(61, size=(3, 4)).astype(np.int32))
    ((_, ways),) = ways_of(program, little.params, still, drawn, 0, batch=3)
    texts = [drawn[0], ways[0].predicted_KT[0], drawn[1], ways[0].predicted_KT[0], drawn[2]]
    moving = still | {"steps": {"diagonal": np.full((2, constant.size), 0.05, np.float32)}}
    ((_, whole),) = ways_of(program, little.params, moving, texts, 2, batch=2)
    told = []
    given = (program, little.params, moving, texts, 2)
    asked = []

    def confirm(tokens_RT, z_RLD):
        asked.append((tokens_RT, z_RLD))
        return tokens_RT

    ((_, ended),) = ways_of(*given, batch=2, progress=lambda *done: told.append(done), confirm=confirm)
    ((tokens_RT, z_RLD),) = asked
    np.testing.assert_array_equal(tokens_RT, [texts[1], texts[3]])
    np.testing.assert_allclose(z_RLD, [constant, constant], rtol=1e-6)
    assert [len(way.nats_K) for way in whole] == [3] * 5
    assert [len(way.nats_K) for way in ended] == [3, 1, 3, 1, 3]
    assert told == [(2, 5), (5, 5)]
    for way, before in zip(ended, whole, strict=True):
        taken = len(way.nats_K)
        np.testing.assert_allclose(way.z_KLD, before.z_KLD[:taken], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(way.nats_K, before.nats_K[:taken], rtol=1e-5)
        np.testing.assert_array_equal(way.predicted_KT, before.predicted_KT[:taken])


def test_an_exact_text_that_is_refuted_goes_on(little, encoder, program):
    """With the ids that the other program makes of it, at the last correction too."""
    design = dataclasses.replace(DESIGN, reader="none", prefix=PREFIX)
    constant = np.random.default_rng(3).normal(size=encoder.weights["constant"].shape).astype(np.float32)
    still = {"constant": constant, "steps": {"diagonal": np.zeros((2, constant.size), np.float32)}}
    given, drawn = (program._replace(design=design), little.params, still), np.zeros(4, np.int32)
    ((_, (way,)),) = ways_of(*given, [drawn], 0, batch=1)
    text = way.predicted_KT[0]
    other = np.where(np.arange(4) == 1, (text + 1) % 61, text)
    for answers in ([text], [other, text], [other, other, other]):
        left = list(answers)
        ((_, (way,)),) = ways_of(*given, [text], 2, batch=1, confirm=lambda *_, left=left: left.pop(0)[None])
        np.testing.assert_array_equal(way.predicted_KT, answers)
        assert not left


def test_numbers_of_corrections(encoder):
    assert [check_steps(encoder, refine) for refine in (None, 0, 1, 2)] == [2, 0, 1, 2]
    for wrong in (3, -1, True, 1.0, "2"):
        with pytest.raises(UserError, match="this encoder has 2 corrections; give 0 to 2, and let `onestep fit"):
            check_steps(encoder, wrong)

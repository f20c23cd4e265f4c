"""The reader against the decoder's own hidden states, pooled by hand; adapters against merged weights."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close, relative
from encoders import random_weights
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax import Design, load_model
from onestep_jax.encoder.reading import init_reader, read

GOLDEN = Path(__file__).parent.parent / "golden"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
T, D = 4, 32


@pytest.fixture(scope="module")
def tokens_T():
    return jax.random.randint(jax.random.key(1), (T,), 0, 61)


def first(model, design, seed=0):
    return init_reader(model.network, design, model.params, jax.random.key(seed))


def z_of(model, design, weights, tokens_T):
    return jax.jit(read, static_argnums=(0, 1))(model.network, design, model.params, weights, tokens_T)


def by_hand(model, design, weights, tokens_T):
    """constant + Σ_r (h_r C) · pool_r over the queries and then the first tokens; C of the channels, if there are."""
    before = np.concatenate([design.prefix, tokens_T]).astype(np.int32)
    x_TD = np.concatenate([model.embed(model.params, before), weights["query"]])
    h_TD = np.asarray(jax.jit(model.network.hidden)(model.params, x_TD))
    rows = [h_TD[-2], h_TD[-1]]
    if design.pooling == "positions":
        rows += list(h_TD[len(design.prefix) : -2][: design.length])
    if "channels" in weights:
        rows = [row @ np.asarray(weights["channels"]) for row in rows]
    z = np.asarray(weights["constant"]).copy()
    for row, pool in zip(rows, np.asarray(weights["pool"]), strict=False):
        z += (row @ pool).reshape(z.shape)
    return z


@pytest.mark.parametrize("pooling", ["positions", "queries"])
@pytest.mark.parametrize("reader", ["copy", "lora"])
def test_before_training_it_reads_as_the_frozen_model_does(little, tokens_T, reader, pooling):
    for prefix, channels in (((), 0), ((7, 3), 6)):
        design = Design(length=T, reader=reader, pooling=pooling, rank=2, prefix=prefix, channels=channels)
        weights = first(little, design)
        assert weights["pool"].shape == (2 + T if pooling == "positions" else 2, channels or D, 2 * D)
        z_LD = z_of(little, design, weights, tokens_T)
        assert_close(z_LD, by_hand(little, design, weights, tokens_T))
        assert relative(z_LD, weights["constant"]) > 0.05


def test_prefix_and_text_are_read(little, tokens_T):
    design = Design(length=T, prefix=(7, 3))
    weights = first(little, design)
    z_LD = z_of(little, design, weights, tokens_T)
    for other, text in (
        (dataclasses.replace(design, prefix=(8, 3)), tokens_T),
        (dataclasses.replace(design, prefix=()), tokens_T),
        (design, tokens_T.at[0].add(1)),
        (design, tokens_T.at[T - 1].add(1)),
    ):
        assert relative(z_of(little, other, weights, text), z_LD) > 1e-3


@pytest.mark.parametrize("length", [1, T - 1, T + 3])
def test_texts_of_other_lengths_have_the_weights_of_the_positions_that_there_are(little, length):
    design = Design(length=T, prefix=(7,))
    weights = first(little, design)
    tokens_T = jax.random.randint(jax.random.key(4), (length,), 0, 61)
    z_LD = z_of(little, design, weights, tokens_T)
    assert_close(z_LD, by_hand(little, design, weights, tokens_T))


def test_first_weights(little):
    """The copy is a copy; the constant is of the scale of `fast`; keys make others; the reader "none" has no more."""
    design = Design(length=T)
    weights = first(little, design)
    names = {name for name in little.params if name.startswith("block_")} | {"norm"}
    assert set(weights["blocks"]) == names
    for one, other in zip(
        jax.tree.leaves(weights["blocks"]), jax.tree.leaves({name: little.params[name] for name in names}), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert np.std(weights["constant"]) == pytest.approx(1, rel=0.3)
    embeddings = little.params["embed"]["embedding"]
    assert np.std(weights["query"]) == pytest.approx(float(np.std(embeddings)), rel=0.3)
    assert relative(first(little, design, 1)["pool"], weights["pool"]) > 0.5
    none = first(little, dataclasses.replace(design, reader="none"))
    assert set(none) == {"constant"}
    tokens_T = jnp.arange(T)
    read_z = z_of(little, dataclasses.replace(design, reader="none"), none, tokens_T)
    np.testing.assert_array_equal(read_z, none["constant"])


def test_one_vector_has_one_row(little, tokens_T):
    design = Design(length=T, arrangement="one-vector")
    weights = first(little, design)
    z_LD = z_of(little, design, weights, tokens_T)
    assert z_LD.shape == (1, D)
    assert_close(z_LD, by_hand(little, design, weights, tokens_T))


def merged(frozen, adapters):
    """Kernels W + up · down."""
    leaves, made = flatten_dict(adapters), dict(flatten_dict(frozen))
    for path, up in leaves.items():
        if path[-1] == "up":
            made[(*path[:-1], "kernel")] += up @ leaves[(*path[:-1], "down")]
    return unflatten_dict(made)


@pytest.mark.parametrize("reader", ["copy", "lora"])
def test_trained_weights_are_those_that_read(little, tokens_T, reader):
    design = Design(length=T, reader=reader, rank=2)
    weights = random_weights(little, design)
    blocks = weights["blocks"]
    params = {**little.params, **blocks} if reader == "copy" else merged(little.params, blocks)
    z_LD = z_of(little, design, weights, tokens_T)
    assert relative(z_LD, by_hand(dataclasses.replace(little, params=params), design, weights, tokens_T)) < 2e-5
    assert relative(z_LD, by_hand(little, design, weights, tokens_T)) > 0.01


SOME = ("gpt2", "phi3")  # biases and learned positions; grouped heads, untied


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME else pytest.mark.long) for name in FAMILIES]
)
def test_adapters_are_merged_weights(name):
    """Hidden states and gradients, of the input and of every adapter; each kernel of a block has one."""
    model = load_model(GOLDEN / name, dtype="float32")
    design = Design(length=T, reader="lora", rank=3)
    adapters = random_weights(model, design)["blocks"]
    kernels = [path for path in flatten_dict(model.params) if path[0].startswith("block_") and path[-1] == "kernel"]
    assert len(flatten_dict(adapters)) == 2 * len(kernels) > 0
    x_TD, target_TD = np.random.default_rng(0).normal(size=(2, T + 2, model.embed_width)).astype(np.float32)
    if model.config.width != model.embed_width:
        target_TD = np.random.default_rng(1).normal(size=(T + 2, model.config.width)).astype(np.float32)

    def beside(adapters, x_TD):
        h_TD = model.network.hidden(model.params, x_TD, adapters=adapters)
        return jnp.sum(h_TD * target_TD), h_TD

    def within(params, x_TD):
        h_TD = model.network.hidden(params, x_TD)
        return jnp.sum(h_TD * target_TD), h_TD

    whole = merged(model.params, adapters)
    (_, h_TD), (found, x_gradient) = jax.jit(jax.value_and_grad(beside, (0, 1), has_aux=True))(adapters, x_TD)
    (_, expected_TD), (kernel_gradients, expected_x) = jax.jit(jax.value_and_grad(within, (0, 1), has_aux=True))(
        whole, x_TD
    )
    frozen_TD = jax.jit(model.network.hidden)(model.params, x_TD)
    assert relative(h_TD, frozen_TD) > 0.01
    assert relative(h_TD, expected_TD) < 2e-5
    assert relative(x_gradient, expected_x) < 2e-5
    leaves, gradients = flatten_dict(adapters), flatten_dict(found)
    for path, gradient in flatten_dict(kernel_gradients).items():
        if path in kernels:
            up, down = ((*path[:-1], name) for name in ("up", "down"))
            assert np.linalg.norm(gradient) > 0
            assert relative(gradients[up], gradient @ leaves[down].T) < 1e-4
            assert relative(gradients[down], leaves[up].T @ gradient) < 1e-4

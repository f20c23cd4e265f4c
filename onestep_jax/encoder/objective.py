"""What an encoder is trained on: the loss of its vectors, as it reads them and after each correction."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from onestep_jax.encoder.corrections import correct, init_corrections, score
from onestep_jax.encoder.design import Design, Weights
from onestep_jax.encoder.reading import init_reader, read
from onestep_jax.model.decoder import Array, Network, Params, Past


class Figures(NamedTuple):
    """Means over texts, for each number of corrections from 0 to K.

    Attributes:
      nats_K: (K + 1,) nats per token, at temperature 1.
      accuracy_K: (K + 1,) share of exact tokens (Eq. 2).
      exact_K: (K + 1,) share of texts of which all tokens are exact.
    """

    nats_K: Any
    accuracy_K: Any
    exact_K: Any


class Program(NamedTuple):
    """What the programs of a training are made of; hashable.

    Attributes:
      network: the decoder.
      design: of the encoder.
      first_order, remat: see `corrections.correct`.
    """

    network: Network
    design: Design
    first_order: bool = False
    remat: bool = False


class Way(NamedTuple):
    """The vectors of one text on the way through the corrections.

    Attributes:
      z_KLD: (K + 1, L, D), as they were read and after each correction.
      nats_K: (K + 1,) nats per token there, at temperature 1.
      predicted_KT: (K + 1, T) the argmax ids there.
    """

    z_KLD: Any
    nats_K: Any
    predicted_KT: Any


def init_weights(network: Network, design: Design, frozen: Params, key: Array) -> Weights:
    """Weights of an encoder before training, see `reading.init_reader` and `corrections.init_corrections`."""
    own, shared = jax.random.split(key)
    return init_reader(network, design, frozen, own) | init_corrections(network, design, shared)


def encode_text(
    program: Program, frozen: Params, weights: Weights, past: Past | None, tokens_T: Array, steps: int
) -> tuple[Way, Array]:
    """Read one text, without padding, and correct its vectors so many times; the losses on its way, (K + 1,)."""
    network, design, first_order, remat = program
    z_LD = read(network, design, frozen, weights, tokens_T)
    z_LD, (before_KLD, scored) = correct(
        network, design, frozen, weights, past, z_LD, tokens_T, steps, first_order, remat
    )
    last = score(network, design, frozen, past, z_LD, tokens_T)
    way = Way(
        z_KLD=jnp.concatenate([before_KLD, z_LD[None]]),
        nats_K=jnp.append(scored.nats, last.nats),
        predicted_KT=jnp.concatenate([scored.predicted_T, last.predicted_T[None]]),
    )
    return way, jnp.append(scored.loss, last.loss)


def mean_figures(ways: Way, tokens_BT: Any) -> Figures:
    """Figures of texts, from their ways with a leading axis B."""
    hits_BKT = ways.predicted_KT == tokens_BT[:, None]
    return Figures(ways.nats_K.mean(axis=0), hits_BKT.mean(axis=(0, 2)), hits_BKT.all(axis=2).mean(axis=0))


def mean_loss(
    program: Program, frozen: Params, weights: Weights, tokens_BT: Array, steps: int
) -> tuple[Array, Figures]:
    """What is minimised: the mean over texts, and over the numbers of corrections, of which the last counts twice.

    The earlier ones count so that the vectors can be taken after any number of corrections.
    """
    past = past_of(program, frozen)
    ways, loss_BK = jax.vmap(functools.partial(encode_text, program, frozen, weights, past, steps=steps))(tokens_BT)
    figures = mean_figures(ways, tokens_BT)
    weights_K = jnp.ones(steps + 1).at[-1].set(2.0)
    return jnp.sum(weights_K * loss_BK.mean(axis=0)) / weights_K.sum(), figures


def past_of(program: Program, frozen: Params) -> Past | None:
    """Keys and values of the prefix, if there is one."""
    prefix = program.design.prefix
    return program.network.past(frozen, jnp.asarray(prefix, jnp.int32)) if prefix else None

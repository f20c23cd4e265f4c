"""Texts → vectors by an encoder: the ways of many texts, a batch of one length at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.encoder.corrections import Scored, correction, score
from onestep_jax.encoder.design import Encoder, Weights
from onestep_jax.encoder.objective import Figures, Program, Way, mean_figures, past_of
from onestep_jax.encoder.reading import check_room, read
from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Array, Model, Params, Past

Confirm: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]

BATCH = 32
_BATCHES = 4  # whose texts go on together


def ways_of(
    program: Program,
    frozen: Params,
    weights: Weights,
    texts: Sequence[np.ndarray],
    steps: int,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
    confirm: Confirm | None = None,
) -> Iterator[tuple[list[int], list[Way]]]:
    """The ways of texts, a group of one length at a time, as (indices, a way for each).

    Each length has programs of its own, since an encoder reads no padding; so the last batch is filled up. Callers pin
    JAX's switches, since a generator runs after the function that made it has returned.

    Args:
      program, frozen, weights: the decoder and the encoder.
      texts: token ids.
      steps: corrections.
      batch: texts at a time.
      progress: called with the numbers of texts done and in all.
      confirm: (tokens (R, T), vectors (R, L, D)) of texts that are exact here → the ids that another program makes of
        them, which stand in the ways. A text that is exact there too takes no more corrections, as a fit ends where the
        decode program confirms it; one that is not goes on. None: every text takes all.
    """
    lengths, past, done = [len(ids) for ids in texts], _past(program, frozen), 0

    def arrived(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None and count:
            progress(done, len(texts))

    for length in sorted(set(lengths)):
        rows = [i for i, other in enumerate(lengths) if other == length]
        for first in range(0, len(rows), _BATCHES * batch):
            chosen = rows[first : first + _BATCHES * batch]
            tokens_NT = np.stack([texts[i] for i in chosen])
            yield chosen, _group_ways(program, frozen, weights, past, tokens_NT, steps, batch, arrived, confirm)


def _group_ways(
    program: Program,
    frozen: Params,
    weights: Weights,
    past: Past | None,
    tokens_NT: np.ndarray,
    steps: int,
    batch: int,
    arrived: Callable[[int], None],
    confirm: Confirm | None,
) -> list[Way]:
    """The ways of texts of one length: all that are still going take a correction, batch by batch, then the next one.

    `arrived` is told how many texts have ended. A batch that is not full repeats its rows.
    """
    texts, going = len(tokens_NT), np.arange(len(tokens_NT))
    taken_N = np.full(texts, steps)
    nats_KN = np.zeros((steps + 1, texts), np.float32)
    predicted_KNT = np.zeros((steps + 1, *tokens_NT.shape), np.int32)
    z_KNLD = np.zeros((steps + 1, texts, *weights["constant"].shape), np.float32)
    before_NS = np.zeros((texts, weights["constant"].size), np.float32)
    for rows in _batches(going, batch):
        z_KNLD[0, rows] = _read(program, frozen, weights, tokens_NT[rows])
    for k in range(steps + 1):
        for rows in _batches(going, batch):
            z_BLD, tokens_BT = z_KNLD[k, rows], tokens_NT[rows]
            if k < steps:
                before_BS = before_NS[rows]
                after, scored = _correction(program, frozen, past, weights, np.int32(k), z_BLD, before_BS, tokens_BT)
                z_KNLD[k + 1, rows], before_NS[rows] = after
            else:
                scored = _scored(program, frozen, past, z_BLD, tokens_BT)
            nats_KN[k, rows], predicted_KNT[k, rows] = scored.nats, scored.predicted_T
        ending = np.zeros(len(going), bool)
        if confirm is not None:
            seeming = going[(predicted_KNT[k, going] == tokens_NT[going]).all(axis=1)]
            if len(seeming):
                predicted_KNT[k, seeming] = confirm(tokens_NT[seeming], z_KNLD[k, seeming])
            ending = (predicted_KNT[k, going] == tokens_NT[going]).all(axis=1)
        ending |= k == steps
        taken_N[going[ending]] = k
        arrived(int(ending.sum()))
        going = going[~ending]
    ends = taken_N + 1
    return [Way(z_KNLD[:end, i], nats_KN[:end, i], predicted_KNT[:end, i]) for i, end in enumerate(ends)]


def _batches(rows: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Rows in batches of one size."""
    for first in range(0, len(rows), batch):
        yield np.resize(rows[first : first + batch], batch)


@functools.partial(jax.jit, static_argnums=0)
def _past(program: Program, frozen: Params) -> Past | None:
    return past_of(program, frozen)


@functools.partial(jax.jit, static_argnums=0)
def _read(program: Program, frozen: Params, weights: Weights, tokens_BT: Array) -> Array:
    network, design = program.network, program.design
    return jax.vmap(lambda tokens_T: read(network, design, frozen, weights, tokens_T))(tokens_BT)


@functools.partial(jax.jit, static_argnums=0)
def _scored(program: Program, frozen: Params, past: Past | None, z_BLD: Array, tokens_BT: Array) -> Scored:
    network, design = program.network, program.design
    return jax.vmap(lambda z_LD, tokens_T: score(network, design, frozen, past, z_LD, tokens_T))(z_BLD, tokens_BT)


@functools.partial(jax.jit, static_argnums=0)
def _correction(
    program: Program,
    frozen: Params,
    past: Past | None,
    weights: Weights,
    k: Array,
    z_BLD: Array,
    before_BS: Array,
    tokens_BT: Array,
) -> tuple[tuple[Array, Array], Scored]:
    """Correction k of a batch: vectors and gradients after it, and what the decoder made of the vectors before."""
    network, design = program.network, program.design
    own = jax.tree.map(lambda leaf: leaf[k], weights["steps"])

    def one(z_LD: Array, before_S: Array, tokens_T: Array) -> tuple[tuple[Array, Array], Scored]:
        take = correction(network, design, frozen, weights, past, tokens_T)
        after, (_, scored) = take((z_LD, before_S), own)
        return after, scored

    return jax.vmap(one)(z_BLD, before_BS, tokens_BT)


def all_ways(program: Program, frozen: Params, weights: Weights, tokens_BT: np.ndarray, steps: int) -> Way:
    """The ways of texts of one length, with a leading axis B."""
    found = [way for _, ways in ways_of(program, frozen, weights, list(tokens_BT), steps) for way in ways]
    return Way(*(np.stack(leaves) for leaves in zip(*found, strict=True)))


def figures_of(program: Program, frozen: Params, weights: Weights, tokens_BT: np.ndarray, steps: int) -> Figures:
    """Mean figures of texts of one length, after 0 to `steps` corrections."""
    return mean_figures(all_ways(program, frozen, weights, tokens_BT, steps), tokens_BT)


def check_steps(encoder: Encoder, refine: int | None) -> int:
    """The number of corrections that is asked for, by default all that an encoder has.

    Raises:
      UserError: for more than it has.
    """
    has = encoder.design.corrections
    if refine is None:
        return has
    if isinstance(refine, bool) or not isinstance(refine, int) or not 0 <= refine <= has:
        told = f"this encoder has {has} corrections; give 0 to {has}, and let `onestep fit --start` do what is left"
        raise UserError(f"refine = {refine!r}: {told}")
    return refine


@pinned
def evaluate(
    model: Model, encoder: Encoder, texts: Sequence[np.ndarray], refine: int | None = None
) -> list[dict[str, Any]]:
    """Figures of an encoder on texts of one length, a row for each number of corrections.

    Returns:
      Rows with "length", "corrections", "nats" (per token), "accuracy", "exact" (share of texts) and "horizon" (mean
      number of tokens before the first wrong one).

    Raises:
      UserError: for more corrections than it has, or texts beyond the context of the model.
    """
    steps = check_steps(encoder, refine)
    program, tokens_BT = Program(model.network, encoder.design), np.stack(list(texts))
    check_room(model.config, encoder.design, tokens_BT.shape[1])
    ways = all_ways(program, model.params, encoder.weights, tokens_BT, steps)
    figures, hits_BKT = mean_figures(ways, tokens_BT), ways.predicted_KT == tokens_BT[:, None]
    horizon_K = np.cumprod(hits_BKT, axis=-1).sum(axis=-1).mean(axis=0)
    return [
        {
            "length": tokens_BT.shape[1],
            "corrections": k,
            "nats": float(figures.nats_K[k]),
            "accuracy": float(figures.accuracy_K[k]),
            "exact": float(figures.exact_K[k]),
            "horizon": float(horizon_K[k]),
        }
        for k in range(steps + 1)
    ]

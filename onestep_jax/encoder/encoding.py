"""Texts → vectors by an encoder: the ways of many texts, a batch of one length at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.encoder.design import Encoder, Weights
from onestep_jax.encoder.objective import Figures, Program, Way, encode_text, mean_figures, past_of
from onestep_jax.encoder.reading import check_room
from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Array, Model, Params

BATCH = 32


def ways_of(
    program: Program,
    frozen: Params,
    weights: Weights,
    texts: Sequence[np.ndarray],
    steps: int,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[list[int], Way]]:
    """The ways of texts, of those of one length together, each batch as (indices, way with a leading axis).

    Each length is a program of its own, since an encoder reads no padding; so is the last batch of a length filled up.
    Callers pin JAX's switches, since a generator runs after the function that made it has returned.
    """
    lengths, done = [len(ids) for ids in texts], 0
    for length in sorted(set(lengths)):
        rows = [i for i, other in enumerate(lengths) if other == length]
        for first in range(0, len(rows), batch):
            chosen = rows[first : first + batch]
            filled = chosen + chosen[:1] * (batch - len(chosen))
            tokens_BT = np.stack([texts[i] for i in filled])
            ways = _ways(program, frozen, weights, tokens_BT, steps)
            done += len(chosen)
            yield chosen, Way(*(np.asarray(leaf)[: len(chosen)] for leaf in ways))
            if progress is not None:
                progress(done, len(texts))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _ways(program: Program, frozen: Params, weights: Weights, tokens_BT: Array, steps: int) -> Way:
    past = past_of(program, frozen)
    return jax.vmap(lambda tokens_T: encode_text(program, frozen, weights, past, tokens_T, steps))(tokens_BT)


def all_ways(program: Program, frozen: Params, weights: Weights, tokens_BT: np.ndarray, steps: int) -> Way:
    """The ways of texts of one length, with a leading axis B."""
    found = [ways for _, ways in ways_of(program, frozen, weights, list(tokens_BT), steps)]
    return Way(*(np.concatenate(leaves) for leaves in zip(*found, strict=True)))


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

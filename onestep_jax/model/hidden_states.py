"""What a text leaves in the model: the mean of its last hidden states."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.model.decoder import Array, Model, Network, Params
from onestep_jax.tokens import batches

BATCH = 16


@pinned
def mean_hidden_states(model: Model, tokens: Sequence[np.ndarray]) -> np.ndarray:
    """The mean, over the tokens of each text, of what enters the head.

    Args:
      model: the model.
      tokens: token ids of each text; nothing stands before them.

    Returns:
      (texts, D) float64.
    """
    found: dict[int, np.ndarray] = {}
    for batch in batches([len(ids) for ids in tokens], BATCH, boundary=model.config.boundary):
        means_BD = _means(model.network, model.params, batch.pad(tokens), batch.lengths)
        found |= zip(batch.texts, np.asarray(means_BD, np.float64), strict=False)  # without the repeats
    return np.stack([found[i] for i in range(len(tokens))])


@functools.partial(jax.jit, static_argnums=0)
def _means(network: Network, params: Params, ids_BT: Any, lengths_B: Any) -> Array:
    def one(ids_T: Array, length: Array) -> Array:
        h_TD = network.hidden(params, network.embed(params, ids_T)).astype(jnp.float32)
        real_T1 = (jnp.arange(len(ids_T)) < length)[:, None]
        return jnp.sum(jnp.where(real_T1, h_TD, 0.0), axis=0) / length

    return jax.vmap(one)(ids_BT, lengths_B)

"""The attention sink: how large the hidden states of each position are, and how much attention the first one draws.

In many language models most heads attend to the first position wherever they stand, whatever token it is, and its
hidden states are many times larger than all others (Xiao et al., arXiv:2309.17453; Sun et al., arXiv:2402.17762).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import MOST_TEXTS, UserError, check_kind, check_list
from onestep_jax.model.decoder import Array, Model, Network, Params
from onestep_jax.tokens import batches, check_tokens

BATCH = 8
EXCESS = 5.0  # from which a first position counts as a sink: 1.2 was measured without one, 175 with one
_TEXTS, _POSITIONS = 4, 16  # random tokens that the measurement runs over


class Sinks(NamedTuple):
    """Means over texts; positions are those of the model's input, so the tokens of a prefix come first.

    Attributes:
      norms_LT: (L + 1, T) length of the hidden states, see `HiddenStates`: what enters the first block, the output of
        each block but the last, the final norm's output.
      drawn_LT: (L, T) weight of each position on position 0, mean over the heads; NaN for position 0 itself.
    """

    norms_LT: np.ndarray
    drawn_LT: np.ndarray

    @property
    def excess(self) -> float:
        """Length of the hidden states of position 0 over the median of all others, at the layer where it is most."""
        return float(np.max(self.norms_LT[:, 0] / np.median(self.norms_LT[:, 1:], axis=1)))

    @property
    def share(self) -> float:
        """Weight on position 0, mean over layers, heads and all later positions."""
        return float(np.nanmean(self.drawn_LT))


@pinned
def has_sink(model: Model) -> bool:
    """Whether the first position is a sink whatever stands there: measured on random tokens, without a BOS.

    A model that always saw a BOS in training may have bound its sink to that token. Then other tokens make none.
    """
    return _excess_of_random_tokens(model) > EXCESS


def _excess_of_random_tokens(model: Model) -> float:
    if model.fingerprint in _measured_models:
        return _measured_models[model.fingerprint]
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=(_TEXTS, _POSITIONS))
    excess = sinks(model, tokens[:, : model.config.context].tolist()).excess
    if model.fingerprint:  # one made by hand has none, and is measured each time
        _measured_models[model.fingerprint] = excess
    return excess


_measured_models: dict[str, float] = {}  # fingerprint → excess, so that a model is measured once in a process


@pinned
def sinks(model: Model, tokens: Sequence[Any], *, prefix: Sequence[int] = (), batch: int = BATCH) -> Sinks:
    """Run the model over ordinary texts and measure its first position.

    Args:
      model: the frozen model.
      tokens: token ids of each text, of one length.
      prefix: token ids that stand before each.
      batch: texts in a forward pass; the (L, H, T, T) float32 weights of each are in memory.

    Raises:
      UserError: for texts of several lengths, or of less than two positions with the prefix; for a batch that is no
        number of texts, or tokens that are no ids of the model's.
    """
    check_kind("what load_model returns", Model, model=model)
    MOST_TEXTS.check("batch", batch)
    before = check_list("a list of token ids", "prefix", prefix)
    listed = enumerate(check_list("lists of token ids", "tokens", tokens))
    whole = [[*before, *check_list("a list of token ids", f"text {i}", ids)] for i, ids in listed]
    texts = check_tokens(whole, model.config.vocab_size, model.config.context)
    lengths = sorted({len(ids) for ids in texts})
    if len(lengths) != 1 or lengths[0] < 2:
        raise UserError(f"texts of {lengths} positions: expected one length, of at least 2")
    norms, drawn = [], []
    for chosen in batches([lengths[0]] * len(texts), batch):
        found = jax.device_get(_measured(model.network, model.params, chosen.pad(texts)))
        norms.append(found[0][: chosen.used])
        drawn.append(found[1][: chosen.used])
    norms_LT, drawn_LT = np.concatenate(norms).mean(0), np.concatenate(drawn).mean(0)
    drawn_LT[:, 0] = np.nan
    return Sinks(norms_LT=norms_LT, drawn_LT=drawn_LT)


@partial(jax.jit, static_argnums=0)
def _measured(network: Network, params: Params, tokens_GT: Array) -> tuple[Array, Array]:
    """Lengths (G, L + 1, T) and weights on position 0 (G, L, T) of each text."""

    def one(tokens_T: Array) -> tuple[Array, Array]:
        states = network.states(params, network.embed(params, tokens_T))
        norms_LT = jnp.linalg.norm(states.hidden_LTD.astype(jnp.float32), axis=-1)
        return norms_LT, states.attention_LHTS[..., 0].mean(1)

    return jax.vmap(one)(tokens_GT)

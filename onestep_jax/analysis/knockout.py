"""Attention knockout: which layers have to let the m positions see `e`, and which to let them see one another?

In the chosen layers the scores of the m positions on what is hidden from them are −∞ before the softmax, so the weight
goes to what they still see (Geva et al., arXiv:2304.14767). The vectors stay as fitted, and the text is decoded again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.analysis.attention import check_belongs
from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import MOST_TEXTS, UserError, check_known
from onestep_jax.model.decoder import Model, Network, Params, Past
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.prefixes import Prefixes, pasts_of, prefix_rows, stack_prefixes
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme, axes, bare
from onestep_jax.store.results import Results
from onestep_jax.tokens import batches

BATCH = 16
HIDDEN = ("e", "m")
WAYS = ("one", "window", "up to", "from")


class Knockout(NamedTuple):
    """What one forward pass gives after an attention was knocked out, for each set of layers (S).

    Attributes:
      accuracy_SG: (sets, texts) share of tokens equal to the target (Eq. 2).
      nats_SG: (sets, texts) mean nats per token of the text (Eq. 1 over N).
    """

    accuracy_SG: np.ndarray
    nats_SG: np.ndarray


def layer_sets(layers: int, way: str, width: int = 1) -> list[range]:
    """The sets of layers of a sweep, in order.

    Args:
      layers: of the model (L).
      way: "one" layer at a time; "window", `width` layers in a row from each on that has so many; "up to" each layer,
        from the first; "from" each layer, to the last.
      width: of a window, at most L.

    Raises:
      UserError: for an unknown way, or a window of no layer or of more than the model has.
    """
    check_known("way of a knockout", [way], WAYS)
    if way == "window" and not 1 <= width <= layers:
        raise UserError(f"a window of {width} layers: expected 1 to {layers}, which the model has")
    if way in ("one", "window"):
        width = 1 if way == "one" else width
        return [range(first, first + width) for first in range(layers - width + 1)]
    return [range(layer + 1) if way == "up to" else range(layer, layers) for layer in range(layers)]


@pinned
def knockout(
    model: Model, results: Results, sets: Sequence[Iterable[int]], *, hidden: str = "e", batch: int = BATCH
) -> Knockout:
    """Hide `e`, or the m positions before, from every m position in some layers, and decode.

    Args:
      model: the model that the vectors were fitted on.
      results: of an arrangement with one `e` in front ("one-step" or "unguided-e").
      sets: layers, counted from 0, in which it is hidden, for each of the results; an empty set hides nothing.
      hidden: "e", or "m": each m position still sees a frozen prefix, `e` and itself. The position of `e` sees in any
        case what it saw.
      batch: texts in a forward pass.

    Raises:
      UserError: for another model or arrangement, an unknown word for what is hidden, or a layer that the model does
        not have.
    """
    check_known("what is hidden", [hidden], HIDDEN)
    MOST_TEXTS.check("batch", batch)
    scheme = check_belongs(model, results)
    chosen_SL = _flags([list(one) for one in sets], model.config.layers)
    texts, targets = list(results), [text.tokens for text in results]
    counts, rows = [len(ids) for ids in targets], prefix_rows([text.prefix for text in results])
    accuracy_SG, nats_SG = np.zeros((2, len(chosen_SL), len(texts)))
    for group in batches(counts, batch, boundary=model.config.boundary, extra=scheme.extra + rows):
        leaves = {name: np.stack([texts[i].vectors[name] for i in group.rows]) for name in axes(scheme)}
        before, tokens_BT = stack_prefixes([texts[i].prefix for i in group.rows], rows), group.pad(targets)
        for place, chosen_L in enumerate(chosen_SL):
            arguments = (model.params, leaves, tokens_BT, group.lengths, before, chosen_L)
            nats_B, predicted_BT = jax.device_get(_scores(model.network, bare(scheme), hidden, *arguments))
            for row, i in enumerate(group.texts):
                nats_SG[place, i] = nats_B[row]
                accuracy_SG[place, i] = np.mean(predicted_BT[row, : counts[i]] == targets[i])
    return Knockout(accuracy_SG, nats_SG)


def masks(chosen_L: Array, positions: int, past: Past | None, hidden: str) -> dict[str, Any]:
    """What `Network.hidden` takes to hide `e` or the earlier m positions from the m positions.

    Args:
      chosen_L: (L,) bool, the layers in which it is hidden.
      positions: inputs behind the prefix, of which the first is `e` (T).
      past: keys and values of the prefix, if there is one.
      hidden: "e" or "m".
    """
    # The inputs take the rows from the prefix's end on, which is before the end of a padded prefix.
    rows = 0 if past is None else past.rows
    e_at = rows if past is None or past.length is None else past.length
    place_T, row_S = jnp.arange(positions)[:, None], jnp.arange(rows + positions)[None]
    of_m_TS = (row_S == e_at) if hidden == "e" else (row_S > e_at) & (row_S < e_at + place_T)
    hidden_TS = (place_T > 0) & of_m_TS
    return {f"block_{i}": {"attention": {"seen": ~(hidden_TS & chosen_L[i])}} for i in range(len(chosen_L))}


def _flags(sets: list[list[int]], layers: int) -> np.ndarray:
    """(sets, L) bool, whether a layer is in a set.

    Raises:
      UserError: for a layer that the model does not have.
    """
    chosen_SL = np.zeros((len(sets), layers), bool)
    for chosen_L, one in zip(chosen_SL, sets, strict=True):
        for layer in one:
            if not 0 <= layer < layers:
                raise UserError(f"layer {layer}: the model has {layers} layers, 0 to {layers - 1}")
            chosen_L[layer] = True
    return chosen_SL


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scores(
    network: Network,
    scheme: Scheme,
    hidden: str,
    params: Params,
    leaves: Leaves,
    tokens_BT: Array,
    lengths_B: Array,
    prefixes: Prefixes | None,
    chosen_L: Array,
) -> tuple[Array, Array]:
    """Nats per token (B,) and argmax ids (B, T) of texts; one program for all sets of layers."""

    def one(leaves: Leaves, tokens_T: Array, length: Array, past: Past | None) -> tuple[Array, Array]:
        seen = masks(chosen_L, len(tokens_T) + scheme.extra, past, hidden)
        score = score_text(network, scheme, params, leaves, tokens_T, length, past=past, masks=seen)
        return score.nats, score.predicted_T

    return jax.vmap(one)(leaves, tokens_BT, lengths_B, pasts_of(network, params, prefixes))

"""How much each layer and head attends to `e`, and how much of a text is left when `e` or `m` is replaced.

All m positions have the same input vector. They differ only by their position and by what they attend to.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import UserError, check_known
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Model, Params
from onestep_jax.prototokens.reconstruction import behind_prefix, check_model, decode
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme, from_description
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import batches, plain_id

BATCH = 4
ABLATIONS = ("e=m", "e=0", "e=mean", "e=other", "m=e", "m=0", "m=mean", "m=other")


class Shares(NamedTuple):
    """Attention weights of the m positions of each text, by what they go to; the four sum to one.

    Each is the mean over the query positions 1 … P − 1, where P is the number of input positions of the text. A text of
    one position has no m, and so NaN.

    Attributes:
      e: (texts, L, H) weight on `e`.
      itself: (texts, L, H) weight of a position on itself.
      others: (texts, L, H) weight on the m positions before it.
      prefix: (texts, L, H) weight on the frozen prefix before `e`; zero for a text without one. A prefix of BOS is an
        attention sink in many models.
    """

    e: np.ndarray
    itself: np.ndarray
    others: np.ndarray
    prefix: np.ndarray


class Attention(NamedTuple):
    """Attention weights in the one forward pass that gives the texts.

    Attributes:
      shares: of each text.
      uniform: the same for attention spread evenly over all visible positions, (texts, L, 1) each. In a layer without
        a window its weight on `e` at position t is 1/(t + 1).
      e_LHT: weight on `e` by query position, mean over the texts that reach it; NaN at position 0, which is `e`.
      uniform_LT: the same for evenly spread attention.
      texts_T: number of texts that reach each position.
    """

    shares: Shares
    uniform: Shares
    e_LHT: np.ndarray
    uniform_LT: np.ndarray
    texts_T: np.ndarray


class Ablation(NamedTuple):
    """Accuracy of one forward pass after a vector was replaced.

    Attributes:
      own: (texts,) accuracy on the text whose other vector was kept.
      donor: (texts,) accuracy on the text that the new vector was taken from, over the positions that both have; NaN
        where the new vector is not that of one other text.
    """

    own: np.ndarray
    donor: np.ndarray


def attention(model: Model, results: Results, *, batch: int = BATCH) -> Attention:
    """Measure the weight of each layer and head on `e`, the position itself, the m positions before, and the prefix.

    Args:
      model: the model that the vectors were fitted on.
      results: of an arrangement with one `e` in front ("one-step" or "unguided-e").
      batch: texts in a forward pass; the (L, H, T, T) float32 weights of each are in memory.

    Raises:
      UserError: for another model or arrangement, or texts that all have one position only.
    """
    scheme = check_belongs(model, results)
    texts = list(results)
    counts = [len(text.prefix) + len(text.tokens) + scheme.extra for text in texts]
    if max(len(text.tokens) + scheme.extra for text in texts) < 2:
        raise UserError("attention: every text has one position, which is e itself; expected texts of 2 tokens or more")
    rows: dict[int, tuple[np.ndarray, ...]] = {}
    for chosen in batches(counts, batch, boundary=model.config.boundary, full=True):
        x_GTD = np.stack([_input_vectors(model, scheme, texts[i], chosen.positions) for i in chosen.rows])
        places_G = np.array([len(texts[i].prefix) for i in chosen.rows])
        weights = jax.device_get(_weights(model.config, model.params, x_GTD.astype(model.dtype), places_G))
        rows |= {i: tuple(w_GLHT[place] for w_GLHT in weights) for place, i in enumerate(chosen.texts)}
    first = [len(text.prefix) for text in texts]
    measured = [tuple(w_LHT[:, :, first[i] : count] for w_LHT in rows[i]) for i, count in enumerate(counts)]
    even = [_uniform(model.config, first[i], count) for i, count in enumerate(counts)]
    curve_LHT, texts_T = _curve([e_LHT for e_LHT, *_ in measured])
    uniform_L1T, _ = _curve([e_L1T for e_L1T, *_ in even])
    return Attention(
        shares=_shares(measured),
        uniform=_shares(even),
        e_LHT=curve_LHT,
        uniform_LT=uniform_L1T[:, 0],
        texts_T=texts_T,
    )


def ablate(model: Model, results: Results, *, kinds: tuple[str, ...] = ABLATIONS) -> dict[str, Ablation]:
    """Replace `e` or `m` of each fitted text, decode, and compare: which of the two carries the text?

    Args:
      model: the model that the vectors were fitted on.
      results: with the leaves `e` and `m`.
      kinds: "e=m" (e is replaced by the text's own m), "e=0", "e=mean" (by the mean over all texts), "e=other" (by the
        e of the next text with other tokens); and the same for m.

    Returns:
      kind → accuracies, and under "kept" those of the vectors as fitted.

    Raises:
      UserError: for another model or arrangement, an unknown kind, or "other" without a second text.
    """
    check_known("ablation", kinds, ABLATIONS)
    check_belongs(model, results)
    texts = list(results)
    mean = {name: vectors.mean(0) for name, vectors in results.vectors.items()}
    others = next_texts(texts) if any(kind.endswith("other") for kind in kinds) else texts

    def replaced(kind: str, text: TextResult, other: TextResult) -> TextResult:
        leaf, by = kind.split("=")
        sources = {"0": np.zeros_like(text.vectors[leaf]), "mean": mean[leaf], "other": other.vectors[leaf]}
        vector = text.vectors[by] if by in text.vectors else sources[by]
        return dataclasses.replace(text, vectors={**text.vectors, leaf: vector})

    changed = [replaced(kind, text, other) for kind in kinds for text, other in zip(texts, others, strict=True)]
    # One call for all kinds, so that the program is compiled once.
    out = decode(model, dataclasses.replace(results, texts=(*texts, *changed)))
    own = np.array([one.accuracy for one in out]).reshape(-1, len(texts))
    nobody = np.full(len(texts), np.nan)
    found = {"kept": Ablation(own=own[0], donor=nobody)}
    for place, kind in enumerate(kinds, 1):
        part = out[place * len(texts) : (place + 1) * len(texts)]
        pairs = zip(part, others, strict=True)
        donor = np.array([_agreement(one.tokens, other.tokens) for one, other in pairs])
        found[kind] = Ablation(own=own[place], donor=donor if kind.endswith("other") else nobody)
    return found


def next_texts(texts: list[TextResult]) -> list[TextResult]:
    """For each text the next one with other tokens; after the last text comes the first.

    Raises:
      UserError: if all texts have the same tokens.
    """
    names = [plain_id(text.text_id) for text in texts]
    if len(set(names)) < 2:
        raise UserError("only one text (or copies of one): expected at least two different ones to compare")
    turns = (range(i + 1, i + len(texts)) for i in range(len(texts)))
    chosen = [next(j % len(texts) for j in turn if names[j % len(texts)] != names[i]) for i, turn in enumerate(turns)]
    return [texts[j] for j in chosen]


def check_belongs(model: Model, results: Results) -> Scheme:
    """The arrangement of results, which must be of this model and have one `e` in front of copies of `m`.

    Raises:
      UserError: for another model or arrangement, or no results.
    """
    check_model(model, results)
    arrangement = results.scheme.get("arrangement")
    if arrangement not in ("one-step", "unguided-e"):
        raise UserError(f"arrangement {arrangement!r}: expected 'one-step' or 'unguided-e', one e before copies of m")
    if not len(results):
        raise UserError("no fitted texts: expected at least one")
    return from_description(results.scheme)


def _input_vectors(model: Model, scheme: Scheme, text: TextResult, positions: int) -> np.ndarray:
    """Input vectors of the one forward pass of a text behind its prefix, (positions, D), padded behind."""
    leaves: Leaves = {name: jnp.asarray(vector) for name, vector in text.vectors.items()}
    T, width = positions - len(text.prefix) - scheme.extra, len(text.vectors["e"])
    x_TD = np.asarray(scheme.inputs(leaves, jnp.zeros((T, width)), jnp.int32(len(text.tokens))))
    return behind_prefix(model, text, x_TD)


@partial(jax.jit, static_argnums=0)
def _weights(config: ModelConfig, params: Params, x_GTD: Array, places_G: Array) -> tuple[Array, Array, Array]:
    """Weight of each position on that of `e`, `places_G`, on itself, and on those before `e`, (G, L, H, T) each."""

    def one(x_TD: Array, place: Array) -> tuple[Array, Array, Array]:
        weights_LHTS = Model(config, {}).states(params, x_TD).attention_LHTS
        prefix_S = jnp.arange(weights_LHTS.shape[-1]) < place
        before_LHT = jnp.where(prefix_S, weights_LHTS, 0).sum(-1)
        return weights_LHTS[..., place], jnp.diagonal(weights_LHTS, axis1=-2, axis2=-1), before_LHT

    return jax.vmap(one)(x_GTD, places_G)


def _uniform(config: ModelConfig, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_weights` from `e` at position `first` on, for attention spread evenly over what a layer sees: (L, 1, P)."""
    at_T = np.arange(first, count)
    windows = [config.layer(i).window for i in range(config.layers)]
    seen_LT = np.stack([np.minimum(at_T + 1, count if window is None else window) for window in windows])
    before_LT = np.maximum(first - (at_T[None] + 1 - seen_LT), 0)
    e_LT = (at_T[None] - first < seen_LT) / seen_LT
    return e_LT[:, None], (1 / seen_LT)[:, None], (before_LT / seen_LT)[:, None]


def _shares(measured: list[Any]) -> Shares:
    """Means over the m positions of each text's (L, H, P) weights on e, on itself and on the prefix."""

    def mean(weights_LHT: np.ndarray) -> np.ndarray:
        kept_LHT = weights_LHT[:, :, 1:].astype(float)
        return kept_LHT.mean(-1) if kept_LHT.shape[-1] else np.full(kept_LHT.shape[:-1], np.nan)

    columns = zip(*measured, strict=True)
    e_GLH, itself_GLH, prefix_GLH = (np.stack([mean(weights) for weights in column]) for column in columns)
    others_GLH = 1 - e_GLH - itself_GLH - prefix_GLH
    return Shares(e=e_GLH, itself=itself_GLH, others=others_GLH, prefix=prefix_GLH)


def _curve(weights: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over texts at each position of (L, H, P) weights, and the number of texts there."""
    longest = max(w.shape[-1] for w in weights)
    total_LHT, texts_T = np.zeros((*weights[0].shape[:2], longest)), np.zeros(longest, int)
    for w in weights:
        total_LHT[..., : w.shape[-1]] += w
        texts_T[: w.shape[-1]] += 1
    curve_LHT = total_LHT / texts_T[None, None]
    curve_LHT[..., 0] = np.nan
    return curve_LHT, texts_T


def _agreement(tokens: np.ndarray, others: np.ndarray) -> float:
    """Share of equal tokens at the positions that both have."""
    common = min(len(tokens), len(others))
    return float(np.mean(tokens[:common] == others[:common]))

"""How stable `e` and `m` are over seeds: which of them depends on the text, and can they be exchanged?"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from onestep_jax.analysis.metrics import THRESHOLD
from onestep_jax.analysis.samples import auc
from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.reconstruction import decode
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import plain_id


class Stability(NamedTuple):
    """One leaf over several solutions of several texts.

    Attributes:
      within: (pairs,) cosine distances between solutions of one text.
      between: (pairs,) cosine distances between solutions of different texts.
      auc: probability that a pair of different texts is farther apart than a pair of one text; 0.5 if the leaf does not
        depend on the text.
      nearest: share of solutions whose nearest other solution has the same text.
      nearest_chance: its expectation for vectors that do not depend on the text.
      norms: (solutions,) Euclidean norms.
      share: share of the variance (summed over components) that lies between texts.
      share_chance: its expectation for vectors that do not depend on the text.
      icc: intraclass correlation ICC(1): 1 if the solutions of a text are equal, about 0 if they differ as much as
        those of different texts.
      texts, solutions: how many.
    """

    within: np.ndarray
    between: np.ndarray
    auc: float
    nearest: float
    nearest_chance: float
    norms: np.ndarray
    share: float
    share_chance: float
    icc: float
    texts: int
    solutions: int


class Exchange(NamedTuple):
    """Accuracy of the `e` of one solution with the `m` of another one of the same text; every field is (pairs,).

    Attributes:
      e, m: indices, among the results, of the solutions that the vectors come from; equal for unchanged solutions.
      accuracy: share of exact tokens.
    """

    e: np.ndarray
    m: np.ndarray
    accuracy: np.ndarray

    @property
    def kept(self) -> float:
        """Mean accuracy of the unchanged solutions."""
        return float(self.accuracy[self.e == self.m].mean())

    @property
    def exchanged(self) -> float:
        """Mean accuracy of `e` and `m` of different seeds."""
        return float(self.accuracy[self.e != self.m].mean())


def stability(results: Results, *, least: float = THRESHOLD) -> dict[str, Stability]:
    """Compare solutions of the same texts with solutions of different texts, leaf by leaf (the question of Figure 6).

    Args:
      results: of a fit with copies (`fit(…, copies=R)`).
      least: solutions of a lower accuracy are left out.

    Returns:
      leaf → numbers. A leaf of several vectors, (K, D), is treated as one vector of K · D components.

    Raises:
      UserError: unless two texts have two such solutions each.
    """
    groups = solutions_by_text(results, least)
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    chosen = [i for group in groups for i in group]
    leaves = {name: vectors[chosen].reshape(len(chosen), -1) for name, vectors in results.vectors.items()}
    return {name: _stability(x_SD.astype(float), owner) for name, x_SD in leaves.items()}


def exchange(model: Model, results: Results, *, least: float = THRESHOLD) -> Exchange:
    """Combine the `e` of each solution with the `m` of every other solution of the same text, and decode.

    Args:
      model: the model that the vectors were fitted on.
      results: of a fit with copies, with the leaves `e` and `m`.
      least: solutions of a lower accuracy are left out.

    Raises:
      UserError: for another model or other leaves, or unless two texts have two such solutions each.
    """
    if set(results.vectors) != {"e", "m"}:
        raise UserError(f"exchange of e and m: the leaves are {', '.join(results.vectors) or 'none'}; expected e and m")
    pairs = [(a, b) for group in solutions_by_text(results, least) for a in group for b in group]
    mixed = tuple(_mixed(results[a], results[b]) for a, b in pairs)
    accuracy = [one.accuracy for one in decode(model, dataclasses.replace(results, texts=mixed))]
    e, m = np.array(pairs).T
    return Exchange(e, m, np.array(accuracy))


def solutions_by_text(results: Results, least: float) -> list[list[int]]:
    """Indices of the solutions of accuracy `least` or better, for each text that has two of them.

    Raises:
      UserError: if there are fewer than two such texts.
    """
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(results):
        if text.accuracy >= least:
            groups.setdefault(plain_id(text.text_id), []).append(i)
    repeated = [group for group in groups.values() if len(group) > 1]
    if len(repeated) < 2:
        reason = f"{len(repeated)} texts have two or more solutions of accuracy {least} or better; expected at least 2"
        raise UserError(f"{reason}; fit with copies=R, or lower `least`")
    return repeated


def _mixed(a: TextResult, b: TextResult) -> TextResult:
    return dataclasses.replace(a, vectors={"e": a.vectors["e"], "m": b.vectors["m"]})


def _stability(x_SD: np.ndarray, owner: np.ndarray) -> Stability:
    """One leaf, from solutions (S, D) and the number of each one's text."""
    norms = np.linalg.norm(x_SD, axis=-1)
    unit_SD = x_SD / np.maximum(norms, np.finfo(float).tiny)[:, None]
    distances_SS = 1 - unit_SD @ unit_SD.T
    same_SS = owner[:, None] == owner[None, :]
    upper = np.triu(np.ones_like(same_SS), k=1)
    within, between = distances_SS[same_SS & upper], distances_SS[~same_SS & upper]
    np.fill_diagonal(distances_SS, np.inf)
    counts = np.bincount(owner)
    share, icc = _variance(x_SD, owner, counts)
    return Stability(
        within=within,
        between=between,
        auc=auc(within, between),
        nearest=float(np.mean(owner[distances_SS.argmin(-1)] == owner)),
        nearest_chance=float(np.mean((counts[owner] - 1) / (len(owner) - 1))),
        norms=norms,
        share=share,
        share_chance=(len(counts) - 1) / (len(owner) - 1),
        icc=icc,
        texts=len(counts),
        solutions=len(owner),
    )


def _variance(x_SD: np.ndarray, owner: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Share of the variance between texts, and ICC(1), by a one-way analysis of variance.

    Sums of squares are added up over the components.
    """
    S, texts = len(owner), len(counts)
    means = np.stack([x_SD[owner == i].mean(0) for i in range(texts)])
    between = float(np.sum(counts[:, None] * (means - x_SD.mean(0)[None]) ** 2))
    within = float(np.sum((x_SD - means[owner]) ** 2))
    # Mean squares; `size` is the number of solutions of a text, corrected for unequal numbers.
    size = (S - np.sum(counts**2) / S) / (texts - 1)
    among, inside = between / (texts - 1), within / (S - texts)
    spread, variance = between + within, among + (size - 1) * inside
    share = between / spread if spread else float("nan")
    return share, (among - inside) / variance if variance else float("nan")

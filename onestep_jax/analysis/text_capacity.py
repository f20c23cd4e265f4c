"""Capacity of one text from fits of its prefixes, and of many texts as in Table 3."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from onestep_jax.analysis.metrics import THRESHOLD, exact_horizon, horizon, prefix_nats
from onestep_jax.errors import UserError
from onestep_jax.store.results import TextResult


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Capacity of one text, as far as the tried lengths tell.

    Attributes:
      tokens: the longest tried length that is reconstructed; 0 if none is.
      c_tokens: exact tokens of that prefix (Eq. 2).
      h_lm: nats of that prefix (Eq. 3).
      exact_tokens: the longest tried length without an error; 0 if there is none.
      exact_h_lm: nats of that prefix.
      horizon: the longest reconstructed prefix of any fit; its length need not be a tried one.
      exact_horizon: the longest prefix of any fit without an error.
      longest_tried: the longest tried length, in tokens; a capacity that reaches it is only a lower bound.
      best: the fit with the longest horizon; among equals the one with the longest exact horizon, then the shortest.
      evaluations: gradient evaluations spent on this text, over all lengths and seeds.
      token_positions: the same, each evaluation times its length, which is proportional to the arithmetic of the matrix
        products.
    """

    tokens: int
    c_tokens: int
    h_lm: float
    exact_tokens: int
    exact_h_lm: float
    horizon: int
    exact_horizon: int
    longest_tried: int
    best: TextResult = dataclasses.field(repr=False)
    evaluations: int
    token_positions: int


def capacity(
    fits: Iterable[TextResult],
    *,
    lengths: Iterable[int] | None = None,
    threshold: float = THRESHOLD,
    nested: bool = False,
) -> Capacity:
    """Read the capacity of one text from fits of its prefixes (Table 3).

    Args:
      fits: results of prefixes of one text, at least one.
      lengths: the tried lengths; by default those of the fits. Other lengths count only with `nested`.
      threshold: accuracy from which a prefix counts as reconstructed.
      nested: let the first tokens of a fit count for every shorter length as well. Causality allows it for arrangements
        that do not depend on the length. Without it a length counts by its own fit only, as in the paper.

    Raises:
      UserError: if there is no fit, or the fits are not of one text.
    """
    fits = sorted(fits, key=lambda fit: len(fit.tokens))
    if not fits:
        raise UserError("capacity of no fits: expected at least one length of the text")
    longest = fits[-1].tokens
    for fit in fits:
        if not np.array_equal(fit.tokens, longest[: len(fit.tokens)]):
            raise UserError(f"capacity: fits {fit.text_id} and {fits[-1].text_id} are not prefixes of one text")
    tried = sorted({len(fit.tokens) for fit in fits} if lengths is None else set(lengths))
    tokens, fit = _longest(fits, tried, threshold, nested)
    exact_tokens, _ = _longest(fits, tried, 1.0, nested)
    reach = [(horizon(fit.predicted, fit.tokens, threshold), exact_horizon(fit.predicted, fit.tokens)) for fit in fits]
    return Capacity(
        tokens=tokens,
        c_tokens=int(np.sum(fit.predicted[:tokens] == fit.tokens[:tokens])),
        h_lm=prefix_nats(fits[-1], tokens),
        exact_tokens=exact_tokens,
        exact_h_lm=prefix_nats(fits[-1], exact_tokens),
        horizon=max(far for far, _ in reach),
        exact_horizon=max(exact for _, exact in reach),
        longest_tried=max(tried),
        best=fits[max(range(len(fits)), key=lambda i: (*reach[i], -i))],
        evaluations=sum(fit.steps for fit in fits),
        token_positions=sum(fit.steps * len(fit.tokens) for fit in fits),
    )


def _longest(
    fits: Sequence[TextResult], tried: Sequence[int], threshold: float, nested: bool
) -> tuple[int, TextResult]:
    """The longest tried length that is reconstructed, and the fit that does it; 0 and the first fit if none is."""
    for length in reversed(tried):
        for fit in fits:
            if len(fit.tokens) == length or (nested and len(fit.tokens) > length):
                hits = fit.predicted[:length] == fit.tokens[:length]
                if hits.mean() >= threshold:
                    return length, fit
    return 0, fits[0]


@dataclasses.dataclass(frozen=True)
class CapacitySummary:
    """A cell of Table 3, and other statistics of the same capacities.

    Table 3 has one number of tokens and the mean ± standard deviation of H_LM; the paper does not say how it combines
    the texts. Here C_tokens is the maximum over the texts, and H_LM is averaged over the texts, each at its own
    capacity. Two observations support this reading. Nearly all printed numbers of tokens are tried lengths, which a
    mean would not be. And Pythia-1.4B on fanfics has 131 tokens, but fewer nats than Pythia-410M with its 128, so its
    131 tokens are not those of a typical text. That 131 itself is not a tried length stays unexplained. Median and mean
    are given too, for other readings.

    Attributes:
      texts: how many.
      c_tokens_max, c_tokens_median, c_tokens_mean: over texts, of `Capacity.c_tokens`.
      h_lm_mean, h_lm_std: nats over texts, of `Capacity.h_lm`; the population's standard deviation.
      exact_tokens_max, exact_tokens_median, exact_tokens_mean: over texts, of `Capacity.exact_tokens`.
      exact_h_lm_mean, exact_h_lm_std: nats over texts, of `Capacity.exact_h_lm`.
      at_longest: texts whose capacity is the longest tried length, so that their true capacity may be larger.
    """

    texts: int
    c_tokens_max: int
    c_tokens_median: float
    c_tokens_mean: float
    h_lm_mean: float
    h_lm_std: float
    exact_tokens_max: int
    exact_tokens_median: float
    exact_tokens_mean: float
    exact_h_lm_mean: float
    exact_h_lm_std: float
    at_longest: int


def summarise_capacities(capacities: Sequence[Capacity]) -> CapacitySummary:
    """Summarise the capacities of many texts as in Table 3; see `CapacitySummary` for the reading.

    Raises:
      UserError: if there are none.
    """
    if not capacities:
        raise UserError("no capacities: expected those of at least one text")
    c_tokens, exact = ([getattr(c, name) for c in capacities] for name in ("c_tokens", "exact_tokens"))
    h_lm, exact_h_lm = ([getattr(c, name) for c in capacities] for name in ("h_lm", "exact_h_lm"))
    return CapacitySummary(
        texts=len(capacities),
        c_tokens_max=max(c_tokens),
        c_tokens_median=float(np.median(c_tokens)),
        c_tokens_mean=float(np.mean(c_tokens)),
        h_lm_mean=float(np.mean(h_lm)),
        h_lm_std=float(np.std(h_lm)),
        exact_tokens_max=max(exact),
        exact_tokens_median=float(np.median(exact)),
        exact_tokens_mean=float(np.mean(exact)),
        exact_h_lm_mean=float(np.mean(exact_h_lm)),
        exact_h_lm_std=float(np.std(exact_h_lm)),
        at_longest=sum(c.tokens == c.longest_tried for c in capacities),
    )

"""Which tokens are wrong, at which positions, and how many steps each took until it was first right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from onestep_jax.analysis.samples import auc, spearman
from onestep_jax.errors import UserError, check_known, check_least
from onestep_jax.store.results import TextResult

KINDS = ("position", "relative", "nats", "occurrences")


class TokenTable(NamedTuple):
    """Tokens of many texts, one row for each; every field is (rows,).

    Attributes:
      text: index of its text among the results given.
      position: in the text, counted from 0.
      relative: position / (N − 1), 0 for the first token and 1 for the last; 0 where N = 1.
      expected, predicted: token ids, the target's and the argmax at the kept vectors.
      nats: −ln P(t_i | t_<i) under the model run autoregressively; NaN where there is none (Eq. 3, first term).
      occurrences: how often the target token occurs in the corpus.
      right: whether predicted equals expected.
      first_hit: gradient evaluation of the best trial at which the token was first right, counted from 0; −1 if it
        never was, or if the trial was not recorded.
    """

    text: np.ndarray
    position: np.ndarray
    relative: np.ndarray
    expected: np.ndarray
    predicted: np.ndarray
    nats: np.ndarray
    occurrences: np.ndarray
    right: np.ndarray
    first_hit: np.ndarray

    def where(self, rows: np.ndarray) -> TokenTable:
        """Some of the rows, by a mask or by indices."""
        return TokenTable(**{name: column[rows] for name, column in self._asdict().items()})


class Bins(NamedTuple):
    """Tokens grouped by the value of one column; every field is (bins,), empty bins are left out.

    Attributes:
      low, high: the smallest and the largest value in the bin.
      tokens: how many tokens.
      wrong: how many of them are wrong.
      rate: wrong / tokens.
      first_hit: median gradient evaluation at which its tokens were first right; infinite if half of them never were.
      never: share of its tokens that were never right.
    """

    low: np.ndarray
    high: np.ndarray
    tokens: np.ndarray
    wrong: np.ndarray
    rate: np.ndarray
    first_hit: np.ndarray
    never: np.ndarray


class Association(NamedTuple):
    """Association of a column with wrong tokens, and with the steps until a token was first right.

    Attributes:
      auc: probability that a wrong token has a higher value than a right one, ties counting half; 0.5 for no
        association, NaN unless there are both wrong and right tokens.
      auc_within: the same among the tokens of one text, mean over the texts that have both. Differences between texts
        have no influence on it.
      texts: number of texts in that mean.
      steps: Spearman's rank correlation with the first hit, where tokens that were never right rank last; NaN where
        either is constant.
      tokens: rows that have a value.
    """

    auc: float
    auc_within: float
    texts: int
    steps: float
    tokens: int


def token_table(texts: Iterable[TextResult], *, corpus: Iterable[Sequence[int]] | None = None) -> TokenTable:
    """Make a table of all tokens of fitted texts.

    Args:
      texts: `Results` of one fit, or some of its texts.
      corpus: token lists in which occurrences are counted; the targets themselves by default.

    Raises:
      UserError: if there is no text.
    """
    texts = list(texts)
    if not texts:
        raise UserError("no fitted texts: expected at least one")
    expected = np.concatenate([text.tokens for text in texts])
    counted = expected if corpus is None else np.concatenate([np.asarray(ids, np.int64) for ids in corpus])
    counts = np.bincount(counted, minlength=int(expected.max()) + 1)
    lengths = [len(text.tokens) for text in texts]
    predicted = np.concatenate([text.predicted for text in texts])
    return TokenTable(
        text=np.repeat(np.arange(len(texts)), lengths),
        position=np.concatenate([np.arange(length) for length in lengths]),
        relative=np.concatenate([np.arange(length) / max(1, length - 1) for length in lengths]),
        expected=expected,
        predicted=predicted,
        nats=np.concatenate([text.nats for text in texts]).astype(float),
        occurrences=counts[expected],
        right=predicted == expected,
        first_hit=np.concatenate([_first_hit(text) for text in texts]),
    )


def _first_hit(text: TextResult) -> np.ndarray:
    """(N,) first hits of the best trial."""
    trial = text.best_trial
    return np.full(len(text.tokens), -1, np.int32) if trial is None else trial.first_hit


def failing(table: TokenTable) -> TokenTable:
    """The tokens of the texts with at least one wrong token, so that right and wrong ones can be compared."""
    return table.where(np.isin(table.text, table.text[~table.right]))


def binned(table: TokenTable, by: str, *, bins: int = 10) -> Bins:
    """Measure error rate and steps until first right in bins of position, relative position, nats or occurrences.

    Args:
      table: see `token_table`.
      by: a column of `KINDS`. "position" and "occurrences" are binned in powers of two (0, 1, 2–3, 4–7, …), "relative"
        in `bins` equal parts, "nats" in `bins` parts with about equally many tokens, without tokens that have no nats.
      bins: see `by`.

    Raises:
      UserError: for an unknown column, or no bin.
    """
    values, table = _column(table, by)
    check_least(1, bins=bins)
    if by in ("position", "occurrences"):
        places = np.frexp(values)[1]
    elif by == "relative":
        places = np.minimum((values * bins).astype(int), bins - 1)
    else:
        inner = np.quantile(values, np.arange(1, bins) / bins) if len(values) else np.zeros(0)
        places = np.searchsorted(np.unique(inner), values, side="right")
    waits = np.where(table.first_hit < 0, np.inf, table.first_hit)
    inside = [places == place for place in np.unique(places)]
    tokens = np.array([int(mask.sum()) for mask in inside])
    wrong = np.array([int(np.sum(~table.right[mask])) for mask in inside])
    return Bins(
        low=np.array([values[mask].min() for mask in inside]),
        high=np.array([values[mask].max() for mask in inside]),
        tokens=tokens,
        wrong=wrong,
        rate=wrong / tokens,
        # The upper of two middle values: their mean could be one with infinity.
        first_hit=np.array([float(np.quantile(waits[mask], 0.5, method="higher")) for mask in inside]),
        never=np.array([float(np.mean(np.isinf(waits[mask]))) for mask in inside]),
    )


def association(table: TokenTable, by: str) -> Association:
    """Measure how a column is associated with wrong tokens and with the steps until first right.

    Args:
      table: see `token_table`; for the AUC of wrong against right usually `failing(table)`.
      by: one of `KINDS`.
    """
    values, table = _column(table, by)
    ends = np.flatnonzero(np.diff(table.text)) + 1
    texts = zip(np.split(values, ends), np.split(table.right, ends), strict=True)
    within = [auc(one[right], one[~right]) for one, right in texts]
    known = [area for area in within if not np.isnan(area)]
    waits = np.where(table.first_hit < 0, np.inf, table.first_hit)
    return Association(
        auc=auc(values[table.right], values[~table.right]),
        auc_within=float(np.mean(known)) if known else float("nan"),
        texts=len(known),
        steps=spearman(values, waits),
        tokens=len(values),
    )


def _column(table: TokenTable, by: str) -> tuple[np.ndarray, TokenTable]:
    """The values of a column and the rows that have one."""
    check_known("column of tokens", [by], KINDS)
    table = table.where(~np.isnan(getattr(table, by)))
    return getattr(table, by), table

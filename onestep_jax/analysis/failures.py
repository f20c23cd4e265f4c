"""Which tokens come out wrong, where, and how long each took to come out right for the first time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from onestep_jax.errors import UserError, check_known
from onestep_jax.store.results import TextResult

KINDS = ("position", "relative", "nats", "occurrences")


class TokenTable(NamedTuple):
    """Tokens of many texts, one row a token; every field is (rows,).

    Attributes:
      text: index of its text among the results given.
      position: place in the text, counted from 0.
      relative: position / (N − 1), 0 for the first token and 1 for the last; 0 where N = 1.
      expected, predicted: token ids, the target's and the argmax at the kept vectors.
      nats: −ln P(t_i | t_<i) under the model run autoregressively; NaN where there is none (Eq. 3, first term).
      occurrences: how often the target token occurs in the corpus.
      right: whether predicted equals expected.
      first_hit: gradient evaluation of the kept trial at which the token was first right, counted from 0; −1 for never,
        and where the trial was not recorded.
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
        return TokenTable(*(column[rows] for column in self))


class Bins(NamedTuple):
    """Tokens by the value of one column; every field is (bins,), empty bins left out.

    Attributes:
      low, high: the smallest and the largest value in the bin.
      tokens: how many tokens.
      wrong: how many of them came out wrong.
      rate: wrong / tokens.
      first_hit: median gradient evaluation at which its tokens were first right, infinite if half of them never were.
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
    """How a column goes with coming out wrong, and with the steps until first right.

    Attributes:
      auc: chance that a wrong token has the higher value than a right one (ties half); 0.5 for no association, NaN
        unless there are both.
      auc_within: the same among the tokens of one text, mean over the texts that have both: what differs between
        texts plays no part in it.
      texts: how many texts that mean is over.
      steps: Spearman's rank correlation with the first hit, tokens that were never right ranking last; NaN where
        either is constant.
      tokens: rows that have a value.
    """

    auc: float
    auc_within: float
    texts: int
    steps: float
    tokens: int


def token_table(texts: Iterable[TextResult], *, corpus: Iterable[Sequence[int]] | None = None) -> TokenTable:
    """Lay out every token of fitted texts.

    Args:
      texts: `Results` of one fit, or some of its texts.
      corpus: token lists in which occurrences are counted; the targets themselves by default.

    Raises:
      UserError: without a text.
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
    """(N,) of the trial whose vectors were kept."""
    kept = [trial.first_hit for trial in text.trials if trial.seed == text.seed]
    return kept[0] if kept else np.full(len(text.tokens), -1, np.int32)


def failing(table: TokenTable) -> TokenTable:
    """The tokens of the texts that have at least one wrong: where right and wrong can be compared."""
    return table.where(np.isin(table.text, table.text[~table.right]))


def binned(table: TokenTable, by: str, *, bins: int = 10) -> Bins:
    """Error rate and steps until first right, by position, relative position, nats or occurrences.

    Args:
      table: see `token_table`.
      by: "position" and "occurrences" in powers of two (0, 1, 2–3, 4–7, …), "relative" in `bins` equal parts, "nats" in
        `bins` parts of about equally many tokens; tokens without nats are left out there.
      bins: see `by`.
    """
    values, table = _column(table, by)
    if bins < 1:
        raise UserError(f"bins = {bins}: expected at least 1")
    if by in ("position", "occurrences"):
        places = np.frexp(values)[1]
    elif by == "relative":
        places = np.minimum((values * bins).astype(int), bins - 1)
    else:
        inner = np.quantile(values, np.arange(1, bins) / bins) if len(values) else np.zeros(0)
        places = np.searchsorted(np.unique(inner), values, side="right")
    waits = np.where(table.first_hit < 0, np.inf, table.first_hit)
    rows = []
    for place in np.unique(places):
        inside = places == place
        wrong, tokens = int(np.sum(~table.right[inside])), int(inside.sum())
        never = float(np.mean(np.isinf(waits[inside])))
        # the upper of two middle values: their mean would have to average with infinity
        middle = float(np.quantile(waits[inside], 0.5, method="higher"))
        rows.append((values[inside].min(), values[inside].max(), tokens, wrong, wrong / tokens, middle, never))
    columns = zip(*rows, strict=True) if rows else [()] * len(Bins._fields)
    return Bins(*(np.array(column) for column in columns))


def association(table: TokenTable, by: str) -> Association:
    """How one column goes with coming out wrong and with the steps until first right.

    Args:
      table: see `token_table`; for the AUC of wrong against right usually `failing(table)`.
      by: one of `KINDS`.
    """
    values, table = _column(table, by)
    ends = np.flatnonzero(np.diff(table.text)) + 1
    texts = zip(np.split(values, ends), np.split(~table.right, ends), strict=True)
    within = [_auc(one, wrong) for one, wrong in texts]
    known = [auc for auc in within if not np.isnan(auc)]
    waits = np.where(table.first_hit < 0, np.inf, table.first_hit)
    mean = float(np.mean(known)) if known else float("nan")
    return Association(_auc(values, ~table.right), mean, len(known), spearman(values, waits), len(values))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of two columns, infinities ranking last; NaN where either is constant or has no two rows."""
    from scipy.stats import rankdata

    ranks = rankdata(x), rankdata(y)
    if len(x) < 2 or any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _auc(values: np.ndarray, wrong: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wrong, values)) if wrong.any() and not wrong.all() else float("nan")


def _column(table: TokenTable, by: str) -> tuple[np.ndarray, TokenTable]:
    """The values of a column and the rows that have one."""
    check_known("column of tokens", [by], KINDS)
    table = table.where(~np.isnan(getattr(table, by)))
    return getattr(table, by), table

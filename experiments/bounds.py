"""Capacities that the tried lengths cut off: how they are printed, and what can be said of two of them.

A text that holds the longest length tried may hold more. So a mean over such texts is a lower bound. A text that does
not hold even the shortest one counts as 0 in the tables, though it may hold anything below that. So what was measured
is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Rows = list[dict[str, str]]
Tables = Mapping[str, Rows]
RUN = "run"
"""Name of the table with one row that `overview` makes of a result's config.json."""


class Held(NamedTuple):
    """A mean capacity.

    Attributes:
      low, high: what it is at least and at most; infinite where texts held the longest length tried.
      texts: how many.
      below: of these, how many may not hold even the shortest length.
      shortest: that length, in tokens.
    """

    low: float
    high: float
    texts: int
    below: int = 0
    shortest: int = 0

    def __str__(self) -> str:
        return self.said(1)

    def said(self, digits: int) -> str:
        """In words: "32.0", "≥ 32.0", "< 8", or with what is unknown of the texts below the shortest length."""
        if self.below == self.texts and not self.low:
            return f"< {self.shortest}" if self.shortest else "unknown"
        low, high = (f"{value:.{digits}f}" for value in (self.low, self.high))
        measured = f"≥ {low}" if math.isinf(self.high) else low if low == high else f"{low} to {high}"
        told = self.below and self.shortest
        return f"{measured} ({self.below} of {self.texts} below {self.shortest})" if told else measured


def held(
    row: Mapping[str, str],
    column: str = "tokens mean",
    capped: str = "at the longest length",
    *,
    below: int = 0,
    shortest: int = 0,
) -> Held:
    """The mean capacity of a row.

    Args:
      row: of a table.
      column: its mean, in which texts below the shortest length count as 0.
      capped: the column that counts the texts at the longest length tried.
      below: how many texts may be below the shortest length.
      shortest: that length, in tokens; 0 where the unit is another, in which nothing bounds these texts from above.
    """
    low, texts = float(row[column]), int(row["texts"])
    open_above = float(row[capped]) > 0 or (below and not shortest)
    return Held(low, math.inf if open_above else low + below * (shortest - 1) / texts, texts, below, shortest)


def less(one: Held, other: Held) -> bool | None:
    """Whether one capacity is less than another; None for a tie, or where what was cut off could turn the answer."""
    if one.high < other.low:
        return True
    return False if other.high < one.low else None


def every(holds: Iterable[bool | None]) -> bool | None:
    """Whether all hold; None where none fails and some cannot be told."""
    found = list(holds)
    return False if False in found else None if None in found else True


def setting(tables: Tables, name: str) -> str:
    """A setting of the run as text, lists with commas; empty where the tables come without it."""
    return tables[RUN][0].get(name, "") if RUN in tables else ""


def shortest(tables: Tables) -> int:
    """The shortest length tried, in tokens."""
    return min((int(length) for length in setting(tables, "lengths").split(",") if length), default=0)


def unheld(rows: Rows, column: str = "tokens") -> int:
    """How many texts hold not even the shortest length tried, of rows that are a text each."""
    return sum(float(row[column]) == 0 for row in rows)


def unheld_at_most(rows: Rows) -> int:
    """How many texts may hold not even the shortest length, of rows that are a length each."""
    fits = [row.get("fits") or row["texts"] for row in rows]
    return min(round(float(count) * (1 - float(row["reconstructed"]))) for count, row in zip(fits, rows, strict=True))

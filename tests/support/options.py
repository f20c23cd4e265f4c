"""Which options the quick tests try, where a test is of every family, kind or placement."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick_of(values: Iterable[Any], *quick: int) -> list[Any]:
    """Parameters of a test: the quick tests have those of some places, by default the first; the rest are long ones.

    Tuples are the values of several parameters.
    """
    chosen = quick or (0,)
    given = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*each, marks=[] if i in chosen else [pytest.mark.long]) for i, each in enumerate(given)]

"""Values for other programs: JSON that every parser takes, and cells of a CSV that no spreadsheet computes."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON in ASCII; a number that is not finite is null.

    Args:
      value: plain, or of dataclasses and structs, whose fields keep their order.
      indent: spaces of a level, None for a single line.

    Raises:
      TypeError: for what JSON has no form of.
    """
    plain = msgspec.to_builtins(value, enc_hook=_number)
    return json.dumps(_finite(plain), indent=indent, allow_nan=False)


def no_formula(cell: Any) -> Any:
    """A string that a spreadsheet would take for a formula, with an apostrophe in front, which shows it as text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _number(value: Any) -> Any:
    """A number of numpy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"JSON has no form for a {type(value).__name__}")


def _finite(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _finite(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_finite(value) for value in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain

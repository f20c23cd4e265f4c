"""What is read back from a run directory: its declared types, and the one place where it is parsed against them.

Also what other programs read: JSON of what commands print and record, and cells of tables.
"""

from onestep_jax.store.records.parsing import (
    checked,
    mismatch,
    parse,
    plain_json,
    read_content,
    read_json,
    read_table,
)
from onestep_jax.store.records.writing import json_text, no_formula

__all__ = [
    "checked",
    "json_text",
    "mismatch",
    "no_formula",
    "parse",
    "plain_json",
    "read_content",
    "read_json",
    "read_table",
]

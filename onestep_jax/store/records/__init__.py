"""What is read back from a run directory: its declared types, and the one place where it is parsed against them."""

from onestep_jax.store.records.parsing import (
    checked,
    mismatch,
    parse,
    plain_json,
    read_content,
    read_json,
    read_table,
)

__all__ = ["checked", "mismatch", "parse", "plain_json", "read_content", "read_json", "read_table"]

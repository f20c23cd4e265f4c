"""Tables as Parquet files, each with its checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onestep_jax.store.storage import replace

MOST_ROWS = 2**26


def write_rows(
    path: Path,
    rows: list[dict[str, Any]],
    *,
    about: Mapping[str, str] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Write a table as Parquet; `about` goes into its footer, `check` is that of `replace`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows).replace_schema_metadata(dict(about or {}))
    pq.write_table(table, sink, write_page_checksum=True)
    replace(path, sink.getvalue().to_pybytes(), check)


def read_rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a Parquet table, its checksums verified.

    Raises:
      ValueError: if it says that it has more rows than a run can; a few bytes can say so.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        content = _of_arrow(file.read())
    count = pq.read_metadata(pa.BufferReader(content)).num_rows
    if not 0 <= count <= MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS:,} rows, got {count:,}")
    return pq.read_table(pa.BufferReader(content), columns=columns, page_checksum_verification=True).to_pylist()


def count_rows(path: Path) -> int:
    """Number of rows, of which none is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_metadata(pa.BufferReader(_footer(path))).num_rows


def read_about(path: Path) -> dict[str, str]:
    """What `write_rows` was given as `about`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = pq.read_schema(pa.BufferReader(_footer(path))).metadata or {}
    return {key.decode(): value.decode() for key, value in stored.items()}


def _footer(path: Path) -> Any:
    """The end of a Parquet file, which describes it: the description, its length in four bytes, and "PAR1"."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - 8 - length))
        return _of_arrow(b"PAR1" + file.read())


def _of_arrow(content: bytes) -> Any:
    """Bytes in a buffer that Arrow allocates.

    Threads of Arrow let go of what they read a moment after it was read. Were that an object of Python's and the
    interpreter just ending, the process would abort with status 134.
    """
    import pyarrow as pa

    held = pa.BufferOutputStream()
    held.write(content)
    return held.getvalue()

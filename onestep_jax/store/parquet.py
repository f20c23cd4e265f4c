"""Tables as Parquet files, each with its checksums."""

from __future__ import annotations

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

    # Threads of Arrow let go of the file a moment after it was read. Were that an object of Python's and the
    # interpreter just ending, the process would abort with status 134. So the content is handed over as Arrow's own.
    held = pa.BufferOutputStream()
    with path.open("rb") as file:
        held.write(file.read())
    content = held.getvalue()
    count = pq.read_metadata(pa.BufferReader(content)).num_rows
    if not 0 <= count <= MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS:,} rows, got {count:,}")
    return pq.read_table(pa.BufferReader(content), columns=columns, page_checksum_verification=True).to_pylist()


def count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        return pq.read_metadata(file).num_rows


def read_about(path: Path) -> dict[str, str]:
    """What `write_rows` was given as `about`."""
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        stored = pq.read_schema(file).metadata or {}
    return {key.decode(): value.decode() for key, value in stored.items()}

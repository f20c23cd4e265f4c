"""Writing and reading single files so that a kill leaves each either as it was or as it should be."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onestep_jax.config import UserError


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
    """Rows of a Parquet table, its checksums verified."""
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=columns, page_checksum_verification=True).to_pylist()


def count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def read_about(path: Path) -> dict[str, str]:
    """What `write_rows` was given as `about`."""
    import pyarrow.parquet as pq

    stored = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in stored.items()}


def replace(path: Path, content: bytes, check: Callable[[], None] | None = None) -> None:
    """Write a file whole: to a neighbour, to the disk, then renamed into place.

    `check` is called between writing and renaming; if it raises, or somebody removes the neighbour meanwhile, the file
    stays as it was.
    """
    neighbour = path.with_suffix(path.suffix + ".tmp")
    with neighbour.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if check is not None:
        check()
    os.replace(neighbour, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def create(path: Path) -> bool:
    """Make an empty file; False if it was there already. One caller alone gets True."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True


def remove(path: Path) -> None:
    """Delete a file, or a folder with all in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def one_line(error: Exception) -> str:
    """What an error says, without the specification that tensorstore adds."""
    first = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec=")[0]
    return f"{first[:300]}…" if len(first) > 300 else first or type(error).__name__


def refusal(folder: Path, error: Exception) -> UserError:
    """One clear line for what the storage said."""
    number = error.errno if isinstance(error, OSError) else None
    full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    reason = "the disk is full" if full else one_line(error)
    cure = "everything recorded before is intact; free the path and run the same command again"
    return UserError(f"{folder}: cannot write ({reason}); {cure}")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a refusal of the storage into one clear line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
        raise refusal(folder, error) from error

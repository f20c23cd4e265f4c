"""Writing and reading single files so that a kill leaves each either as it was or as it should be."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.config import UserError


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays with Orbax and read them back."""
    from orbax.checkpoint import v1 as ocp

    shutil.rmtree(path, ignore_errors=True)
    ocp.save(str(path.resolve()), dict(arrays))
    back = load_arrays(path)
    for name, array in arrays.items():
        if not np.array_equal(back[name], array, equal_nan=array.dtype.kind == "f"):
            raise OSError(errno.EIO, f"{name} reads back differently from what was written", str(path))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays that `save_arrays` wrote."""
    from orbax.checkpoint import v1 as ocp

    described: Any = ocp.metadata(str(path.resolve())).metadata
    target = {name: np.zeros(entry.shape, entry.dtype) for name, entry in described.items()}
    loaded: Any = ocp.load(str(path.resolve()), target)
    return {name: np.asarray(array) for name, array in loaded.items()}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    replace(path, sink.getvalue().to_pybytes())


def read_rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=columns).to_pylist()


def count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def replace(path: Path, content: bytes) -> None:
    """Write a file whole: to a neighbour, to the disk, then renamed into place."""
    neighbour = path.with_suffix(path.suffix + ".tmp")
    with neighbour.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(neighbour, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a refusal of the storage into one clear line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
        number = error.errno if isinstance(error, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "the disk is full" if full else str(error).splitlines()[0]
        cure = "everything recorded before is intact; free the path and run the same command again"
        raise UserError(f"{folder}: cannot write ({reason}); {cure}") from error


def take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(f"{path.parent}: another process works on this run ({owner or 'owner unknown'})") from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
    return descriptor

"""safetensors files, read tensor by tensor straight into the memory that the arrays will live in.

A tensor is read (not mapped) into pages of its own, aligned so that JAX on a CPU takes it over without a copy: while
a checkpoint loads, the process holds the tensors it has read, and no page of the files.
"""

from __future__ import annotations

import json
import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from onestep_jax.errors import UserError

# As safetensors names them.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


class StoredTensor(NamedTuple):
    """One tensor of a file: its name, where it is, and what.

    Attributes:
      name: in the checkpoint.
      path: the file.
      offset, nbytes: its bytes in the file.
      shape: as stored.
      dtype: safetensors' name of the type.
    """

    name: str
    path: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own.

        Raises:
          UserError: if its type is none of `DTYPES`, or the file cannot be read.
        """
        if self.dtype not in DTYPES:
            expected = ", ".join(DTYPES)
            raise UserError(f"{self.path}: {self.name} is stored as {self.dtype}; expected one of {expected}")
        # not np.empty, which asks for huge pages: a fragmented or virtual machine is slow to find them
        pages = mmap.mmap(-1, max(1, self.nbytes), access=mmap.ACCESS_COPY)
        block = np.frombuffer(pages, np.uint8, self.nbytes)
        done = 0
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                while done < self.nbytes:  # the system reads 2 GiB at a time at most
                    got = file.readinto(block.data[done:])
                    if not got:
                        raise UserError(f"{self.path}: damaged or truncated safetensors file (ends within {self.name})")
                    done += got
        except OSError as error:
            raise UserError(f"{self.path}: cannot read {self.name} ({error})") from error
        return block.view(DTYPES[self.dtype]).reshape(self.shape)


class Readable(Protocol):
    """A tensor in a file."""

    def read(self) -> np.ndarray: ...


Tensor = TypeVar("Tensor", bound=Readable)


def read_in_turn(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Each tensor with its content; the next one is read while the caller is busy with this one."""
    with ThreadPoolExecutor(1) as reader:
        ahead: deque[tuple[Tensor, Future[np.ndarray]]] = deque()
        for tensor in tensors:
            ahead.append((tensor, reader.submit(tensor.read)))
            if len(ahead) > 1:
                before, content = ahead.popleft()
                yield before, content.result()
        for before, content in ahead:
            yield before, content.result()


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; a reader could take either of two tensors of one name."""
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two entries are called {next(name for name in names if names.count(name) > 1)!r}")
    return dict(pairs)


def stored_tensors(path: Path) -> list[StoredTensor]:
    """What a safetensors file holds, in the order of its bytes; nothing is read but the header.

    Raises:
      UserError: if it is no sound safetensors file.
    """
    try:
        with safe_open(path, framework="numpy"):  # refuses a bad header, bad offsets and a wrong size
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_without_twins)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or truncated safetensors file ({error})") from error
    header.pop("__metadata__", None)
    found = []
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = about["data_offsets"]
        shape, dtype = tuple(about["shape"]), about["dtype"]
        found.append(StoredTensor(name, path, 8 + length + first, end - first, shape, dtype))
        assert dtype not in DTYPES or end - first == math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    return found

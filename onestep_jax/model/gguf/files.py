"""GGUF files, the format of llama.cpp, by the package `gguf`: the header, and tensors dequantised one by one."""

from __future__ import annotations

import functools
import math
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import UserError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_PIECE = 1 << 22  # numbers dequantised at a time: `gguf` makes several copies of what it is given


def is_gguf(source: str | Path) -> bool:
    """Whether a path is a GGUF file by its first bytes; the files of Ollama have no suffix.

    Raises:
      UserError: if the file cannot be read.
    """
    if not os.path.isfile(source):
        return False
    try:
        with open(source, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error})") from error


class GgufTensor(NamedTuple):
    """One tensor of a file; has what the tensors of safetensors files have (`StoredTensor`).

    Attributes:
      name: in the file, or in the Hugging Face checkpoint that the file was made of.
      path: the file.
      offset, nbytes: its bytes in the file.
      stored: shape in the file, slowest axis first.
      kind: the type of its blocks, as `gguf` names it.
      shape: after `change`.
      change: what turns the tensor in the file into that of the checkpoint, None for nothing.
    """

    name: str
    path: Path
    offset: int
    nbytes: int
    stored: tuple[int, ...]
    kind: str
    shape: tuple[int, ...]
    change: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def dtype(self) -> str:
        """The type of what `read` returns, as safetensors names it."""
        return "F32"

    def read(self) -> np.ndarray:
        """The tensor in float32, in memory of its own.

        Raises:
          UserError: if the file cannot be read.
        """
        from gguf.quants import dequantize

        numbers = math.prod(self.stored)
        pages = mmap.mmap(-1, max(4, 4 * numbers), access=mmap.ACCESS_COPY)  # aligned, see `StoredTensor.read`
        whole = np.frombuffer(pages, np.float32, numbers).reshape(-1, self.stored[-1])
        width, kind = self.nbytes // max(1, len(whole)), _kind(self.kind)
        rows = max(1, _PIECE // self.stored[-1])
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                for first in range(0, len(whole), rows):
                    piece = whole[first : first + rows]
                    blocks = np.frombuffer(file.read(len(piece) * width), np.uint8).reshape(len(piece), width)
                    piece[:] = dequantize(blocks, kind)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot read {self.name} ({error})") from error
        whole = whole.reshape(self.stored)
        return whole if self.change is None else np.ascontiguousarray(self.change(whole))


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
      path: the file.
      metadata: key → number, truth value, string, or list of them.
      tensors: by name, nothing read yet.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata.get("general.architecture"))

    def settings(self) -> dict[str, Any]:
        """The settings of the architecture by their keys, its name taken off.

        Of a list with an entry for each layer it gives the entry that all layers have in common.

        Raises:
          UserError: if they have none.
        """
        start = self.architecture + "."
        own = {key: value for key, value in self.metadata.items() if key.startswith(start)}
        return {key.removeprefix(start): _common(key, value) for key, value in own.items()}

    def special_token(self, name: str) -> int | None:
        """The id of the tokenizer's "bos", "eos", "unknown" or "padding" token.

        None where the file names none, or an id that it has no token for, which llama.cpp passes over, too.
        """
        token, tokens = (self.metadata.get(f"tokenizer.ggml.{key}") for key in (f"{name}_token_id", "tokens"))
        known = type(token) is int and 0 <= token < (len(tokens) if isinstance(tokens, list) else 2**31)
        return token if known else None


def _common(key: str, value: Any) -> Any:
    if not isinstance(value, list) or key.endswith("sliding_window_pattern"):
        return value
    if not value or any(entry != value[0] for entry in value):
        raise UserError(f"{key} = {value!r} is not supported; expected one value for all layers")
    return value[0]


def read_header(path: Path) -> Header:
    """The header of a file; no tensor is read. That of the last file is kept while the file does not change.

    Raises:
      UserError: if the file is damaged, truncated, one part of several or of a version, byte order or type of blocks
        that is not supported, or if the package `gguf` is not installed.
    """
    _import_gguf()
    try:
        status = path.stat()
        _check_version(path)
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _check_version(path: Path) -> None:
    with path.open("rb") as file:
        content = file.read(len(_MAGIC) + 4)[len(_MAGIC) :]
    version = struct.unpack("<I", content)[0] if len(content) == 4 else _VERSIONS[0]  # the reader says what is missing
    if version not in _VERSIONS:
        big_endian = version % (1 << 16) == 0
        got = "big-endian numbers" if big_endian else f"version {version}"
        raise UserError(f"{path}: GGUF file with {got}; expected little-endian numbers and version 2 or 3")


@functools.lru_cache(maxsize=1)  # `gguf` takes seconds for a large vocabulary, and a load asks three times
def _read(path: Path, size: int, changed: int) -> Header:
    del size, changed
    try:
        reader = _reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    except OSError:
        raise
    except Exception as error:  # where bytes are missing or wrong, the reader raises what it happens to meet
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        cure = "download it again; where its quantisation is a new one, pip install --upgrade gguf"
        raise UserError(f"{path}: damaged or truncated GGUF file ({reason}); {cure}") from error
    if (parts := metadata.get("split.count", 1)) not in (0, 1):
        cure = "join the parts with `llama-gguf-split --merge FIRST_PART WHOLE.gguf`"
        raise UserError(f"{path}: one of {parts!r} parts of a split GGUF file; {cure}")
    return Header(path, metadata, {tensor.name: _tensor(path, tensor) for tensor in reader.tensors})


def _reader(path: Path) -> Any:
    """`gguf`'s reader, which by itself goes on past the end of a file for as many entries as the file says it has."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> Any:
            found = super()._get(offset, dtype, count, *order, **named)
            if len(found) < count:
                raise ValueError("it says that it has more than it holds")
            return found

    return Reader(path)


def _tensor(path: Path, found: Any) -> GgufTensor:
    """A tensor as `gguf` lists it, its axes fastest first."""
    shape = tuple(int(size) for size in reversed(found.shape))
    return GgufTensor(
        name=found.name,
        path=path,
        offset=int(found.data_offset),
        nbytes=int(found.n_bytes),
        stored=shape,
        kind=found.tensor_type.name,
        shape=shape,
    )


def _import_gguf() -> None:
    try:
        import gguf.quants  # noqa: F401
    except ImportError as error:
        raise UserError(f"GGUF files need the package gguf ({error}); pip install 'onestep_jax[gguf]'") from error


def check_kinds(header: Header) -> None:
    """Refuse a file with a tensor that `gguf` cannot dequantise, before any is read.

    Raises:
      UserError: naming the tensor and its type.
    """
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    for tensor in {tensor.kind: tensor for tensor in header.tensors.values()}.values():
        kind = _kind(tensor.kind)
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            cure = "take a file of another quantisation, such as Q8_0 or Q4_K_M"
            reason = f"{tensor.name} is stored as {tensor.kind}, which gguf cannot read"
            raise UserError(f"{header.path}: {reason}; {cure}") from error


def _kind(name: str) -> Any:
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType[name]

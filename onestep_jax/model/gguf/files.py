"""GGUF files, the format of llama.cpp: the header, and tensors that are dequantised one by one.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here, because the
package `gguf` takes seconds and hundreds of megabytes for a large vocabulary. Quantised blocks are its business.
"""

from __future__ import annotations

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
_STRING, _ARRAY, _MOST_AXES = 8, 9, 4
# Type of a metadata value → its format; a string and an array have lengths of their own.
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
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


def _common(key: str, value: Any) -> Any:
    if not isinstance(value, list) or key.endswith("sliding_window_pattern"):
        return value
    if not value or any(entry != value[0] for entry in value):
        raise UserError(f"{key} = {value!r} is not supported; expected one value for all layers")
    return value[0]


def read_header(path: Path) -> Header:
    """The header of a file; no tensor is read.

    Raises:
      UserError: if the file is damaged, truncated, one part of several or of a version, byte order or type of blocks
        that is not supported, or if the package `gguf` is not installed.
    """
    _import_gguf()
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _parse(path, _Cursor(content))
    except (OSError, UnicodeDecodeError, struct.error) as error:
        raise UserError(f"{path}: damaged GGUF file ({error}); download it again") from error
    except _PastTheEndError as error:
        raise UserError(f"{path}: truncated GGUF file, it ends within its header; download it again") from error


def _import_gguf() -> None:
    try:
        import gguf.quants  # noqa: F401
    except ImportError as error:
        raise UserError(f"GGUF files need the package gguf ({error}); pip install 'onestep_jax[gguf]'") from error


class _PastTheEndError(Exception):
    """A header asks for bytes that the file does not have."""


class _Cursor:
    """Values of a file, one after the other."""

    def __init__(self, content: mmap.mmap):
        self.content, self.size, self.at = content, len(content), 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _PastTheEndError
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, format: str) -> Any:
        return struct.unpack(format, self.take(struct.calcsize(format)))[0]

    def string(self) -> str:
        return self.take(self.number("<Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(self._format(kind))
        inner, count = self.number("<I"), self.number("<Q")
        if inner == _STRING:
            return [self.string() for _ in range(count)]
        format = self._format(inner)
        return np.frombuffer(self.take(count * struct.calcsize(format)), format).tolist()

    @staticmethod
    def _format(kind: int) -> str:
        if kind not in _FORMATS:
            raise struct.error(f"unknown type {kind} of a metadata value")
        return _FORMATS[kind]


def _parse(path: Path, cursor: _Cursor) -> Header:
    cursor.take(len(_MAGIC))
    version = cursor.number("<I")
    if version not in _VERSIONS:
        big_endian = version % (1 << 16) == 0
        got = "big-endian numbers" if big_endian else f"version {version}"
        raise UserError(f"{path}: GGUF file with {got}; expected little-endian numbers and version 2 or 3")
    tensors, values = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(values):
        key = cursor.string()
        if key in metadata:
            raise UserError(f"{path}: two metadata values of one key, {key}; download it again")
        metadata[key] = cursor.value(cursor.number("<I"))
    if (parts := metadata.get("split.count", 1)) not in (0, 1):
        cure = "join the parts with `llama-gguf-split --merge FIRST_PART WHOLE.gguf`"
        raise UserError(f"{path}: one of {parts!r} parts of a split GGUF file; {cure}")
    infos = [_tensor_info(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise UserError(f"{path}: general.alignment = {alignment!r}: expected a positive integer")
    start = -(-cursor.at // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for info in infos:
        tensor = _place(path, info, start, cursor.size)
        if tensor.name in found:
            raise UserError(f"{path}: two tensors of one name, {tensor.name}; download it again")
        found[tensor.name] = tensor
    return Header(path, metadata, found)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (slowest axis first), type and offset of a tensor."""
    name, axes = cursor.string(), cursor.number("<I")
    if not 1 <= axes <= _MOST_AXES:
        raise struct.error(f"{name} has {axes} axes")
    shape = tuple(cursor.number("<Q") for _ in range(axes))
    return name, shape[::-1], cursor.number("<I"), cursor.number("<Q")


def _place(path: Path, info: tuple[str, tuple[int, ...], int, int], start: int, size: int) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name, shape, type_number, offset = info
    try:
        kind = GGMLQuantizationType(type_number)
    except ValueError as error:
        cure = "pip install --upgrade gguf, or take a file of another quantisation"
        raise UserError(f"{path}: {name} is stored as type {type_number}, which gguf does not know; {cure}") from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        expected = f"a positive multiple of {block} numbers in a row"
        raise UserError(f"{path}: {name} has shape {shape}, expected {expected} ({kind.name}); download it again")
    nbytes = math.prod(shape) // block * block_bytes
    if start + offset + nbytes > size:
        ends = f"it has {size} bytes, and {name} would end at {start + offset + nbytes}"
        raise UserError(f"{path}: truncated GGUF file: {ends}; download it again")
    return GgufTensor(
        name=name, path=path, offset=start + offset, nbytes=nbytes, stored=shape, kind=kind.name, shape=shape
    )


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

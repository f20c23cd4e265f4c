"""Rows of local files of texts: plain text, JSON, CSV and parquet, which may be compressed.

A path is that very file, with no patterns and no addresses. Nothing is converted: a text is the characters that the
file holds, line ends included, and a cell of a CSV is never a number or a missing value. A byte-order mark is no text.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from onestep_jax.errors import UserError, shown

Row = dict[str, Any]  # column → value, of whatever type the file gives it


class _Frames(io.RawIOBase):
    """The content of a .zst, frame after frame; `zstandard`'s own reader takes the end of a cut file for its end.

    Raises:
      EOFError: at the end of a file that ends within a frame.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame: Any = None  # the one that has begun and not ended
        self._packed = self._plain = b""  # read and not yet unpacked, unpacked and not yet given

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            packed = self._packed or self._file.read(2**14)
            if not packed and self._frame is not None:
                raise EOFError("the file ends within a compressed frame")
            if not packed:
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._plain, self._packed = self._frame.decompress(packed), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


OPEN: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": lambda path: io.BufferedReader(_Frames(path), 2**20),
}
# What these raise where the bytes are not what the ending says.
DAMAGED = (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError, ValueError)
LONGEST_CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is shorter than a book


def opened(path: Path) -> Any:
    """A file to read bytes from, unpacked if its name ends as that of a packed one does."""
    return OPEN.get(path.suffix.lower(), OPEN[""])(path)


def kind_of(path: Path) -> tuple[str, str]:
    """Endings of the kind of file and of its compression, in lower case: "BOOKS.CSV.gz" → (".csv", ".gz").

    Raises:
      UserError: for a kind that is not read.
    """
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings.pop() if endings and endings[-1] in OPEN else ""
    kind = endings[-1] if endings else ""
    if kind not in _READERS:
        known = f"expected {', '.join(_READERS)}, alone or with {', '.join(filter(None, OPEN))} behind it, or hf:NAME"
        raise UserError(f"{path}: unknown kind of file {kind!r}; {known}")
    return kind, packed


def is_table(path: Path) -> bool:
    """Whether a file has columns.

    Raises:
      UserError: for a kind that is not read.
    """
    return kind_of(path)[0] != ".txt"


def read_rows(path: Path, *, split: str = "file") -> Iterator[Row]:
    """Rows of a file in order, one at a time; those of a .txt have the column "text".

    Args:
      path: of the file.
      split: how a .txt is read: "file" (one row) or "lines" (a row for each line that is not blank, without its end).

    Raises:
      UserError: for a file that is missing, empty, of an unknown kind or damaged.
    """
    kind, packed = kind_of(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: empty text; the file has no bytes")
        if kind == ".parquet":
            yield from _parquet(path, packed)
            return
        with OPEN[packed](path) as file:
            yield from _whole_or_lines(path, file, split) if kind == ".txt" else _READERS[kind](path, file)
    except RecursionError as error:
        raise UserError(f"{path}: cannot be read (nested too deeply); expected an object of texts a row") from error
    except DAMAGED as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read ({reason}); is it damaged, or of another kind?") from error


def decoded_lines(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    """Lines of a file in UTF-8, each with its end as it is, without a byte-order mark.

    Raises:
      UserError: for a byte that is not UTF-8, with its line and its place in the file.
    """
    before = 0
    for number, line in enumerate(file, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            yield text.decode()
        except UnicodeDecodeError as error:
            place = before + len(line) - len(text) + error.start
            found = f"not UTF-8: byte {place} is {text[error.start]:#04x}, in line {number}"
            raise UserError(f"{path}: {found}; convert the file to UTF-8, or unpack it if it is compressed") from error
        before += len(line)


def _whole_or_lines(path: Path, file: IO[bytes], split: str) -> Iterator[Row]:
    lines = decoded_lines(path, file)
    if split == "file":
        yield {"text": "".join(lines)}
        return
    for line in lines:
        if line.strip():
            yield {"text": line.removesuffix("\n").removesuffix("\r")}


def _json_lines(path: Path, file: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(decoded_lines(path, file), 1):
        if line.strip():
            yield _object(path, _parsed(path, line, number), f"line {number}")


def _json(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """A list of objects, one object, or an object a line."""
    lines = list(decoded_lines(path, file))
    try:
        found = json.loads("".join(lines))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise UserError(f"{path}: cannot be read ({error}); expected JSON") from error
        yield from _json_lines(path, (line.encode() for line in lines))
        return
    for number, row in enumerate(found if isinstance(found, list) else [found]):
        yield _object(path, row, f"element {number}")


def _parsed(path: Path, line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        where = f"line {number} is no JSON: {error.msg} at character {error.pos}"
        raise UserError(f"{path}: cannot be read ({where}); expected an object a line") from error


def _object(path: Path, found: Any, where: str) -> Row:
    if not isinstance(found, dict):
        raise UserError(f'{path}: {where} is {shown(found)}; expected an object such as {{"text": "…"}}')
    return found


def _csv(path: Path, file: Iterable[bytes]) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(decoded_lines(path, file), strict=True)
    try:
        header = next(rows, [])
        for cells in rows:
            if len(cells) not in (0, len(header)):
                where = f"the row that ends in line {rows.line_num} has {len(cells)} cells, the header {len(header)}"
                raise UserError(f"{path}: {where}; put quotation marks around a text with commas")
            if cells:
                yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}: cannot be read (line {rows.line_num}: {error}); expected a CSV with commas"
        ) from error


def _parquet(path: Path, packed: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source: Any = path
        if packed:
            with OPEN[packed](path) as file:
                source = pa.BufferReader(file.read())
        with pq.ParquetFile(source) as table:
            for batch in table.iter_batches(batch_size=256, use_threads=False):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: cannot be read ({reason}); is it a parquet file, and whole?") from error


_READERS: dict[str, Any] = {".txt": _whole_or_lines, ".jsonl": _json_lines, ".json": _json, ".csv": _csv}
_READERS[".parquet"] = _parquet

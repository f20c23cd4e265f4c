"""Content of files as values of declared types; sizes and nesting are bounded before anything is built.

JSON is read by Python's own parser and then held against the type by msgspec: losses that are not finite are written
as NaN and Infinity, which msgspec's parser does not know.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from onestep_jax.errors import Damaged, Unreadable, one_line
from onestep_jax.store.listing import patiently
from onestep_jax.store.parquet import read_rows
from onestep_jax.store.storage import is_local, read_bytes

_T = TypeVar("_T")
LIMIT = 2**31  # bytes of a file; a saved state has about 45 for each chunk of each slot
DEPTH = 32  # brackets within each other
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_json(path: Path, kind: type[_T], what: str, cure: str, limit: int = LIMIT) -> _T:
    """A JSON file as a value of a declared type.

    Args:
      path: of the file.
      kind: the type, see `kinds`.
      what: the file is, for messages.
      cure: for messages.
      limit: bytes that it may have.

    Raises:
      FileNotFoundError: if it is not there.
      Damaged: if it is no such file, naming the field, what was expected and the cure.
      Unreadable: if the storage refuses it.
    """
    return parse(read_content(path, what, cure, limit), kind, path, what, cure)


def read_content(path: Path, what: str, cure: str, limit: int = LIMIT) -> bytes:
    """Bytes of a file; see `read_json`."""

    def read(path: Path) -> bytes:
        most = limit
        if is_local(path):
            most = min(limit, _size(path, what, cure))  # room for so much is made
        content = read_bytes(path, most + 1)
        if len(content) > limit:
            raise Damaged(f"{path}: damaged {what}: expected at most {limit:,} bytes, got more; {cure}")
        return content

    return patiently(path, read)


def _size(path: Path, what: str, cure: str) -> int:
    """Bytes of a local file; anything else in its place is refused: a pipe would be waited for, a device has no end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        told = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise Damaged(f"{path}: damaged {what}: expected a file, got {told}; move it away; then {cure}")
    return found.st_size


def parse(content: bytes, kind: type[_T], path: Path, what: str, cure: str) -> _T:
    """JSON as a value of a declared type; see `read_json`."""
    return checked(plain_json(content, path, what, cure), kind, path, what, cure)


def plain_json(content: bytes, path: Path, what: str, cure: str) -> Any:
    """JSON as plain values; see `read_json`."""
    try:
        brackets = np.frombuffer(_STRING.sub(b"", content).translate(None, _NO_BRACKETS), np.uint8)
        depth = np.cumsum(np.where(np.isin(brackets, list(b"[{")), 1, -1)).max(initial=0)
        if depth > DEPTH:
            raise ValueError(f"nested {depth} deep, expected at most {DEPTH}")
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise Damaged(f"{path}: damaged {what}: not valid JSON ({error}); {cure}") from error


def checked(value: Any, kind: type[_T], path: Path, what: str, cure: str) -> _T:
    """Plain values as a value of a declared type; see `read_json`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Damaged(f"{path}: damaged {what}: {_told(error)}; {cure}") from error


def mismatch(value: Any, kind: Any) -> str:
    """What keeps a value from being of a declared type: the field, what was expected and what came; empty if it is."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return _told(error)
    return ""


def _told(error: msgspec.ValidationError) -> str:
    reason, _, place = str(error).replace("`", "").partition(" - at ")
    reason, field = reason[:1].lower() + reason[1:], place.removeprefix("$").removeprefix(".")
    return f"field {field}: {reason}" if field else reason


def read_table(path: Path, kind: type[_T], what: str, cure: str) -> list[_T]:
    """Rows of a table in Parquet as values of a declared type; see `read_json`. A missing table is a damaged one."""

    def read(path: Path) -> list[dict[str, Any]]:
        if is_local(path):
            _size(path, what, cure)
        return read_rows(path)

    try:
        rows = patiently(path, read)
    except (Damaged, Unreadable):
        raise
    except Exception as error:  # of pyarrow, with kinds of its own
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise Damaged(f"{path}: damaged {what} ({reason}); {cure}") from error
    return checked(rows, list[kind], path, what, cure)

"""Strings of texts from files or from the hub, read by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onestep_jax.errors import UserError, check_known, nearest

_READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


def read_source(source: str, *, split: str = "file", column: str = "text", limit: int | None = None) -> list[str]:
    """Read the texts of a source, in order.

    Args:
      source: a .txt, .jsonl, .json, .csv or .parquet file, which may be compressed, or "hf:NAME[:SPLIT[:COLUMN]]".
      split: how a .txt is read: "file" (one text) or "lines" (one text for each line that is not blank).
      column: of a table; the COLUMN in "hf:NAME:SPLIT:COLUMN" goes before it.
      limit: texts to read at most; None for all.

    Raises:
      UserError: if the source cannot be read, has no such column, or holds an empty text.
    """
    check_known("value of --split", [split], ["file", "lines"])
    where, rows, column = _hub_rows(source, column) if source.startswith("hf:") else _file_rows(source, split, column)
    return [row[column] for row in _whole_rows(where, rows, column, [], split, limit)]


def read_with_prefixes(
    source: str, prefix_column: str, *, column: str = "text", limit: int | None = None
) -> tuple[list[str], list[str]]:
    """Read the texts of a table, each with the prefix that stands beside it; a prefix may be empty.

    Args:
      source: a table, as of `read_source`.
      prefix_column: column of the prefixes.
      column, limit: as of `read_source`.

    Returns:
      The texts and their prefixes, in order.

    Raises:
      UserError: as `read_source`, and for a source that is no table.
    """
    if not source.startswith("hf:") and ".txt" in Path(source).suffixes:
        raise UserError(f"{source}: no table, so it has no column {prefix_column!r}; give a .jsonl, .csv or .parquet")
    where, rows, column = _hub_rows(source, column) if source.startswith("hf:") else _file_rows(source, "file", column)
    found = list(_whole_rows(where, rows, column, [prefix_column], "file", limit))
    for number, row in enumerate(found):
        if not isinstance(row[prefix_column], str | None):
            raise UserError(f"{where}: prefix {number} is {row[prefix_column]!r}; expected a text")
    return [row[column] for row in found], [row[prefix_column] or "none" for row in found]


def _whole_rows(
    where: str, rows: Iterator[dict[str, Any]], column: str, beside: list[str], split: str, limit: int | None
) -> Iterator[dict[str, Any]]:
    """Rows that have a text in `column` and have the columns `beside`; at most `limit`, and not none."""
    count = 0
    try:
        for number, row in enumerate(rows):
            if limit is not None and count >= limit:
                break
            for name in (column, *beside):
                if name not in row:
                    raise UserError(f"{where}: no column {name!r}{nearest(name, row)}; it has {', '.join(row)}")
            text = row[column]
            if split == "lines" and text is not None and not text.strip():
                continue
            if not isinstance(text, str) or not text:
                raise UserError(f"{where}: text {number} is empty; remove it or fill it")
            count += 1
            yield row
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: cannot be read ({_reason(error)})") from error
    if not count:
        raise UserError(f"{where}: no text in it")


def _file_rows(source: str, split: str, column: str) -> tuple[str, Iterator[dict[str, Any]], str]:
    import datasets

    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in _READERS:
        raise UserError(f"{source}: unknown kind of file {suffix!r}; expected {', '.join(_READERS)}, or hf:NAME")
    if path.stat().st_size == 0:
        raise UserError(f"{source}: empty text; the file has no bytes")
    arguments: dict[str, Any] = {"data_files": str(path), "split": "train", "streaming": True}
    if suffix == ".txt":
        arguments["sample_by"] = "document" if split == "file" else "line"
        column = "text"
    return source, _stream(datasets.load_dataset, _READERS[suffix], **arguments), column


def _hub_rows(source: str, column: str) -> tuple[str, Iterator[dict[str, Any]], str]:
    import datasets

    name, *rest = source.removeprefix("hf:").split(":")
    if not name or len(rest) > 2:
        raise UserError(f"{source}: expected hf:NAME[:SPLIT[:COLUMN]]")
    part = rest[0] if rest and rest[0] else "train"
    column = rest[1] if len(rest) == 2 else column
    return source, _stream(datasets.load_dataset, name, split=part, streaming=True), column


def _stream(load: Any, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
    """Rows of a data set. It is opened at the first row, so that `read_source` explains errors of opening too."""
    yield from load(*args, **kwargs)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
        if isinstance(error, UnicodeDecodeError):
            break
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {error.start} is {error.object[error.start]:#04x}; convert the file to UTF-8"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

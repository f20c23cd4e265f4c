"""Strings of texts from local files, and from the hub by `datasets`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onestep_jax.errors import UserError, check_known, nearest
from onestep_jax.texts.local_files import Row, is_table, read_rows
from onestep_jax.tokens import check_text

HUB = "hf:"


def read_source(source: str, *, split: str = "file", column: str = "text", limit: int | None = None) -> list[str]:
    """Read the texts of a source, in order.

    Args:
      source: a .txt, .jsonl, .json, .csv or .parquet file, which may be compressed, or
        "hf:NAME[@CONFIG][:SPLIT[:COLUMN]]".
      split: how a .txt is read: "file" (one text) or "lines" (one text for each line that is not blank).
      column: of a table; the COLUMN in "hf:NAME:SPLIT:COLUMN" goes before it.
      limit: texts to read at most; None for all.

    Raises:
      UserError: if the source cannot be read, has no such column, or holds an empty text.
    """
    check_known("value of --split", [split], ["file", "lines"])
    rows, column = _rows(source, split, column)
    return [row[column] for row in _whole_rows(source, rows, column, [], limit)]


def read_with_prefixes(
    source: str, prefix_column: str, *, column: str = "text", limit: int | None = None
) -> tuple[list[str], list[str]]:
    """Read the texts of a table, each with the prefix that stands beside it; a prefix may be empty.

    Args:
      source: a table, as of `read_source`.
      prefix_column: column of the prefixes; a row of JSON may leave it away.
      column, limit: as of `read_source`.

    Returns:
      The texts and their prefixes, in order.

    Raises:
      UserError: as `read_source`, and for a source that is no table.
    """
    if not source.startswith(HUB) and not is_table(Path(source)):
        raise UserError(f"{source}: no table, so it has no column {prefix_column!r}; give a .jsonl, .csv or .parquet")
    rows, column = _rows(source, "file", column)
    found = list(_whole_rows(source, rows, column, [prefix_column], limit))
    for number, row in enumerate(found):
        if not isinstance(row.get(prefix_column), str | None):
            raise UserError(f"{source}: prefix {number} is {row[prefix_column]!r}; expected a text")
    return [row[column] for row in found], [row.get(prefix_column) or "none" for row in found]


def _rows(source: str, split: str, column: str) -> tuple[Iterator[Row], str]:
    """Rows of a source, and the column of the texts."""
    if source.startswith(HUB):
        return _hub_rows(source, column)
    path = Path(source)
    return read_rows(path, split=split), column if is_table(path) else "text"


def _whole_rows(
    where: str, rows: Iterable[Row], column: str, beside: Sequence[str], limit: int | None
) -> Iterator[Row]:
    """Rows that have a text in `column`; at most `limit`, and not none. Some row has each column of `beside`."""
    count, seen = 0, dict.fromkeys(beside, False)
    last: Row = {}
    for number, row in enumerate(rows):
        if limit is not None and count >= limit:
            break
        last = row
        if column not in row and not count:
            raise _no_column(where, column, row)
        text = row.get(column)
        check_text(where, number, text)
        seen = {name: found or name in row for name, found in seen.items()}
        count += 1
        yield row
    if not count:
        raise UserError(f"{where}: no text in it")
    for name in (name for name, found in seen.items() if not found):
        raise _no_column(where, name, last)


def _no_column(where: str, name: str, row: Row) -> UserError:
    return UserError(f"{where}: no column {name!r}{nearest(name, row)}; it has {', '.join(row)}")


def _hub_rows(source: str, column: str) -> tuple[Iterator[Row], str]:
    name, *rest = source.removeprefix(HUB).split(":")
    name, at, configuration = name.partition("@")
    if not name or len(rest) > 2 or (at and not configuration):
        raise UserError(f"{source}: expected hf:NAME[@CONFIG][:SPLIT[:COLUMN]]")
    part = rest[0] if rest and rest[0] else "train"
    column = rest[1] if len(rest) == 2 else column
    return _streamed(source, [name, configuration] if at else [name], part), column


def _streamed(source: str, of: Sequence[str], split: str) -> Iterator[Row]:
    import datasets

    try:
        yield from datasets.load_dataset(*of, split=split, streaming=True)
    except Exception as error:
        raise UserError(f"{source}: cannot be read ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

"""Results as the two tables of a data set, a row a text and a row a trial, and back, bit for bit."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import Damaged, Unreadable, UserError, one_line
from onestep_jax.store.parquet import MOST_ROWS
from onestep_jax.store.parts import checksum, leaf_arrays, text_of, trial_row
from onestep_jax.store.records import mismatch, read_content
from onestep_jax.store.records.kinds import ResultRow, TrialRow
from onestep_jax.store.results import TextResult
from onestep_jax.store.sharing.layout import CURE, MOST_TABLE_BYTES, SHARD, TABLES, table_file
from onestep_jax.store.storage import make_folder, replace

MOST_UNPACKED = 2**32  # bytes of a table, as its footer says
_LEAVES = b"leaves"  # in the footer of the table of texts: names of the columns with vectors
_SHOWN = ("text", "tokens", "prefix")  # for readers of the data set; a run has them elsewhere
_PLACES = ("row", "group_row", "length")  # of a row in a part; a data set has no parts


def _text_columns() -> dict[str, Any]:
    """Columns that every table of texts has; it has what else a row of a results table holds as well."""
    import pyarrow as pa

    whole, real, ids, reals = pa.int64(), pa.float64(), pa.list_(pa.int32()), pa.list_(pa.float32())
    kinds = {"text_id": pa.string(), "index": whole, "text": pa.string(), "tokens": ids, "prefix": ids}
    kinds |= {"status": pa.string(), "accuracy": real, "c_tokens": whole, "steps": whole, "seconds": real}
    kinds |= {"loss": real, "h_lm": real, "best_step": whole, "seed": whole, "predicted": ids, "nats": reals}
    return kinds | {"checksum": whole}


def _trial_columns(leaves: Sequence[str]) -> dict[str, Any]:
    import pyarrow as pa

    whole, real, ids, reals = pa.int64(), pa.float64(), pa.list_(pa.int32()), pa.list_(pa.float32())
    kinds = {"text_id": pa.string(), "seed": whole, "status": pa.string(), "accuracy": real, "loss": real}
    kinds |= {"steps": whole, "best_step": whole, "first_hit": ids}
    kinds |= {"trace_steps": ids, "trace_loss": reals, "trace_accuracy": reals}
    return kinds | {f"path_{leaf}": reals for leaf in leaves}


def write_tables(folder: Path, texts: Sequence[TextResult], strings: Sequence[str | None]) -> list[str]:
    """Write results as tables, in files of bounded size.

    Args:
      folder: of the data set.
      texts: results, with the same leaves.
      strings: of the texts, None where there is no tokenizer.

    Returns:
      Paths of the files within the folder.

    Raises:
      UserError: if a leaf has the name of another column.
    """
    make_folder(folder / "data")
    files = []
    for number, part in enumerate(_cut([_bytes(text) for text in texts])):
        some, names = texts[part], [table_file(table, number) for table in TABLES]
        _write(folder / names[0], *_text_rows(some, strings[part]))
        trials = [trial_row(text, trial) for text in some for trial in text.trials]
        _write(folder / names[1], trials, _trial_columns(sorted(texts[0].vectors)))
        files += names
    return files


def _bytes(text: TextResult) -> int:
    """Of the arrays of a text: its vectors, and the curves and recorded vectors of its trials."""
    arrays = [*text.vectors.values()]
    for trial in text.trials:
        arrays += [trial.trace, *(trial.path or {}).values()]
    return sum(array.nbytes for array in arrays)


def _cut(sizes: Sequence[int]) -> Iterator[slice]:
    """Parts in order, of as many as have no more bytes together than a file should, and of one at least."""
    start, total = 0, 0
    for place, size in enumerate(sizes):
        if place > start and total + size > SHARD:
            yield slice(start, place)
            start, total = place, 0
        total += size
    yield slice(start, len(sizes))


def _text_rows(texts: Sequence[TextResult], strings: Sequence[str | None]) -> tuple[list[dict[str, Any]], Any, Any]:
    """Rows, types of their columns, and what the footer says."""
    import pyarrow as pa

    kinds, leaves = _text_columns(), texts[0].vectors
    _, rows = leaf_arrays(texts, None)
    if taken := sorted({*kinds, *rows[0]} & leaves.keys()):
        raise UserError(f"vectors named {taken[0]!r}, as another column of the data set; rename them in the scheme")
    for text, string, row in zip(texts, strings, rows, strict=True):
        for place in _PLACES:
            del row[place]
        row |= {"text": string, "tokens": text.tokens, "prefix": text.prefix}
        row |= {leaf: _nested(vector) for leaf, vector in text.vectors.items()}
    for name in [name for name in rows[0] if name not in kinds and name not in leaves]:
        kinds[name] = pa.array([row[name] for row in rows]).type
    for leaf, vector in leaves.items():
        kind = pa.float32()
        for size in reversed(vector.shape):
            kind = pa.list_(kind, size)
        kinds[leaf] = kind
    return rows, kinds, {_LEAVES: json.dumps(sorted(leaves)).encode()}


def _nested(array: np.ndarray) -> Any:
    """An array as lists of its last axis, which Arrow takes as they are."""
    return array if array.ndim < 2 else [_nested(row) for row in array]


def _write(path: Path, rows: list[dict[str, Any]], kinds: Mapping[str, Any], about: Any = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds, metadata=about))
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    replace(path, sink.getvalue().to_pybytes())


def read_tables(folder: Path, tokens: Mapping[str, np.ndarray]) -> Iterator[list[TextResult]]:
    """What `write_tables` was given, a list for each file; prefixes are left out.

    Args:
      folder: of the data set.
      tokens: the targets by text_id.

    Raises:
      Damaged: if a file is missing, or holds something else than was written.
    """
    number = 0
    while number == 0 or (folder / table_file("texts", number)).exists():
        texts, trials = (folder / table_file(table, number) for table in TABLES)
        leaves, rows = _reading(texts, _read_texts)
        trials_of: dict[str, list[dict[str, Any]]] = {}
        for row in _reading(trials, functools.partial(_read_trials, sorted(leaves))):
            trials_of.setdefault(str(row["text_id"]), []).append(row)
        found = []
        for i, row in enumerate(rows):
            text_id = str(row["text_id"])
            place = row | {"row": i, "group_row": i}
            text = _whole(place, tokens.get(text_id), trials_of.get(text_id, []), leaves)
            if isinstance(text, str):
                raise Damaged(f"{texts}: damaged table of a data set: text {text_id}: {text}; {CURE}")
            found.append(text)
        if found:
            yield found
        number += 1


def _whole(
    row: dict[str, Any], tokens: np.ndarray | None, trials: list[dict[str, Any]], leaves: Mapping[str, np.ndarray]
) -> TextResult | str:
    """A text as it was written, or what is wrong with it."""
    if tokens is None:
        return "none of the run's"
    if told := mismatch(row, ResultRow) or next(filter(None, (mismatch(trial, TrialRow) for trial in trials)), ""):
        return told
    try:
        text = text_of(row, tokens, trials, leaves, None)
        if checksum(text) == row["checksum"]:
            return text
    except (LookupError, TypeError, ValueError):
        pass
    return "its row, vectors or curves are not those that were written (checksum)"


def _reading(path: Path, read: Any) -> Any:
    """What `read` makes of the content of a file."""
    try:
        return read(read_content(path, "table of a data set", CURE, MOST_TABLE_BYTES))
    except (Damaged, Unreadable):
        raise
    except Exception as error:  # of pyarrow, with kinds of its own
        told = f"{type(error).__name__}: {one_line(error)}"
        raise Damaged(f"{path}: damaged table of a data set ({told}); {CURE}") from error


def _opened(content: bytes) -> Any:
    """A table whose footer claims no more than a run can have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    about = file.metadata
    unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if not (0 <= about.num_rows <= MOST_ROWS and 0 <= unpacked <= MOST_UNPACKED):
        raise ValueError(f"{about.num_rows:,} rows of {unpacked:,} bytes, more than a file of a run has")
    return file


def _columns(file: Any, kinds: Mapping[str, Any]) -> Any:
    """The columns of these names, each of its declared type."""
    for name, kind in kinds.items():
        place = file.schema_arrow.get_field_index(name)
        if place < 0:
            raise ValueError(f"no column {name}, or more than one")
        found = file.schema_arrow.field(place).type
        if not found.equals(kind):
            raise ValueError(f"column {name}: expected {kind}, got {found}")
    return file.read(columns=list(kinds), use_threads=False)


def _read_texts(content: bytes) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Leaf → (rows, *shape) float32, and the rows."""
    import pyarrow as pa

    file = _opened(content)
    kinds = {name: kind for name, kind in _text_columns().items() if name not in _SHOWN}
    named = json.loads((file.schema_arrow.metadata or {})[_LEAVES])
    if not isinstance(named, list) or not all(isinstance(leaf, str) and leaf not in kinds for leaf in named):
        raise ValueError("its footer does not name the columns with vectors")
    shapes, types = {}, {}
    for leaf in named:
        types[leaf] = file.schema_arrow.field(leaf).type
        shapes[leaf] = _shape(leaf, types[leaf])
    others = [field for field in file.schema_arrow if field.name not in {*kinds, *types, *_SHOWN, *_PLACES}]
    kinds |= {field.name: field.type for field in others if pa.types.is_primitive(field.type)}
    table = _columns(file, kinds | types)
    leaves = {leaf: _array(table[leaf].combine_chunks(), (len(table), *shape)) for leaf, shape in shapes.items()}
    return leaves, table.select(list(kinds)).to_pylist()


def _shape(leaf: str, kind: Any) -> tuple[int, ...]:
    """Shape of the vectors in a column of lists of fixed size."""
    import pyarrow as pa

    shape = []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    if kind != pa.float32():
        raise ValueError(f"column {leaf}: expected vectors of float32, got {kind}")
    return tuple(shape)


def _array(column: Any, shape: tuple[int, ...]) -> np.ndarray:
    for _ in shape[1:]:
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(shape)


def _read_trials(leaves: Sequence[str], content: bytes) -> list[dict[str, Any]]:
    return _columns(_opened(content), _trial_columns(leaves)).to_pylist()

"""One part of a run directory: results as arrays and tables, and back.

The layout is that of `run`; the results table is written last, since it is the part's commit record. Each of its rows
carries a checksum over all that is kept of the text, since neither arrays nor the schema of a table have one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import Damaged, Unreadable, UserError, one_line
from onestep_jax.store.listing import patiently
from onestep_jax.store.names import remove_all
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parquet import count_rows, read_about, read_rows, write_rows
from onestep_jax.store.records import mismatch
from onestep_jax.store.records.kinds import IdRow, ResultRow, TrialRow
from onestep_jax.store.results import TextResult, Trial

KINDS = ("results", "traces", "embeddings")  # the commit record first, so that a removal cut short leaves no half part
PART_CURE = "`onestep verify DIR --drop` sets it aside, and the same onestep fit then makes those texts again"
_TEXT = """index text_id accuracy c_tokens h_lm loss steps best_step seconds seed status predicted nats""".split()
_MARGIN = "margin"  # NaN of a text that was recorded before there was such a column
_TRIAL = "seed status accuracy loss steps best_step".split()
_CURVES = {"trace_steps": np.int32, "trace_loss": np.float32, "trace_accuracy": np.float32}
_PATH = "path_"


class Scan(NamedTuple):
    """What a part holds: whole texts, and for each other text_id what is wrong with it.

    Not `readable` is one that the storage refuses to give: the problem is then no damage.
    """

    texts: list[TextResult]
    problems: dict[str, str]
    readable: bool = True


def part_files(folder: Path, name: str) -> dict[str, Path]:
    """Where a part's files are, by kind."""
    ends = {"results": ".parquet", "traces": ".parquet", "embeddings": ""}
    return {kind: folder / kind / f"{name}{ends[kind]}" for kind in KINDS}


def remove_part(folder: Path, name: str) -> None:
    """Delete what there is of a part."""
    remove_all(folder, KINDS, name)


def write_part(
    folder: Path,
    name: str,
    texts: Sequence[TextResult],
    shared: str | None,
    arrays: Arrays,
    *,
    about: Mapping[str, str] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Vectors (read back) and traces of a part, then its results.

    Args:
      folder: the run directory.
      name: of the part.
      texts: its results, with the same leaves.
      shared: leaf that groups of texts share; equal vectors of it are kept once.
      arrays: how arrays are saved.
      about: kept with the results.
      check: called just before the part is committed, to prevent that by raising.
    """
    files = part_files(folder, name)
    leaves, rows = leaf_arrays(texts, shared)
    arrays.save(files["embeddings"], leaves)
    write_rows(files["traces"], [trial_row(text, trial) for text in texts for trial in text.trials])
    write_rows(files["results"], rows, about=about, check=check)


def read_part(
    folder: Path, name: str, tokens: Mapping[str, np.ndarray], shared: str | None, arrays: Arrays
) -> list[TextResult]:
    """What `write_part` was given; `tokens` are the targets by text_id.

    Raises:
      UserError: if a file of the part is missing, cannot be read or holds something else than was written.
    """
    texts, problems, _ = scan_part(folder, name, tokens, shared, arrays)
    if problems:
        first, reason = next(iter(problems.items()))
        more = f", and {len(problems) - 1} more texts" if len(problems) > 1 else ""
        raise UserError(f"{folder}: damaged part {name} of the run: text {first}: {reason}{more}; {PART_CURE}")
    return texts


def scan_part(folder: Path, name: str, tokens: Mapping[str, np.ndarray], shared: str | None, arrays: Arrays) -> Scan:
    """What is whole of a part, and what is not.

    Raises:
      UserError: if a file of the part is missing or cannot be read, naming it and the texts that are lost with it.
    """
    files = part_files(folder, name)
    rows = read_part_table(files["results"])
    ids = [str(row.get("text_id")) for row in rows]
    trials_of: dict[str, list[dict[str, Any]]] = {}
    for row in read_part_table(files["traces"], ids=ids):
        trials_of.setdefault(str(row.get("text_id")), []).append(row)
    leaves = _read(files["embeddings"], arrays.load, ids)
    stored = [len(array) for leaf, array in leaves.items() if leaf != shared]
    if any(count != len(rows) for count in stored):
        told = f"{len(rows)} rows for vectors of {stored} texts"
        raise UserError(f"{files['results']}: damaged part of the run ({told}); {_texts(ids)}; {PART_CURE}")
    read_times(folder, name)
    scan = Scan([], {})
    for text_id, row in zip(ids, rows, strict=True):
        if text_id not in tokens:
            scan.problems[text_id] = "a text that is none of this run"
            continue
        told = mismatch(row, ResultRow) or next(
            filter(None, (mismatch(trial, TrialRow) for trial in trials_of.get(text_id, []))), ""
        )
        if told:
            scan.problems[text_id] = f"its row or curves are damaged: {told}"
            continue
        try:
            text = text_of(row, tokens[text_id], trials_of.get(text_id, []), leaves, shared)
            if checksum(text) != row["checksum"]:
                raise ValueError(text_id)
            scan.texts.append(text)
        except (LookupError, TypeError, ValueError):
            scan.problems[text_id] = "its row, vectors or curves are not those that were written (checksum)"
    return scan


def read_part_table(path: Path, kind: type[IdRow] | None = None, *, ids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a table of a part.

    Args:
      path: of the table.
      kind: declared type of a row, to read its columns alone; by default all columns are read and none is checked.
      ids: texts that are lost where the table is damaged, as far as known.

    Raises:
      UserError: if it is missing or damaged.
    """
    columns = None if kind is None else list(kind.__struct_fields__)
    rows = _read(path, lambda path: read_rows(path, columns), ids)
    if kind is not None and (told := mismatch(rows, list[kind])):
        raise Damaged(f"{path}: damaged part of the run ({told}); {PART_CURE}")
    return rows


def read_times(folder: Path, name: str) -> tuple[int, float]:
    """How many texts of a part were new to the run, and the seconds of work at which it was written.

    Raises:
      UserError: if the part is damaged or gone.
    """

    def read(path: Path) -> tuple[int, float]:
        about = read_about(path)
        return int(about.get("new", 0)), float(about.get("elapsed", 0.0))

    return _read(part_files(folder, name)["results"], read, [])


def count_texts(folder: Path, name: str) -> int:
    """How many texts a part holds.

    Raises:
      UserError: if the part is damaged or gone.
    """
    return _read(part_files(folder, name)["results"], count_rows, [])


def read_run(folder: Path, name: str) -> str:
    """Digest of the identity of the run that a part was written for, empty in one of a version that did not say so.

    Raises:
      UserError: if the part is damaged or gone.
    """
    return _read(part_files(folder, name)["results"], lambda path: read_about(path).get("run", ""), [])


def checksum(text: TextResult) -> int:
    """CRC-32 over all that is kept of a text, in the precision in which it is kept."""
    value = 0
    for piece in _pieces(text):
        value = zlib.crc32(piece, value)
    return value


def _pieces(text: TextResult) -> Iterator[bytes]:
    yield _plain(getattr(text, key) for key in _TEXT if key not in ("predicted", "nats"))
    yield text.predicted.astype("<i4").tobytes()
    yield text.nats.astype("<f4").tobytes()
    for leaf in sorted(text.vectors):
        yield leaf.encode()
        yield text.vectors[leaf].astype("<f4").tobytes()
    if not math.isnan(text.margin):
        yield _plain([text.margin])
    for trial in text.trials:
        yield _plain(getattr(trial, key) for key in _TRIAL)
        yield trial.first_hit.astype("<i4").tobytes()
        for kind, curve in zip(_CURVES.values(), trial.trace.reshape(-1, 3).T, strict=True):
            yield curve.astype(kind).tobytes()
        for _, points in sorted((trial.path or {}).items()):
            yield points.astype("<f4").tobytes()


def _plain(values: Iterable[Any]) -> bytes:
    return " ".join(value if isinstance(value, str) else repr(float(value)) for value in values).encode()


def _read(path: Path, read: Callable[[Path], Any], ids: Sequence[str]) -> Any:
    try:
        return patiently(path, read)
    except Unreadable:
        raise
    except Exception as error:  # of pyarrow, Orbax and tensorstore, each with kinds of its own
        lost = _texts(ids) if ids else "which texts it holds cannot be told"
        told = f"{type(error).__name__}: {one_line(error)}"
        raise Damaged(f"{path}: damaged part of the run ({told}); {lost}; {PART_CURE}") from error


def _texts(ids: Iterable[str]) -> str:
    """Texts by name, at most three of them."""
    first, *more = [", ".join(list(ids)[:3]), *list(ids)[3:]]
    return f"text {first}" + (f" and {len(more)} more" if more else "")


def leaf_arrays(texts: Sequence[TextResult], shared: str | None) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays of a part, and its rows of the results table."""
    groups: dict[bytes, int] = {}
    group_vectors: list[np.ndarray] = []
    rows = []
    for i, text in enumerate(texts):
        row = {key: getattr(text, key) for key in _TEXT}
        row |= {"length": len(text.tokens), "row": i, "group_row": -1, "checksum": checksum(text)}
        row[_MARGIN] = text.margin
        if shared:
            vector = text.vectors[shared]
            row["group_row"] = groups.setdefault(vector.tobytes(), len(groups))
            if len(groups) > len(group_vectors):
                group_vectors.append(vector)
        rows.append(row)
    own = {leaf: np.stack([text.vectors[leaf] for text in texts]) for leaf in texts[0].vectors if leaf != shared}
    return own | ({shared: np.stack(group_vectors)} if shared else {}), rows


def trial_row(text: TextResult, trial: Trial) -> dict[str, Any]:
    """A trial of a text as a row of the traces table."""
    row = {"text_id": text.text_id, "first_hit": trial.first_hit} | {key: getattr(trial, key) for key in _TRIAL}
    for (column, kind), curve in zip(_CURVES.items(), trial.trace.reshape(-1, 3).T, strict=True):
        row[column] = curve.astype(kind)
    for leaf in text.vectors:
        row[_PATH + leaf] = None if trial.path is None else trial.path[leaf].reshape(-1).astype(np.float32)
    return row


def text_of(
    row: Mapping[str, Any],
    tokens: np.ndarray,
    trials: Sequence[Mapping[str, Any]],
    leaves: Mapping[str, np.ndarray],
    shared: str | None,
) -> TextResult:
    """A text from its row of the results table, its rows of the traces table, and the arrays; see `checksum`."""
    values = {key: row[key] for key in _TEXT} | {_MARGIN: row.get(_MARGIN, math.nan)}
    values["predicted"] = np.asarray(row["predicted"], np.int32)
    values["nats"] = np.asarray(row["nats"], np.float32)
    values["vectors"] = {leaf: array[row["group_row" if leaf == shared else "row"]] for leaf, array in leaves.items()}
    shapes = {leaf: array.shape[1:] for leaf, array in leaves.items()}
    return TextResult(**values, tokens=tokens, trials=tuple(_trial(row, shapes) for row in trials))


def _trial(row: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Trial:
    plain = {key: row[key] for key in _TRIAL}
    trace = np.stack([row[column] for column in _CURVES], axis=-1).astype(float)
    recorded = {leaf: row[_PATH + leaf] for leaf in shapes}
    path = {
        leaf: np.asarray(flat, np.float32).reshape(-1, *shapes[leaf])
        for leaf, flat in recorded.items()
        if flat is not None
    }
    return Trial(**plain, trace=trace, first_hit=np.asarray(row["first_hit"], np.int32), path=path or None)

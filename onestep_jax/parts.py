"""One part of a run directory: results as arrays and tables, and back.

The layout is that of `store`; the results table is written last, since it is the part's commit record. Each of its rows
carries a checksum over the text's vectors and predicted ids, since the arrays have none.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.arrays import Arrays
from onestep_jax.config import UserError
from onestep_jax.files import one_line, read_rows, remove, write_rows
from onestep_jax.results import TextResult, Trial

KINDS = ("results", "traces", "embeddings")  # the commit record first, so that a removal cut short leaves no half part
CURE = "`onestep verify DIR --drop` sets it aside, and the same onestep fit then makes those texts again"
_TEXT = """index text_id accuracy c_tokens h_lm loss steps best_step seconds seed status predicted nats""".split()
_TRIAL = "seed status accuracy loss steps best_step".split()
_CURVES = {"trace_steps": np.int32, "trace_loss": np.float32, "trace_accuracy": np.float32}
_PATH = "path_"


class Scan(NamedTuple):
    """What a part holds: whole texts, and for each other text_id what is wrong with it."""

    texts: list[TextResult]
    problems: dict[str, str]


def part_files(folder: Path, name: str) -> dict[str, Path]:
    """Where a part's files are, by kind."""
    ends = {"results": ".parquet", "traces": ".parquet", "embeddings": ""}
    return {kind: folder / kind / f"{name}{ends[kind]}" for kind in KINDS}


def remove_part(folder: Path, name: str) -> None:
    """Delete what there is of a part."""
    for kind in KINDS:
        for path in (folder / kind).glob(f"{name}*"):
            remove(path)


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
    leaves, rows = _leaf_arrays(texts, shared)
    arrays.save(files["embeddings"], leaves)
    write_rows(files["traces"], [_trial_row(text, trial) for text in texts for trial in text.trials])
    write_rows(files["results"], rows, about=about, check=check)


def read_part(
    folder: Path, name: str, tokens: Mapping[str, np.ndarray], shared: str | None, arrays: Arrays
) -> list[TextResult]:
    """What `write_part` was given; `tokens` are the targets by text_id.

    Raises:
      UserError: if a file of the part is missing, cannot be read or holds something else than was written.
    """
    texts, problems = scan_part(folder, name, tokens, shared, arrays)
    if problems:
        path, reason = part_files(folder, name)["embeddings"], next(iter(problems.values()))
        raise UserError(f"{path}: damaged part of the run: {reason}; {_texts(problems)}; {CURE}")
    return texts


def scan_part(folder: Path, name: str, tokens: Mapping[str, np.ndarray], shared: str | None, arrays: Arrays) -> Scan:
    """What is whole of a part, and what is not.

    Raises:
      UserError: if a file of the part is missing or cannot be read, naming it and the texts that are lost with it.
    """
    files = part_files(folder, name)
    rows = read_table(files["results"])
    ids = [row["text_id"] for row in rows]
    trials = read_table(files["traces"], ids=ids)
    leaves = _read(files["embeddings"], arrays.load, ids)
    trials_of: dict[str, list[Trial]] = {}
    shapes = {leaf: array.shape[1:] for leaf, array in leaves.items()}
    for row in trials:
        trials_of.setdefault(row["text_id"], []).append(_trial(row, shapes))
    scan = Scan([], {})
    for row in rows:
        places = {leaf: row["group_row" if leaf == shared else "row"] for leaf in leaves}
        if row["text_id"] not in tokens:
            scan.problems[row["text_id"]] = "its text is none of this run"
        elif not all(0 <= place < len(leaves[leaf]) for leaf, place in places.items()):
            scan.problems[row["text_id"]] = "its row is not in the arrays"
        else:
            values = {key: row[key] for key in _TEXT}
            values["predicted"] = np.asarray(row["predicted"], np.int32)
            values["nats"] = np.asarray(row["nats"], np.float32)
            values["vectors"] = {leaf: leaves[leaf][place] for leaf, place in places.items()}
            found = tuple(trials_of.get(row["text_id"], ()))
            text = TextResult(**values, tokens=tokens[row["text_id"]], trials=found)
            if checksum(text) != row["checksum"]:
                scan.problems[text.text_id] = "vectors or predicted ids differ from their checksum"
            else:
                scan.texts.append(text)
    return scan


def read_table(path: Path, columns: list[str] | None = None, ids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a table of a part; `ids` are the texts that are lost where it is damaged, as far as known.

    Raises:
      UserError: if it is missing or damaged.
    """
    return _read(path, lambda path: read_rows(path, columns), ids)


def checksum(text: TextResult) -> int:
    """CRC-32 over a text's vectors and predicted ids."""
    value = zlib.crc32(text.predicted.astype("<i4").tobytes())
    for leaf in sorted(text.vectors):
        value = zlib.crc32(text.vectors[leaf].astype("<f4").tobytes(), zlib.crc32(leaf.encode(), value))
    return value


def _read(path: Path, read: Callable[[Path], Any], ids: Sequence[str]) -> Any:
    try:
        return read(path)
    except Exception as error:  # of pyarrow, Orbax and tensorstore, each with kinds of its own
        lost = _texts(ids) if ids else "which texts it holds cannot be told"
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{path}: damaged part of the run ({told}); {lost}; {CURE}") from error


def _texts(ids: Iterable[str]) -> str:
    """Texts by name, at most three of them."""
    first, *more = [", ".join(list(ids)[:3]), *list(ids)[3:]]
    return f"text {first}" + (f" and {len(more)} more" if more else "")


def _leaf_arrays(texts: Sequence[TextResult], shared: str | None) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays of a part and its result rows."""
    groups: dict[bytes, int] = {}
    group_vectors: list[np.ndarray] = []
    rows = []
    for i, text in enumerate(texts):
        row = {key: getattr(text, key) for key in _TEXT}
        row |= {"length": len(text.tokens), "row": i, "group_row": -1, "checksum": checksum(text)}
        if shared:
            vector = text.vectors[shared]
            row["group_row"] = groups.setdefault(vector.tobytes(), len(groups))
            if len(groups) > len(group_vectors):
                group_vectors.append(vector)
        rows.append(row)
    own = {leaf: np.stack([text.vectors[leaf] for text in texts]) for leaf in texts[0].vectors if leaf != shared}
    return own | ({shared: np.stack(group_vectors)} if shared else {}), rows


def _trial_row(text: TextResult, trial: Trial) -> dict[str, Any]:
    row = {"text_id": text.text_id, "first_hit": trial.first_hit} | {key: getattr(trial, key) for key in _TRIAL}
    for (column, kind), curve in zip(_CURVES.items(), trial.trace.reshape(-1, 3).T, strict=True):
        row[column] = curve.astype(kind)
    for leaf in text.vectors:
        row[_PATH + leaf] = None if trial.path is None else trial.path[leaf].reshape(-1).astype(np.float32)
    return row


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

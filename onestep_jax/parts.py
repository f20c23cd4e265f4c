"""One part of a run directory: results as arrays and tables, and back.

The layout is that of `store`; the results table is written last, since it is the part's commit record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.config import UserError
from onestep_jax.files import load_arrays, read_rows, save_arrays, write_rows
from onestep_jax.results import TextResult, Trial

_TEXT = """index text_id accuracy c_tokens h_lm loss steps best_step seconds seed status predicted nats""".split()
_TRIAL = "seed status accuracy loss steps best_step".split()
_CURVES = {"trace_steps": np.int32, "trace_loss": np.float32, "trace_accuracy": np.float32}
_PATH = "path_"


def write_part(folder: Path, name: str, texts: Sequence[TextResult], shared: str | None) -> None:
    """Vectors (read back) and traces of a part, then its results.

    Args:
      folder: the run directory.
      name: of the part.
      texts: its results, with the same leaves.
      shared: leaf that groups of texts share; equal vectors of it are kept once.
    """
    arrays, rows = _leaf_arrays(texts, shared)
    save_arrays(folder / "embeddings" / name, arrays)
    trials = [_trial_row(text, trial) for text in texts for trial in text.trials]
    write_rows(folder / "traces" / f"{name}.parquet", trials)
    write_rows(folder / "results" / f"{name}.parquet", rows)


def read_part(folder: Path, name: str, tokens: Mapping[str, np.ndarray], shared: str | None) -> Iterator[TextResult]:
    """What `write_part` was given; `tokens` are the targets by text_id.

    Raises:
      UserError: if a file of the part is missing or cannot be read.
    """
    path = folder / "embeddings" / name
    try:
        arrays = load_arrays(path)
        rows = read_rows(folder / "results" / f"{name}.parquet")
        trials = read_rows(folder / "traces" / f"{name}.parquet")
    except Exception as error:
        raise UserError(f"{path}: damaged part of the run ({type(error).__name__}: {error})") from error
    trials_of: dict[str, list[Trial]] = {}
    shapes = {leaf: array.shape[1:] for leaf, array in arrays.items()}
    for row in trials:
        trials_of.setdefault(row["text_id"], []).append(_trial(row, shapes))
    for row in rows:
        values = {key: row[key] for key in _TEXT}
        values["predicted"] = np.asarray(row["predicted"], np.int32)
        values["nats"] = np.asarray(row["nats"], np.float32)
        values["vectors"] = {
            leaf: array[row["group_row" if leaf == shared else "row"]] for leaf, array in arrays.items()
        }
        found = tuple(trials_of.get(row["text_id"], ()))
        yield TextResult(**values, tokens=tokens[row["text_id"]], trials=found)


def _leaf_arrays(texts: Sequence[TextResult], shared: str | None) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays of a part and its result rows."""
    groups: dict[bytes, int] = {}
    group_vectors: list[np.ndarray] = []
    rows = []
    for i, text in enumerate(texts):
        row = {key: getattr(text, key) for key in _TEXT}
        row |= {"length": len(text.tokens), "row": i, "group_row": -1}
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

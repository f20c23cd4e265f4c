"""Reading a run directory, also while a run is going; nothing here writes or locks. The layout is that of `run`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onestep_jax.errors import Unreadable, UserError
from onestep_jax.store.listing import each_of, patiently
from onestep_jax.store.names import committed
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parquet import read_rows
from onestep_jax.store.parts import part_files, read_part, read_part_table
from onestep_jax.store.results import Results, TextResult
from onestep_jax.store.storage import exists, read_text, run_path

FORMAT = 3
_SUMMARY = ["index", "text_id", "accuracy", "steps", "status"]
_T = TypeVar("_T")


def check_identity(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
      UserError: naming each key that differs, with both values.
    """
    theirs = json.loads(json.dumps(theirs))
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if keys:
        differences = "; ".join(f"{key}: {ours.get(key)!r} there, {theirs.get(key)!r} here" for key in keys)
        raise UserError(f"{folder}: holds another run; {differences}. Give --run another folder, or the same settings")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run directory.

    Raises:
      UserError: if there is none, or one that this version cannot read.
    """
    return read_description(folder / "config.json", kind="run", absent="no run directory", version=FORMAT)


def find_config(folder: Path) -> dict[str, Any] | None:
    """config.json of a run directory, None where there is none yet.

    Raises:
      UserError: if there is one that this version cannot read.
    """
    return read_config(folder) if patiently(folder / "config.json", exists) else None


def read_description(path: Path, *, kind: str, absent: str, version: int) -> dict[str, Any]:
    """A JSON object that describes a folder.

    Args:
      path: of the file in that folder.
      kind: what it describes, for messages.
      absent: what the folder is without the file, for messages.
      version: the number under "format" that this version reads.

    Raises:
      UserError: if the file is missing, is not valid JSON, or has another format.
    """
    try:
        described = json.loads(patiently(path, read_text))
    except Unreadable:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path.parent}: {absent} (no {path.name})") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    found = described.get("format") if isinstance(described, dict) else None
    if found != version:
        raise UserError(f"{path.parent}: {kind} format {found!r}; this version reads {version}")
    return described


def shared_leaf(config: Mapping[str, Any]) -> str | None:
    """Name of the leaf that the texts of a group share, if the run's scheme has one."""
    return config["identity"]["scheme"].get("share")


def read_texts(folder: Path) -> list[tuple[str, np.ndarray]]:
    """(text_id, token ids int32) of a run's texts in source order, finished or not.

    Raises:
      UserError: if the table is damaged or missing.
    """
    return _ids_of_texts(folder, "tokens")


def _ids_of_texts(folder: Path, column: str) -> list[tuple[str, np.ndarray]]:
    """(text_id, ids int32) of a column of texts.parquet, in source order."""
    path = folder / "texts.parquet"
    try:
        return [(row["text_id"], np.asarray(row[column], np.int32)) for row in patiently(path, read_rows)]
    except Unreadable:
        raise
    except Exception as error:  # of pyarrow, with kinds of its own
        cure = "delete it, and the same onestep fit writes it again"
        raise UserError(f"{path}: damaged ({type(error).__name__}); {cure}") from error


def read_prefixes(folder: Path, identity: Mapping[str, Any]) -> Callable[[str], np.ndarray]:
    """What gives the frozen tokens before the vectors, (P,) int32, often none, for a text_id of the run.

    Raises:
      UserError: as `read_texts`.
    """
    if "prefixes" in identity:
        return dict(_ids_of_texts(folder, "prefix")).__getitem__
    common = np.asarray(identity["scheme"].get("prefix", ()), np.int32)
    return lambda _: common


def with_prefixes(texts: Iterable[TextResult], prefix: Callable[[str], np.ndarray]) -> tuple[TextResult, ...]:
    """Results in source order, with their prefixes, which are kept with the texts and not with each part."""
    ordered = sorted(texts, key=lambda text: text.index)
    return tuple(dataclasses.replace(text, prefix=prefix(text.text_id)) for text in ordered)


def part_names(folder: Path) -> list[str]:
    """Names of the committed parts, oldest first."""
    return committed(folder, "results")


def read_results(folder: str | Path, arrays: Arrays | None = None) -> Results:
    """All recorded results of a run directory in source order; works while the run is going.

    Args:
      folder: the run directory.
      arrays: how arrays are loaded, by default in this process.

    Raises:
      UserError: if the folder is no run directory or a part of it is damaged.
    """
    folder, arrays = run_path(folder), arrays or Arrays()
    config = read_config(folder)
    identity, tokens = config["identity"], dict(read_texts(folder))
    parts = each_part(folder, lambda name: read_part(folder, name, tokens, shared_leaf(config), arrays))
    found: dict[str, TextResult] = {text.text_id: text for part in parts for text in part}
    ordered = with_prefixes(found.values(), read_prefixes(folder, identity))
    return Results(ordered, identity["scheme"], identity["model"], config["settings"].get("model", ""))


def read_summary(folder: Path) -> dict[str, dict[str, Any]]:
    """text_id → index, accuracy, steps and status of each recorded text, in source order, without its vectors.

    Raises:
      UserError: if a results table is damaged.
    """
    parts = each_part(folder, lambda name: read_part_table(part_files(folder, name)["results"], _SUMMARY))
    found = {row["text_id"]: row for part in parts for row in part}
    return dict(sorted(found.items(), key=lambda item: item[1]["index"]))


def each_part(folder: Path, read: Callable[[str], _T]) -> list[_T]:
    """What `read` makes of each part by its name, oldest first, however often parts are merged meanwhile."""
    return list(each_of(lambda: part_names(folder), read).values())

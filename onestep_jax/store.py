"""The run directory: every result, whole or not at all, through kills and resumes.

    config.json          identity and settings of the run, library versions, commit
    texts.parquet        index, text_id, tokens
    embeddings/NNNNNN/   Orbax, leaf → (rows, *shape): a row a text, or a row a group for a shared leaf
    traces/NNNNNN.parquet    a row a text and seed: curves, when each token first became right, recorded vectors
    results/NNNNNN.parquet   a row a text; the commit record of the part NNNNNN, renamed into place last
    state/NNNNNN/        Orbax, the slots in flight; state/NNNNNN.json, its commit record
    lock                 held while a process works on the run

A part whose results file is missing was never committed and is swept away when the run is next opened for writing.
This module takes numpy arrays and knows neither models nor devices.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.config import UserError
from onestep_jax.files import count_rows, load_arrays, read_rows, replace, save_arrays, take_lock, write_rows, writing
from onestep_jax.parts import read_part, write_part
from onestep_jax.results import Results, TextResult

FORMAT = 2
COMPACT_AT = 16  # small parts that are merged into one
READ_ATTEMPTS = 3  # a reader starts again when parts were merged under it
SMALL = 1024  # rows below which a part counts as small

_PARTS = ("embeddings", "results", "traces")
_OURS = {*_PARTS, "config.json", "lock", "state", "texts.parquet"}


class Run:
    """A run directory opened for writing; use `open_run`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], lock: int | None):
        self.folder, self.config, self._lock = folder, config, lock

    def close(self) -> None:
        """Let other processes work on the run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recorded(self) -> set[str]:
        """Ids of the texts that have a result."""
        return {
            row["text_id"] for number in _parts(self.folder) for row in read_rows(self._results(number), ["text_id"])
        }

    def append(self, texts: Sequence[TextResult]) -> None:
        """Record results as one part: vectors and traces first, read back; the results file last.

        Raises:
          UserError: if the storage refuses; what was recorded before stays as it was.
        """
        if not texts:
            return
        self._write_part(texts)
        small = [number for number in _parts(self.folder) if count_rows(self._results(number)) < SMALL]
        if len(small) >= COMPACT_AT:
            self._compact(small)

    def _write_part(self, texts: Sequence[TextResult]) -> None:
        number = max([*_parts(self.folder), -1]) + 1
        with writing(self.folder):
            write_part(self.folder, _name(number), texts, self._shared())

    def _compact(self, numbers: list[int]) -> None:
        """Merge parts into one new part, then delete them; a crash between leaves duplicates, which readers drop."""
        tokens, shared = dict(read_texts(self.folder)), self._shared()
        parts = (read_part(self.folder, _name(number), tokens, shared) for number in numbers)
        texts = {text.text_id: text for part in parts for text in part}
        self._write_part(list(texts.values()))
        for number in numbers:
            self._results(number).unlink()
            _remove_part(self.folder, number)

    def _shared(self) -> str | None:
        return self.config["identity"]["scheme"].get("share")

    def _results(self, number: int) -> Path:
        return self.folder / "results" / f"{_name(number)}.parquet"

    # --- slots in flight ---

    def save_state(self, arrays: Mapping[str, np.ndarray], record: Any) -> None:
        """Keep the slots in flight: arrays in Orbax, `record` (JSON) beside them as the commit; the newest is kept.

        Raises:
          UserError: if the storage refuses; the state saved before stays.
        """
        folder = self.folder / "state"
        before = _states(self.folder)
        name = _name(max([*before, -1]) + 1)
        with writing(self.folder):
            folder.mkdir(exist_ok=True)
            shutil.rmtree(folder / name, ignore_errors=True)
            if arrays:
                save_arrays(folder / name, arrays)
            replace(folder / f"{name}.json", json.dumps(record).encode())
        for number in before:
            (folder / f"{_name(number)}.json").unlink()
            shutil.rmtree(folder / _name(number), ignore_errors=True)

    def load_state(self) -> tuple[dict[str, np.ndarray], Any] | None:
        """The newest saved state, or None."""
        saved = _states(self.folder)
        if not saved:
            return None
        name = _name(saved[-1])
        record = json.loads((self.folder / "state" / f"{name}.json").read_text())
        path = self.folder / "state" / name
        return (load_arrays(path) if path.exists() else {}), record


def open_run(
    folder: Path, identity: Mapping[str, Any], settings: Mapping[str, Any], texts: Sequence[tuple[str, np.ndarray]]
) -> Run:
    """Create a run directory, or open it to go on.

    Args:
      folder: the directory.
      identity: what must not change between sessions of the run.
      settings: what may change; recorded as of the first session.
      texts: (text_id, token ids) in source order.

    Raises:
      UserError: if another process works on it, it belongs to a run of another identity, or it cannot be written.
    """
    config_file = folder / "config.json"
    foreign = {path.name.removesuffix(".tmp") for path in folder.iterdir()} - _OURS if folder.is_dir() else set()
    if foreign and not config_file.exists():
        raise UserError(f"{folder}: not empty and no run directory (no config.json); give --run another folder")
    if config_file.exists():
        check_identity(folder, read_config(folder)["identity"], identity)
    with writing(folder):
        for part in _PARTS:
            (folder / part).mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / "lock")
    try:
        if not config_file.exists():
            with writing(folder):
                rows = [{"index": i, "text_id": name, "tokens": tokens} for i, (name, tokens) in enumerate(texts)]
                write_rows(folder / "texts.parquet", rows)
                described = {"format": FORMAT, "identity": identity, "settings": settings}
                replace(config_file, (json.dumps(described, indent=2) + "\n").encode())
        _sweep(folder)
    except BaseException:
        os.close(lock)
        raise
    return Run(folder, read_config(folder), lock)


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
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no run directory (no config.json)") from error
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: not valid JSON ({error})") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(f"{folder}: run format {found!r}; this version reads {FORMAT}")
    return config


def read_texts(folder: Path) -> list[tuple[str, np.ndarray]]:
    """(text_id, token ids int32) of a run's texts in source order, finished or not."""
    rows = read_rows(folder / "texts.parquet")
    return [(row["text_id"], np.asarray(row["tokens"], np.int32)) for row in rows]


def read_results(folder: str | Path) -> Results:
    """All recorded results of a run directory in source order; works while the run is going.

    Raises:
      UserError: if the folder is no run directory or a part of it is damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    tokens, shared = dict(read_texts(folder)), config["identity"]["scheme"].get("share")
    found: dict[str, TextResult] = {}
    for attempt in range(READ_ATTEMPTS):
        parts = _parts(folder)
        try:
            read = (read_part(folder, _name(number), tokens, shared) for number in reversed(parts))
            found = {text.text_id: text for part in read for text in part}
            break
        except UserError:
            merged_meanwhile = parts != _parts(folder)
            if not merged_meanwhile or attempt == READ_ATTEMPTS - 1:
                raise
    identity = config["identity"]
    ordered = tuple(sorted(found.values(), key=lambda text: text.index))
    return Results(ordered, identity["scheme"], identity["model"], config["settings"].get("model", ""))


# --- parts ---


def _parts(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "results").glob("*.parquet"))


def _states(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "state").glob("*.json"))


def _remove_part(folder: Path, number: int) -> None:
    (folder / "traces" / f"{_name(number)}.parquet").unlink(missing_ok=True)
    shutil.rmtree(folder / "embeddings" / _name(number), ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Delete what a killed process left half-written: parts and states without their commit record."""
    parts, states = {_name(number) for number in _parts(folder)}, {_name(number) for number in _states(folder)}
    for kind, committed in (("embeddings", parts), ("traces", parts), ("state", states), ("results", parts)):
        for path in (folder / kind).glob("*"):
            if path.name.split(".")[0] not in committed or path.suffix == ".tmp":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _name(number: int) -> str:
    return f"{number:06d}"

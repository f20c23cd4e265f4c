"""Saved states of a run directory: the groups in flight, and which of them are still needed."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.arrays import Arrays
from onestep_jax.config import UserError
from onestep_jax.files import one_line, read_text, replace
from onestep_jax.names import committed, remove_all
from onestep_jax.reading import each_of

CURE = "`onestep verify DIR --drop` sets it aside, and the same onestep fit begins its texts anew"


class State(NamedTuple):
    """A saved state without its arrays.

    Attributes:
      record: what `Run.save_state` was given.
      elapsed: seconds that the process had been at work.
      checksums: of the arrays, by name.
    """

    record: Any
    elapsed: float
    checksums: dict[str, int]


def state_names(folder: Path) -> list[str]:
    """Names of the committed states, oldest first."""
    return committed(folder, "state")


def state_files(folder: Path, name: str) -> dict[str, Path]:
    """Where a state's files are: the record, then the arrays."""
    return {"state": folder / "state" / f"{name}.json", "arrays": folder / "state" / name}


def write_state(
    folder: Path,
    name: str,
    arrays: Mapping[str, np.ndarray],
    record: Any,
    elapsed: float,
    store: Arrays,
    check: Callable[[], None],
) -> None:
    """Arrays of a state, then its record, which commits it; `check` may prevent that by raising."""
    if arrays:
        store.save(folder / "state" / name, arrays)
    state = State(record, elapsed, {key: _checksum(array) for key, array in arrays.items()})._asdict()
    content = {"checksum": _text_checksum(state), "state": state}
    replace(folder / "state" / f"{name}.json", json.dumps(content).encode(), check)


def read_states(folder: Path) -> list[tuple[str, State]]:
    """(name, state) of all states, newest first, however often processes replace theirs meanwhile.

    Raises:
      UserError: if one cannot be read.
    """
    found = each_of(lambda: state_names(folder), lambda name: read_state(folder, name))
    return list(reversed(found.items()))


def read_state(folder: Path, name: str) -> State:
    """A state without its arrays.

    Raises:
      UserError: if it cannot be read or is not there.
    """
    path = folder / "state" / f"{name}.json"
    try:
        content = json.loads(read_text(path))
        state = State(**content["state"])
        if _text_checksum(content["state"]) != content["checksum"]:
            raise ValueError("its content differs from its checksum")
        return state
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged saved state ({type(error).__name__}: {error}); {CURE}") from error


def read_arrays(folder: Path, name: str, store: Arrays) -> dict[str, np.ndarray]:
    """The arrays of a state.

    Raises:
      UserError: if they are missing, cannot be read or are not those that were written.
    """
    sums, path = read_state(folder, name).checksums, folder / "state" / name
    if not sums:
        return {}
    try:
        arrays = store.load(path)
    except Exception as error:  # of Orbax and tensorstore, each with kinds of its own
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{path}: damaged saved state ({told}); {CURE}") from error
    wrong = [key for key in sums if key not in arrays or _checksum(arrays[key]) != sums[key]]
    if wrong:
        raise UserError(f"{path}: damaged saved state: {wrong[0]} differs from its checksum; {CURE}")
    return arrays


def remove_state(folder: Path, name: str) -> None:
    """Delete what there is of a state."""
    remove_all(folder, ["state"], name)


def reached(record: Any) -> dict[tuple[tuple[int, ...], int], float]:
    """(texts, seed) → gradient evaluations made, infinitely many for a seed that has come to its end."""
    steps = {_key(task): task["trace"][-1][0] if task["trace"] else 0 for task in record.get("tasks", ())}
    return steps | {_key(task): math.inf for task in record.get("outcomes", ())}


def _key(task: Any) -> tuple[tuple[int, ...], int]:
    return tuple(task["texts"]), task["seed"]


def _text_checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(f"{array.dtype}{array.shape}".encode()))

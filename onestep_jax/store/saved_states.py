"""Saved states of a run directory: the groups in flight, and which of them are still needed."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import Damaged, Unreadable, UserError, one_line
from onestep_jax.store.listing import each_of, patiently
from onestep_jax.store.names import committed, listed, remove_all
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.records import checked, plain_json, read_content
from onestep_jax.store.records.kinds import StateKind
from onestep_jax.store.storage import replace

STATE_CURE = "`onestep verify DIR --drop` sets it aside, and the same onestep fit begins its texts anew"


class State(NamedTuple):
    """A saved state without its arrays.

    Attributes:
      record: what `Run.save_state` was given.
      elapsed: seconds that the process had been at work.
      checksums: of the arrays, by name.
      run: digest of the identity of the run, empty in a state of a version that did not say so.
      text_ids: of the texts of the record, by their indices.
    """

    record: Any
    elapsed: float
    checksums: dict[str, int]
    run: str = ""
    text_ids: Mapping[str, str] = {}


class Origin(NamedTuple):
    """The run that a state must come from to be used.

    Attributes:
      run: digest of its identity.
      texts: its (text_id, token ids), in source order.
    """

    run: str
    texts: Sequence[tuple[str, np.ndarray]]


def run_digest(identity: Mapping[str, Any]) -> str:
    """What parts and states of a run are known by."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def origin(identity: Mapping[str, Any], texts: Sequence[tuple[str, np.ndarray]]) -> Origin:
    """The run of an identity and texts."""
    return Origin(run_digest(identity), texts)


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
    of: Origin,
    store: Arrays,
    check: Callable[[], None],
) -> None:
    """Arrays of a state, then its record, which commits it; `check` may prevent that by raising."""
    if arrays:
        store.save(folder / "state" / name, arrays)
    sums = {key: _checksum(array) for key, array in arrays.items()}
    state = {"record": record, "elapsed": elapsed, "checksums": sums}
    content = {"checksum": _text_checksum(state), "state": state, "run": of.run, "text_ids": _text_ids(record, of)}
    replace(folder / "state" / f"{name}.json", json.dumps(content).encode(), check)


def read_state(folder: Path, name: str) -> State:
    """A state without its arrays.

    Raises:
      UserError: if it cannot be read or is not there.
    """
    path = folder / "state" / f"{name}.json"
    try:
        content = plain_json(read_content(path, "saved state", STATE_CURE), path, "saved state", STATE_CURE)
    except FileNotFoundError as error:
        raise Damaged(f"{path}: damaged saved state (it is gone); {STATE_CURE}") from error
    checked(content, StateKind, path, "saved state", STATE_CURE)
    if _text_checksum(content["state"]) != content["checksum"]:
        raise Damaged(f"{path}: damaged saved state (its content differs from its checksum); {STATE_CURE}")
    held = {key: content["state"][key] for key in ("record", "elapsed", "checksums")}
    return State(**held, run=content.get("run", ""), text_ids=content.get("text_ids", {}))


def read_arrays(folder: Path, name: str, store: Arrays) -> dict[str, np.ndarray]:
    """The arrays of a state.

    Raises:
      UserError: if they are missing, cannot be read or are not those that were written.
    """
    sums, path = read_state(folder, name).checksums, folder / "state" / name
    if not sums:
        return {}
    try:
        arrays = patiently(path, store.load)
    except Unreadable:
        raise
    except Exception as error:  # of Orbax and tensorstore, each with kinds of its own
        told = f"{type(error).__name__}: {one_line(error)}"
        raise Damaged(f"{path}: damaged saved state ({told}); {STATE_CURE}") from error
    wrong = [key for key in sums if key not in arrays or _checksum(arrays[key]) != sums[key]]
    if wrong:
        raise Damaged(f"{path}: damaged saved state: {wrong[0]} differs from its checksum; {STATE_CURE}")
    return arrays


def own_states(folder: Path, of: Origin, store: Arrays) -> tuple[list[tuple[str, State]], dict[str, str]]:
    """(name, state) of the states that come from a run, newest first, and what speaks against each other one.

    A damaged one is among the others: it costs what it held, and nothing else.

    Raises:
      Unreadable: if the storage refuses one.
    """

    def read(name: str) -> tuple[State | None, str]:
        state = read_state(folder, name)
        return state, doubt(folder, name, state, of, store)

    def failed(_: str, error: UserError) -> tuple[State | None, str]:
        if not isinstance(error, Damaged):
            raise error
        return None, str(error).removesuffix(f"; {STATE_CURE}")

    found = each_of(lambda: state_names(folder), read, failed)
    ours = [(name, state) for name, (state, against) in reversed(found.items()) if state and not against]
    return ours, {name: against for name, (_, against) in found.items() if against}


def warn_of_others(folder: Path, others: Mapping[str, str]) -> None:
    """Say which states are left aside, and why: `others` as `own_states` gives them."""
    if others:
        told = f"saved state {listed(list(others))} is left aside: {next(iter(others.values()))}"
        warnings.warn(f"{folder}: {told}; {STATE_CURE}", stacklevel=2)


def doubt(folder: Path, name: str, state: State, of: Origin, store: Arrays) -> str:
    """What speaks against it that a state comes from a run; nothing if it does.

    One of a version that did not say so is known by the tokens in its arrays. Without tasks it has no tokens, and its
    finished seeds cannot be told from those of other texts.

    Raises:
      UserError: if the arrays of such a state cannot be read.
    """
    known = len(_text_ids(state.record, of)) == len(_indices(state.record))
    if state.run:
        same = known and (state.run, state.text_ids) == (of.run, _text_ids(state.record, of))
        return "" if same else "it is of another run, or of other texts"
    tasks = state.record.get("tasks", ())
    if not tasks:
        return "it does not say of which run it is" if state.record.get("outcomes") else ""
    arrays = read_arrays(folder, name, store) if known else {}
    held = any(_holds(array, tasks, of.texts) for array in arrays.values())
    return "" if held else "its tokens are not those of the texts of this run"


def _holds(array: np.ndarray, tasks: Sequence[Any], texts: Sequence[tuple[str, np.ndarray]]) -> bool:
    """Whether an array, (tasks, texts, positions), is that of the tasks' tokens."""
    if array.ndim != 3 or array.dtype.kind != "i" or len(array) != len(tasks):
        return False
    for rows, task in zip(array, tasks, strict=True):
        for row, i in zip(rows, task["texts"], strict=False):
            tokens = texts[i][1]
            if not np.array_equal(row[: len(tokens)], tokens) or row[len(tokens) :].any():
                return False
    return True


def remove_state(folder: Path, name: str) -> None:
    """Delete what there is of a state."""
    remove_all(folder, ["state"], name)


def reached(record: Any) -> dict[tuple[tuple[int, ...], int], float]:
    """How far each group of a saved state has come. This is the one rule for it.

    Args:
      record: of a state. "tasks" are the groups in flight, "outcomes" the finished ones.

    Returns:
      (texts, seed) → gradient evaluations made: those at the last point of the trace, 0 before the first point, and
      infinity for a group that is finished.
    """
    steps = {_key(task): task["trace"][-1][0] if task["trace"] else 0 for task in record.get("tasks", ())}
    return steps | {_key(task): math.inf for task in record.get("outcomes", ())}


def _indices(record: Any) -> set[int]:
    return {i for texts, _ in reached(record) for i in texts}


def _text_ids(record: Any, of: Origin) -> dict[str, str]:
    """Index → text_id of the texts of a record, as far as a run has so many."""
    return {str(i): of.texts[i][0] for i in sorted(_indices(record)) if i < len(of.texts)}


def _key(task: Any) -> tuple[tuple[int, ...], int]:
    return tuple(task["texts"]), task["seed"]


def _text_checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(f"{array.dtype}{array.shape}".encode()))

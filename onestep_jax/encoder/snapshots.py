"""What a resume of a training needs: saved states, whole or not at all, and the recipe that they belong to.

training/recipe.json   design, recipe, model and texts; what must not change
training/updates.json  how many updates a training by the clock makes
training/tokens-*.npz  token ids of the texts, named by texts and tokenizer
training/NNNNNNN/      Orbax, the arrays of the state before update N; renamed into place when it is whole
training/NNNNNNN.json  its commit record, with a checksum
training/log.jsonl     figures of the updates
training/.lock         held by the process that trains
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from onestep_jax.encoder.training import State
from onestep_jax.encoder.windows import Pool
from onestep_jax.errors import UserError
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.storage import make_folder, remove, replace, writing

_FOLDER, _RECIPE, _UPDATES, _LOG, _LOCK = "training", "recipe.json", "updates.json", "log.jsonl", ".lock"


class Snapshots:
    """The saved states of one training, in its folder.

    Args:
      folder: of the encoder.
      identity: what must not change between the sessions of the training, as plain values.

    Raises:
      UserError: if the folder holds another training, or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self._folder, self._arrays = folder, folder / _FOLDER, Arrays()
        self._kept = ""  # name of the newest state that is known to be whole
        self._identity, path = json.loads(json.dumps(identity)), self._folder / _RECIPE
        with writing(folder):
            make_folder(self._folder)
            if path.exists():
                _check_same(folder, _read_object(path), self._identity)
            elif self._names():
                raise UserError(f"{path}: missing, beside saved states; put it back, or give --out another folder")

    def claim(self) -> None:
        """Say whose folder it is, once; until then another training can take it."""
        path = self._folder / _RECIPE
        if not path.exists():
            with writing(self.folder):
                replace(path, (json.dumps(self._identity, indent=2) + "\n").encode())

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other trainings out of the folder; the lock of a process that was killed is free.

        Raises:
          UserError: if another one is at work there.
        """
        lock = filelock.FileLock(self._folder / _LOCK, timeout=0)
        with writing(self._folder):
            try:
                lock.acquire()
            except filelock.Timeout as error:
                cure = "wait until it ends, or give --out another folder"
                raise UserError(f"{self.folder}: another process is training in it; {cure}") from error
        try:
            yield
        finally:
            lock.release()

    def pool(self, name: str, make: Callable[[], Pool]) -> Pool:
        """The token ids that a name tells of, made once; texts and tokenizer are in the name."""
        path = self._folder / f"tokens-{name}.npz"
        # numpy raises whatever a damaged file makes it stumble over; its own sums tell whether the arrays are whole.
        with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as kept:
            return Pool(kept["tokens"], kept["ends"])
        pool, content = make(), io.BytesIO()
        np.savez(content, tokens=pool.tokens_M, ends=pool.ends)
        with writing(self._folder):
            replace(path, content.getvalue())
        return pool

    def settled_updates(self, settle: Callable[[], int]) -> int:
        """The number of updates of a training by the clock, settled in its first session."""
        path = self._folder / _UPDATES
        if path.exists():
            found = _read_object(path).get("updates")
            if type(found) is int and found > 0:
                return found
        if self._names():
            raise UserError(
                f"{path}: missing or damaged, beside saved states; put it back, or give --out another folder"
            )
        updates = settle()
        with writing(self._folder):
            replace(path, json.dumps({"updates": updates}).encode())
        return updates

    def log(self, row: Mapping[str, Any]) -> None:
        """Append figures of an update."""
        with writing(self._folder), (self._folder / _LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_rows_after(self, update: int) -> None:
        """Take rows of later updates out of the log, which a training that goes on from there will write again."""
        path = self._folder / _LOG
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        kept = [line for line in lines if _update_of(line) <= update]
        if kept != lines:
            with writing(self._folder):
                replace(path, b"".join(kept))

    def save(self, state: State) -> None:
        """Keep a state, then delete those before it.

        Raises:
          UserError: if the storage refuses it.
        """
        before, name = self._names(), f"{state.update:07d}"
        if name == self._kept:
            return
        leaves = {f"leaf_{i:04d}": np.asarray(leaf) for i, leaf in enumerate(_leaves(state))}
        record = {"update": state.update, "seconds": state.seconds, "checksum": _checksum(leaves)}
        with writing(self._folder):
            self._arrays.save(self._folder / name, leaves)
            replace(self._folder / f"{name}.json", json.dumps(record).encode())
            for old in before:
                if old != name:
                    remove(self._folder / f"{old}.json")
                    remove(self._folder / old)
        self._kept = name

    def newest(self, begun: State) -> State | None:
        """The newest state that is whole, in the shape of the one before the first update; None if there is none.

        One that is damaged is left aside, with a warning.
        """
        for name in reversed(self._names()):
            try:
                found = self._load(name, begun)
                self._kept = name
                return found
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = (str(error).splitlines() or [""])[0][:200]
                told = f"damaged saved state of a training, left aside ({type(error).__name__}: {reason})"
                warnings.warn(f"{self._folder / name}: {told}", stacklevel=2)
        return None

    def _load(self, name: str, begun: State) -> State:
        record = json.loads((self._folder / f"{name}.json").read_bytes())
        arrays = self._arrays.load(self._folder / name)
        if record["update"] != int(name):
            raise ValueError(f"its record is of update {record['update']!r}")
        if _checksum(arrays) != record["checksum"]:
            raise ValueError("its arrays are not those that were saved")
        leaves, shape = jax.tree.flatten((begun.weights, begun.opt_state))
        kept = [arrays[f"leaf_{i:04d}"] for i in range(len(leaves))]
        for leaf, array in zip(leaves, kept, strict=True):
            if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise ValueError("its arrays have other shapes")
        weights, opt_state = jax.tree.unflatten(shape, kept)
        return State(weights, opt_state, int(name), float(record["seconds"]))

    def _names(self) -> list[str]:
        """Names of the saved states, oldest first."""
        return sorted(path.stem for path in self._folder.glob("*.json") if path.stem.isdigit())


def _update_of(line: bytes) -> float:
    """The number of the update that a line of the log is of, infinite for what a kill has left of one."""
    try:
        return float(json.loads(line)["update"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _leaves(state: State) -> list[Any]:
    return jax.tree.leaves((state.weights, state.opt_state))


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), value))
    return value


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged; put it back, or give --out another folder")
    return found


def _check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to go on with another training, naming what differs."""
    differences = []
    for part in {**there, **here}:
        ours, theirs = there.get(part), here.get(part)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            differences += [f"{name}: {ours.get(name)!r} there, {theirs.get(name)!r} here" for name in names]
        elif ours != theirs:
            differences.append(f"{part}: {ours!r} there, {theirs!r} here")
    if differences:
        told = "; ".join(differences)
        raise UserError(f"{folder}: holds another training; {told}. Give --out another folder, or the same settings")

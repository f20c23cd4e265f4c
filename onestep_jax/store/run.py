"""The run directory: every result, whole or not at all, through kills and resumes, by one process or many.

    config.json          identity and settings of the run, library versions, commit
    texts.parquet        index, text_id, tokens
    session.json         number, processes and owner of the present or last session, see `sessions`
    embeddings/NAME/     Orbax, leaf → (rows, *shape): a row a text, or a row a group for a shared leaf
    traces/NAME.parquet  a row a text and seed: curves, when each token first became right, recorded vectors
    results/NAME.parquet a row a text; the commit record of the part NAME, renamed into place last
    state/NAME/          Orbax, the slots in flight of a process; state/NAME.json, its commit record
    claims/SSSSSS-BBBBBB a block of texts that one process of session S took; claims/SSSSSS-left-PPPP, one has closed it
    lock                 held while a job works on the run; in an object store lock/NNNNNN, see `leases`
    damaged/             what `onestep verify --drop` has set aside

A part whose results file is missing was never committed and is swept away when the run is next opened for writing.
This module takes numpy arrays and knows neither models nor devices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import Stranded, UserError
from onestep_jax.store.background_writer import Writer, persist
from onestep_jax.store.cleanup import sweep_away, warn_of_foreign
from onestep_jax.store.commits import Committer
from onestep_jax.store.listing import listing
from onestep_jax.store.locks import locked
from onestep_jax.store.names import FOLDERS, claim_name, left_name
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parquet import write_rows
from onestep_jax.store.reading import (
    FORMAT,
    check_identity,
    find_config,
    holds_texts,
    must_describe,
    read_config,
    read_results,
    read_summary,
)
from onestep_jax.store.results import Results, TextResult
from onestep_jax.store.saved_states import own_states, read_arrays
from onestep_jax.store.sessions import Session, begin_session, check_session, is_present, read_session
from onestep_jax.store.storage import create, make_folder, replace, writing

_OURS = {*FOLDERS, "config.json", "damaged", "lock", "session.json", "texts.parquet"}


class Run:
    """A run directory opened for writing by one process of a session; use `open_run` or `join_run`.

    Attributes:
      folder: the directory.
      config: its config.json.
      session: number, processes, size of a block.
      process: number of this process, from 0.
      processes: how many work on the run.
    """

    def __init__(self, folder: Path, session: Session, process: int, *, apart: bool = False):
        self.folder, self.session, self.process, self.processes = folder, session, process, session.processes
        self.config = read_config(folder)
        self._lock, self._arrays, self._writer = ExitStack(), Arrays(apart), Writer(folder)
        self._committer = Committer(folder, self.config, session, process, self._arrays)
        self._state: Future[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Write what was handed over, tell the other processes, then let other jobs work on the run.

        Raises:
          UserError: if the storage refused something; `Stranded` if the others could not be told.
        """
        with ExitStack() as ending:
            for close in (self._lock.close, self._arrays.close, self._writer.close, self._leave):
                ending.callback(close)
            self._writer.wait()

    def wait(self) -> None:
        """Return when everything handed over is on the disk.

        Raises:
          UserError: if the storage refused something of it, after some attempts; what was recorded before is intact.
        """
        self._writer.wait()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except Stranded:
            raise
        except UserError:
            if kind is None:  # else what ended the block says more
                raise

    def recorded(self) -> dict[str, dict[str, Any]]:
        """text_id → index, accuracy, steps and status of the texts that have a result."""
        return read_summary(self.folder)

    def accuracies(self) -> dict[str, float]:
        """text_id → accuracy of the texts that have a result."""
        return {text_id: row["accuracy"] for text_id, row in self.recorded().items()}

    def results(self) -> Results:
        """All recorded results, see `reading.read_results`, and those handed over."""
        self._writer.wait()
        return read_results(self.folder, self._arrays)

    def append(self, texts: Sequence[TextResult]) -> None:
        """Record results as one part: vectors and traces first, read back; the results file last. In the background.

        Raises:
          UserError: if the storage refused something handed over before.
        """
        if texts:
            texts = tuple(texts)
            self._writer.hand(
                lambda: self._committer.write_part(texts, new=len(texts)),
                lambda: self._committer.merge(ours=True),
            )

    def claim(self, block: int) -> bool:
        """Take a block of texts; of all processes of the session exactly one gets True."""
        check_session(self.folder, self.session)
        if self.processes == 1:
            return True
        claim = self.folder / "claims" / claim_name(self.session.number, block)
        return persist(self.folder, lambda: create(claim, self._signature))

    def others_left(self) -> bool:
        """Whether all other processes of the session have closed the run."""
        there = {path.name for path in listing(self.folder / "claims")}
        return all(self._left(process).name in there for process in range(self.processes) if process != self.process)

    def _left(self, process: int) -> Path:
        return self.folder / "claims" / left_name(self.session.number, process)

    @property
    def _signature(self) -> bytes:
        return f"process {self.process}\n".encode()

    def _leave(self) -> None:
        if self.processes == 1 or self._closed or not is_present(self.folder, self.session):
            return
        self._closed = True
        try:
            create(self._left(self.process), self._signature)
        except OSError as error:
            raise Stranded(f"{self.folder}: cannot write ({error}); the other processes are not told") from error

    # --- slots in flight ---

    def save_state(self, arrays: Mapping[str, np.ndarray], record: Any) -> None:
        """Keep the slots in flight of this process instead of those it saved before. In the background.

        Args:
          arrays: name → array.
          record: JSON; its "tasks" and "outcomes" (finished seeds) each have "texts" (indices), "seed" and "trace".

        Raises:
          UserError: if the storage refused something handed over before.
        """
        record = json.loads(json.dumps(record))  # as it is now, whatever becomes of it
        if self._state is not None:
            self._state.cancel()
        self._state = self._writer.hand(lambda: self._committer.write_state(arrays, record))

    def saved_states(self) -> list[tuple[str, Any]]:
        """(name, record) of the states of this run that all processes of earlier sessions left, newest first.

        Several may hold the same task. Those of the present session belong to processes that are at work on them.

        Raises:
          UserError: if one cannot be read.
        """
        states, _ = own_states(self.folder, self._committer.origin, self._arrays)
        return [(name, state.record) for name, state in states if not name.startswith(self.session.prefix)]

    def load_state_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a saved state.

        Raises:
          UserError: if they are damaged.
        """
        return read_arrays(self.folder, name, self._arrays)


def open_run(
    folder: Path,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    texts: Sequence[tuple[str, np.ndarray]],
    *,
    prefixes: Sequence[np.ndarray] = (),
    processes: int = 1,
    block: int = 1,
    apart: bool = False,
) -> Run:
    """Create a run directory, or open it to go on: a new session begins, of which this is process 0.

    Args:
      folder: the directory.
      identity: what must not change between sessions of the run.
      settings: what may change; recorded as of the first session.
      texts: (text_id, token ids) in source order.
      prefixes: token ids before the vectors of each text, where each has its own.
      processes: that are going to work on it; the others use `join_run`, once this has returned.
      block: texts that a process claims at a time; kept with the session.
      apart: save and load arrays in a process of its own, as is needed where this one has joined `jax.distributed`.

    Raises:
      UserError: if another process works on it, it holds results or saved work of another identity, or it cannot be
        written.
    """
    check_place(folder)
    with writing(folder), ExitStack() as lock:
        make_folder(folder)
        number = lock.enter_context(locked(folder))
        describe(folder, identity, settings, texts, prefixes)
        session = begin_session(folder, number, processes, block)
        sweep_away(folder)
        warn_of_foreign(folder)
        run = Run(folder, session, 0, apart=apart)
        run._committer.tidy()
        run._lock = lock.pop_all()
    return run


def check_place(folder: Path) -> None:
    """Refuse a folder in which no run can begin or go on; nothing is written.

    Raises:
      UserError: if it is no folder, or holds other files and no run, or a run that this version cannot read.
    """
    find_config(folder)
    found = {path.name.removesuffix(".tmp") for path in listing(folder)}
    if found - _OURS and "config.json" not in found:
        raise UserError(f"{folder}: not empty and no run directory (no config.json); give --run another folder")


def join_run(folder: Path, identity: Mapping[str, Any], process: int, *, apart: bool = False) -> Run:
    """Open a run directory as another process of the session that `open_run` has begun.

    Raises:
      UserError: if there is no such run or session, or the run is another one.
    """
    check_identity(folder, read_config(folder)["identity"], identity)
    session = read_session(folder)
    if session is None or not 0 < process < session.processes:
        expected = f"expected 1 to {session.processes - 1}" if session else "no session has begun"
        raise UserError(f"{folder}: no place for process {process} in the run; {expected}")
    return Run(folder, session, process, apart=apart)


def describe(
    folder: Path,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    texts: Sequence[tuple[str, np.ndarray]],
    prefixes: Sequence[np.ndarray],
) -> None:
    """Write the description of a run and its texts where they are missing or nothing was kept under another one.

    Texts first: whatever a kill leaves, the next call compares both again.
    """
    anew = must_describe(folder, identity)
    for name in FOLDERS:
        make_folder(folder / name)
    rows = [{"index": i, "text_id": name, "tokens": tokens} for i, (name, tokens) in enumerate(texts)]
    if prefixes:
        rows = [{**row, "prefix": prefix} for row, prefix in zip(rows, prefixes, strict=True)]
    if not holds_texts(folder, rows):
        write_rows(folder / "texts.parquet", rows)
    if anew:
        written = {"format": FORMAT, "identity": identity, "settings": settings}
        replace(folder / "config.json", (json.dumps(written, indent=2) + "\n").encode())

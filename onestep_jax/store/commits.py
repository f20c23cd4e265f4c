"""What one process commits to a run: parts and saved states, each under a new name, and small parts merged.

A `Run` hands these jobs to its background writer. Before each commit the session is compared with the present one, so a
stale writer sees the new session and stops.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.store.cleanup import delete_superseded
from onestep_jax.store.listing import each_of
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parts import count_texts, read_part, read_times, remove_part, write_part
from onestep_jax.store.reading import part_names, read_texts, shared_leaf
from onestep_jax.store.results import TextResult
from onestep_jax.store.saved_states import (
    Origin,
    origin,
    remove_state,
    run_digest,
    state_names,
    write_state,
)
from onestep_jax.store.sessions import Session, check_session

COMPACT_AT = 16  # small parts that are merged into one
SMALL = 1024  # rows below which a part counts as small


class Committer:
    """Writes parts and states of one process of a session. Only one thread uses it at a time.

    Args:
      folder: the run directory.
      config: its config.json.
      session: the session that the process belongs to.
      process: number of the process.
      arrays: how arrays are saved and loaded.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], session: Session, process: int, arrays: Arrays):
        self._folder, self._config, self._session, self._process = folder, config, session, process
        self._arrays, self._began, self._counter = arrays, time.monotonic(), itertools.count()
        self._prefix = f"{session.prefix}{process:04d}-"

    @functools.cached_property
    def origin(self) -> Origin:
        """What a saved state must come from to be one of this run."""
        return origin(self._config["identity"], read_texts(self._folder, self._config["identity"]))

    def write_part(self, texts: Sequence[TextResult], new: int) -> None:
        """Write a part; `new` is how many of its texts this session has fitted."""
        about = {"elapsed": str(self._elapsed), "new": str(new), "run": run_digest(self._config["identity"])}

        def write(name: str) -> None:
            shared = shared_leaf(self._config)
            write_part(self._folder, name, texts, shared, self._arrays, about=about, check=self._check)

        self._commit(write, remove_part)

    def write_state(self, arrays: Mapping[str, np.ndarray], record: Any) -> None:
        """Write a state, then delete those that this process saved before."""
        before = [name for name in state_names(self._folder) if name.startswith(self._prefix)]

        def write(name: str) -> None:
            write_state(self._folder, name, arrays, record, self._elapsed, self.origin, self._arrays, self._check)

        self._commit(write, remove_state)
        for name in before:
            remove_state(self._folder, name)

    def merge(self, *, ours: bool) -> None:
        """Merge small parts into a new one once there are enough, then delete them.

        A text is in two parts until the old ones are gone; readers count it once.

        Args:
          ours: merge the parts that this process wrote in this session; otherwise those of all others.
        """
        small = self._small(ours=ours)
        if len(small) < COMPACT_AT:
            return

        tokens = dict(read_texts(self._folder, self._config["identity"]))

        def read(name: str) -> tuple[list[TextResult], int]:
            texts = self._read(name, tokens)
            return texts, read_times(self._folder, name)[0] if name.startswith(self._session.prefix) else 0

        # A process of an earlier session that is still alive may be deleting some of them.
        parts = each_of(lambda: [name for name in part_names(self._folder) if name in small], read)
        texts = {text.text_id: text for held, _ in parts.values() for text in held}
        if texts:
            self.write_part(list(texts.values()), new=sum(new for _, new in parts.values()))
        for name in parts:
            remove_part(self._folder, name)

    def tidy(self) -> None:
        """Delete what newer parts and states replace, and merge small parts. No other process may be writing."""
        delete_superseded(self._folder, self.origin, self._arrays, self._is_whole)
        self.merge(ours=False)

    def _read(self, name: str, tokens: Mapping[str, np.ndarray]) -> list[TextResult]:
        return read_part(self._folder, name, tokens, shared_leaf(self._config), self._arrays)

    def _is_whole(self, name: str) -> bool:
        try:
            self._read(name, dict(self.origin.texts))
        except UserError:
            return False
        return True

    def _commit(self, write: Callable[[str], None], remove: Callable[[Path, str], None]) -> None:
        """Write something under a new name. After an error, delete what was written of it."""
        self._check()
        name = self._session.name(self._process, next(self._counter))
        try:
            write(name)
        except (OSError, ValueError):
            with suppress(OSError):
                remove(self._folder, name)
            raise

    def _check(self) -> None:
        check_session(self._folder, self._session)

    @property
    def _elapsed(self) -> float:
        """Seconds since this process began, by a clock that never goes back."""
        return round(time.monotonic() - self._began, 1)

    def _small(self, *, ours: bool) -> list[str]:
        """Small parts, oldest first: those of this process in this session, or all others."""

        def names_now() -> list[str]:
            return [name for name in part_names(self._folder) if name.startswith(self._prefix) == ours]

        counts = each_of(names_now, lambda name: count_texts(self._folder, name))
        return [name for name, count in counts.items() if count < SMALL]

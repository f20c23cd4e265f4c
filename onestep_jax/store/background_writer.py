"""A background thread that writes what it is handed, in order, while the devices go on."""

from __future__ import annotations

import concurrent.futures
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from onestep_jax.errors import Unreadable, UserError, one_line
from onestep_jax.store.storage import is_full, writing

_T = TypeVar("_T")
RETRIES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further attempt of a write that the storage refused
QUEUE = 8  # jobs that may wait; who hands over more waits with them, so that memory stays bounded


class Writer:
    """Does jobs one after the other. After one that failed for good no other is begun: no state without its parts."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "onestep-writer")
        self._jobs: list[Future[None]] = []
        self._error: BaseException | None = None
        self._warned = False

    def hand(self, *jobs: Callable[[], None]) -> Future[None]:
        """Have jobs done, each again after an OSError or ValueError; the future of the last, which can be cancelled.

        Raises:
          UserError: if a job of an earlier call was refused by the storage.
        """
        self._jobs = [waiting for waiting in self._jobs if not waiting.done()]
        if len(self._jobs) >= QUEUE:
            concurrent.futures.wait(self._jobs[:1])
        self._check()
        handed = [self._thread.submit(self._do, job) for job in jobs]
        self._jobs += handed
        return handed[-1]

    def wait(self) -> None:
        """Return when everything handed over is done.

        Raises:
          UserError: if something of it was refused by the storage.
        """
        concurrent.futures.wait(self._jobs)
        self._check()

    def close(self) -> None:
        """Do what was handed over, and end."""
        self._thread.shutdown()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _do(self, job: Callable[[], None]) -> None:
        if self._error is None:
            try:
                persist(self._folder, job, self._warn)
            except BaseException as error:
                self._error = error

    def _warn(self, said: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(said, stacklevel=2)


def persist(folder: Path, job: Callable[[], _T], warn: Callable[[str], None] = warnings.warn) -> _T:
    """What a job returns that writes; tried again where the storage of a run directory refuses it.

    A full disk is tried again without a word.

    Raises:
      UserError: if the storage refuses it to the last.
    """
    for pause in RETRIES:
        try:
            return job()
        except (OSError, ValueError) as error:
            if isinstance(error, UserError) and not isinstance(error, Unreadable):
                raise
            if not is_full(error):
                warn(f"{folder}: a write failed and is tried again ({one_line(error)})")
        time.sleep(pause)
    with writing(folder):
        return job()

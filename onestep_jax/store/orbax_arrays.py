"""Trees of arrays, by Orbax, in this process or in one beside it.

For an object store they are saved in a scratch folder and sent, so that one client and one permission do for all of a
run; what lies there is what Orbax reads from such an address.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.store.storage import fetch, is_local, remove, send

_ORBAX = threading.Lock()  # of two saves, or of a save and a load, in one process one breaks the other
_TENSORSTORE = "[tensorstore_spec="  # in every error of tensorstore


class Arrays:
    """Saves and loads trees of arrays.

    Args:
      apart: do so in a long-lived process beside this one. In a process that has joined `jax.distributed` Orbax saves
        nothing of its own and loads only in step with all others; the process beside it never joins.
    """

    def __init__(self, apart: bool = False):
        self._apart, self._pool = apart, None

    def save(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays and read them back.

        Raises:
          OSError, ValueError: if the storage refuses; tensorstore reports much of that as a ValueError.
        """
        remove(path)
        if is_local(path):
            self._call(_save, path, dict(arrays))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                self._call(_save, Path(scratch) / path.name, dict(arrays))
                send(Path(scratch) / path.name, path)
        back = self.load(path)
        for name, array in arrays.items():
            if not np.array_equal(back[name], array, equal_nan=array.dtype.kind == "f"):
                raise OSError(errno.EIO, f"{name} reads back differently from what was written", str(path))

    def load(self, path: Path) -> dict[str, np.ndarray]:
        """Read what `save` wrote.

        Raises:
          OSError, ValueError: if it cannot be read. A flipped bit in a value is not noticed here: nothing in the
            format sums values, so whoever saves keeps checksums.
        """
        if is_local(path):
            return self._call(_load, path)
        with tempfile.TemporaryDirectory() as scratch:
            fetch(path, Path(scratch) / path.name)
            return self._call(_load, Path(scratch) / path.name)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if not self._apart:
            return function(*args)
        if self._pool is None:
            from loky import ProcessPoolExecutor

            how = {"env": {"JAX_PLATFORMS": "cpu"}, "initializer": _begin_helper, "initargs": (os.getpid(),)}
            self._pool = ProcessPoolExecutor(max_workers=1, **how)
        try:
            return self._pool.submit(function, *args).result()
        except BrokenExecutor as error:
            self._pool = None
            raise OSError(errno.EIO, "the process that saves arrays has ended", str(args[0])) from error


def _begin_helper(parent: int) -> None:
    """Leave signals to the parent, which stops the helper when everything is saved; end where the parent is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = False  # vectors hardly shrink, and a flipped bit stays in its own row
    with _ORBAX, _quiet(), context, _by_plain_name(path) as name:
        ocp.save(name, dict(arrays))


def _load(path: Path) -> dict[str, np.ndarray]:
    from orbax.checkpoint import v1 as ocp

    with _ORBAX, _quiet() as said, _by_plain_name(path) as name:
        described: Any = ocp.metadata(name).metadata
        if described is None:
            reason = f": {said[-1]}" if said else ""
            raise ValueError(f"the description of the arrays cannot be read{reason}")
        target = {leaf: np.zeros(entry.shape, entry.dtype) for leaf, entry in described.items()}
        loaded: Any = ocp.load(name, target)
    return {leaf: np.asarray(array) for leaf, array in loaded.items()}


@contextlib.contextmanager
def _by_plain_name(path: Path) -> Iterator[str]:
    """A name of a path that Orbax reads as that path.

    It takes brackets and backslashes for patterns, "gs:" for an address, and refuses what is not UTF-8. A path with
    more than plain letters is reached by a link from a scratch folder.
    """
    whole = path.resolve()
    if re.fullmatch(r"[\w./ -]+", str(whole)) and str(whole).isascii():
        yield str(whole)
        return
    with tempfile.TemporaryDirectory(prefix="onestep-") as scratch:
        (Path(scratch) / "folder").symlink_to(whole.parent, target_is_directory=True)
        yield str(Path(scratch).resolve() / "folder" / whole.name)


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep Orbax from logging, traceback and all, what it also raises; what it would have logged."""
    _hush_what_comes_later()
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said.append(" ".join(record.getMessage().split()))
        return False

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "root")]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield said
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


@functools.cache
def _hush_what_comes_later() -> None:
    """Keep what a failed save leaves behind from being printed after the save has raised it.

    Callbacks of tensorstore come from other threads and may find the event loop of Orbax closed. Futures that Orbax did
    not wait for are named by asyncio when they are collected, which may be at the end of the process. So hook and
    filter stay for good.
    """
    usual = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    def wanted(record: logging.LogRecord) -> bool:
        left = "exception was never retrieved" in record.getMessage()
        return not (left and record.exc_info and _TENSORSTORE in str(record.exc_info[1]))

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(wanted)

"""The lock of a run directory: one writing job at a time, and who that is.

In a local folder it is the operating system's `flock`, which goes with the process that holds it, however that ends: a
lock file that is left over never blocks. What the file says of its owner serves people only. Elsewhere see `leases`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import asdict

from onestep_jax.errors import Damaged, UserError
from onestep_jax.store.leases import leased, leaseholder
from onestep_jax.store.listing import patiently
from onestep_jax.store.records import parse
from onestep_jax.store.sessions import SMALL, UNKNOWN, Owner, last_number, this_process
from onestep_jax.store.storage import is_local

PATIENCE = 0.5  # seconds; a reader that looks whether a lock is held has it for a moment


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a run directory; gives the number of the session to begin.

    Raises:
      UserError: if another process holds it, naming it and what to do.
      OSError: if the file system refuses.
    """
    path = folder / "lock"
    if not is_local(path):
        with leased(path, lambda: last_number(folder)) as number:
            yield number
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + PATIENCE
    try:
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise _busy(path, _owner(path, descriptor))
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(asdict(this_process())) + "\n").encode(), 0)
        yield last_number(folder) + 1
    finally:
        os.close(descriptor)


def check_free(folder: Path) -> None:
    """Refuse a local run directory that another process holds; nothing is written, and no lock is kept.

    Of a bucket only the waiting of `locked` tells whether the holder is alive.

    Raises:
      UserError: if another process holds it, naming it and what to do.
    """
    path, deadline = folder / "lock", time.monotonic() + PATIENCE
    while is_local(path) and (owner := holder(path)) is not None:
        if time.monotonic() > deadline:
            raise _busy(path, None if owner is UNKNOWN else owner)
        time.sleep(0.05)


def _busy(path: Path, owner: Owner | None) -> UserError:
    named = owner or "owner unknown"
    return UserError(f"{path.parent}: another process works on this run ({named}); {_cure(path, owner)}")


def holder(path: Path) -> Owner | None:
    """Who holds the lock, or None if nobody does; takes it from nobody and writes nothing."""
    if not is_local(path):
        return leaseholder(path)
    try:
        descriptor = patiently(path, lambda path: os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return None
    try:
        free = _locked(descriptor, fcntl.LOCK_SH)
        return None if free else _owner(path, descriptor) or UNKNOWN
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    return False


def _owner(path: Path, descriptor: int) -> Owner | None:
    """Whom the lock file names, None where it is damaged: the lock itself is that of the operating system."""
    try:
        return parse(os.pread(descriptor, SMALL, 0), Owner, path, "lock", "")
    except (Damaged, IsADirectoryError):
        return None


def _cure(path: Path, owner: Owner | None) -> str:
    if owner is None:
        return f"wait for it, or find it with `fuser {path}` and end it; on another host, stop it there"
    if owner.host != os.uname().nodename:
        gone = f"if that host is gone for good, delete {path}: should the other live on, it notices and stops"
        return f"wait for it or stop it there; {gone}"
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return f"that process is gone, so a child of it holds the lock: find it with `fuser {path}` and end it"
    except PermissionError:
        pass
    return f"wait for it, or end it with `kill {owner.pid}` (saves first) or, where it is stuck, `kill -9 {owner.pid}`"

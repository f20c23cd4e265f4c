"""The lock of a run directory in an object store, which has no locks of its own: a lease that its holder renews.

Lease objects are numbered and made by exclusive creation, so of several processes that want the next number one gets
it. The newest object counts. Its holder rewrites it every few seconds. A process that wants the lease watches the
object for a while, by its own clock, and takes the next number if nothing changes.

The number of the lease becomes that of the session. So no two sessions have the same number, and no two writers give
their parts the same names, however long a process stalls between taking the lease and beginning its session. This is a
fencing token. The rest is left to the comparison of sessions (`sessions.check_session`): a writer whose lease was taken
over sees another session and writes nothing more. What the heartbeat adds is that a second start of the same command
does not take over a live job.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import asdict

from onestep_jax.errors import Damaged, UserError
from onestep_jax.store.names import parse
from onestep_jax.store.records import parse as parse_json
from onestep_jax.store.sessions import SMALL, UNKNOWN, Owner, this_process
from onestep_jax.store.storage import create, entries, read_bytes, remove, replace

BEAT = 5.0  # seconds between two signs of life
LEASE = 30.0  # seconds without one after which a lease has run out
LOOK = 1.0  # seconds between looks at the lease of somebody else


class Lease(Owner, frozen=True):
    """The content of a lease: its holder, and how often it was renewed, −1 once it is given back."""

    beats: int


@contextlib.contextmanager
def leased(folder: Path, last: Callable[[], int]) -> Iterator[int]:
    """Hold the lease whose objects lie in `folder`; gives its number, which is higher than `last()`.

    Raises:
      UserError: if another process holds it, naming it and what to do.
      OSError: if the storage refuses.
    """
    ours, lease = this_process(), None
    while lease is None:
        newest = _newest(folder)
        if newest is not None:
            _await_end(newest)
        wanted = folder / f"{max(_number(newest), last()) + 1:06d}"
        if create(wanted, _content(ours, 0)):
            lease = wanted
    for older in _leases(folder):
        if _number(older) < _number(lease):
            remove(older)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, ours, done), name="onestep-lease", daemon=True)
    beating.start()
    try:
        yield _number(lease)
    finally:
        done.set()
        beating.join()
        with contextlib.suppress(OSError, ValueError):  # it runs out by itself
            replace(lease, _content(ours, -1))


def leaseholder(folder: Path) -> Owner | None:
    """Who has renewed the lease of late, by this machine's clock, or None."""
    newest = _newest(folder)
    try:
        if newest is None or _is_over(content := read_bytes(newest, SMALL)):
            return None
        return _owner(content) if time.time() - newest.stat().st_mtime < LEASE else None
    except FileNotFoundError:  # another has taken it over in this moment
        return UNKNOWN


def _newest(folder: Path) -> Path | None:
    return max(_leases(folder), key=_number, default=None)


def _leases(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if parse(path) is not None]


def _number(lease: Path | None) -> int:
    return int(lease.name) if lease is not None else 0


def _await_end(lease: Path) -> None:
    """Return once a lease is given back or has run out.

    Raises:
      UserError: if its holder renews it.
    """
    first, deadline, told = _read(lease), time.monotonic() + LEASE, False
    content = first
    while content is not None and not _is_over(content):
        if content != first:
            owner = _owner(content)
            cure = "wait for it, or stop it there"
            raise UserError(f"{lease.parent.parent}: another process works on this run ({owner}); {cure}")
        if time.monotonic() > deadline:
            return
        if not told:
            told = True
            waiting = f"waiting up to {LEASE:.0f} s for a sign of life of {_owner(content)}"
            warnings.warn(f"{lease.parent.parent}: {waiting}, whose lock is there", stacklevel=2)
        time.sleep(LOOK)
        content = _read(lease)


def _beat(lease: Path, ours: Owner, done: threading.Event) -> None:
    beats = 0
    while not done.wait(BEAT):
        beats += 1
        # What cannot be told now is told at the next beat, or the lease runs out. gcsfs also refuses by a ValueError.
        with contextlib.suppress(OSError, ValueError):
            replace(lease, _content(ours, beats))


def _content(owner: Owner, beats: int) -> bytes:
    return (json.dumps({**asdict(owner), "beats": beats}) + "\n").encode()


def _read(lease: Path) -> bytes | None:
    try:
        return read_bytes(lease, SMALL)
    except FileNotFoundError:
        return None


def _lease(content: bytes) -> Lease | None:
    """None for one that is damaged: it counts while it is rewritten, whatever it holds."""
    try:
        return parse_json(content, Lease, Path("lock"), "lease", "")
    except Damaged:
        return None


def _is_over(content: bytes) -> bool:
    lease = _lease(content)
    return lease is not None and lease.beats < 0


def _owner(content: bytes) -> Owner:
    return _lease(content) or UNKNOWN

"""Sessions of a run directory: who writes a run, with which libraries, and when that ends.

Each opening for writing is a session with a number. A stale writer, of an older session, sees the new one and stops.

Names of parts and states are SSSSSS-PPPP-NNNNNN (session, process, counter): no two writers ever choose the same, and
their order says which is newer, whatever clocks say.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from onestep_jax.errors import Damaged, UserError, redacted
from onestep_jax.store.names import age, committed, part_name
from onestep_jax.store.records import read_json
from onestep_jax.store.records.kinds import Positive, ProcessId
from onestep_jax.store.storage import replace

_FILE = "session.json"
SMALL = 2**16  # bytes of a file that says who is at work


class Owner(Struct, frozen=True):
    """Who holds a lock: process id, host, when it began (UTC) and its command line."""

    pid: ProcessId
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}, {self.command!r}"


UNKNOWN = Owner(0, "an unknown host", "an unknown time", "")


def this_process() -> Owner:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Owner(os.getpid(), os.uname().nodename, now, redacted(" ".join(sys.argv))[:300])


def versions() -> dict[str, Any]:
    """Versions of what decides the numbers, and the commit of a checkout."""
    names = ("onestep_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    return {"versions": {name: importlib.metadata.version(name) for name in names}, "commit": _commit(Path(__file__))}


def _commit(file: Path) -> str | None:
    """The commit that is checked out in the repository that tracks this file; None if no repository does.

    The file may stand below a repository of something else, and a process that git started has that one's variables.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=ours).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", file.name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


class Session(Struct, frozen=True):
    """One opening of a run directory for writing.

    Attributes:
      number: counted from 1.
      processes: that work on it.
      block: texts that a process claims at a time.
      pid, host, since, command: of the process that began it; `since` is in UTC and serves people only.
    """

    number: Positive
    processes: Positive
    block: Positive
    pid: ProcessId
    host: str
    since: str
    command: str

    @property
    def prefix(self) -> str:
        """What the names of its parts, states and claims begin with."""
        return f"{self.number:06d}-"

    def name(self, process: int, counter: int) -> str:
        return part_name(self.number, process, counter)


def read_session(folder: Path) -> Session | None:
    """The present or last session, or None before the first.

    Raises:
      Damaged: if the file is; the next session mends it.
      Unreadable: if the storage refuses the file.
    """
    try:
        return read_json(folder / _FILE, Session, "session", "the same onestep fit writes it again", SMALL)
    except FileNotFoundError:
        return None


def _whole_session(folder: Path) -> Session | None:
    """As `read_session`, None also where the file is damaged."""
    try:
        return read_session(folder)
    except Damaged:
        return None


def last_number(folder: Path) -> int:
    """Of the sessions so far, or 0: the highest in session.json and in the names of parts and states."""
    before = _whole_session(folder)
    names = committed(folder, "results") + committed(folder, "state")
    return max([before.number if before else 0, *(age(name)[0] for name in names)])


def begin_session(folder: Path, number: int, processes: int, block: int) -> Session:
    """Begin the session whose number the lock has given."""
    session = Session(number, processes, block, **asdict(this_process()))
    replace(folder / _FILE, (json.dumps(asdict(session), indent=2) + "\n").encode())
    return session


def is_present(folder: Path, ours: Session) -> bool:
    """Whether no other session has begun."""
    now = _whole_session(folder)
    return now is not None and now.number == ours.number


def check_session(folder: Path, ours: Session) -> None:
    """Let only the present session commit.

    Raises:
      UserError: if another has begun.
    """
    if not is_present(folder, ours):
        now = _whole_session(folder)
        other = f"process {now.pid} on {now.host}, session {now.number}" if now else f"{_FILE} is gone or damaged"
        raise UserError(
            f"{folder}: the run was taken over ({other}) from session {ours.number}; this process stops and writes "
            "nothing more; what it recorded before is intact"
        )

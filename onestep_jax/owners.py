"""Who works on a run directory, as locks and sessions tell people."""

from __future__ import annotations

import os
import sys
import time
from typing import NamedTuple


class Owner(NamedTuple):
    """Who holds a lock: process id, host, when it began (UTC) and its command line."""

    pid: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}, {self.command!r}"


UNKNOWN = Owner(0, "an unknown host", "an unknown time", "")


def this_process() -> Owner:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Owner(os.getpid(), os.uname().nodename, now, " ".join(sys.argv)[:300])

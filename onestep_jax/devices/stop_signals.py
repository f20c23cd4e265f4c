"""SIGTERM and SIGINT as a request to save and stop, for work that is saved now and then."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HEEDED = threading.Event()  # set at the first signal that was taken as a request, and for good


@contextmanager
def signals_caught() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets, so that the work can be saved and stop; a second one acts as usual.

    A signal that is ignored stays so, as `nohup` and a shell's `&` want it.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _frame: Any) -> None:
        # It stays in its place at the first signal: the command line listens in a thread of its own, which may look
        # only after this has run, and would take the usual handler for the one that the signal met.
        if asked.is_set():
            signal.signal(number, before[number])
            signal.raise_signal(number)
        HEEDED.set()
        asked.set()

    heeded = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[int, Any] = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

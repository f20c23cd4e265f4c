"""SIGINT and SIGTERM from the first moment of the command to its last: one line and exit status 130 or 143.

No exception is raised: one that comes up inside an import, a callback of JAX or a finaliser is lost or printed there.
The process ends on the spot, which loses nothing, since every file is written so that a kill leaves it whole. While the
main thread is in compiled code, such as XLA's compiler, Python runs no handler; so a thread reads the numbers of the
signals from a pipe and ends the process by itself.

A fit into a run directory puts a handler of its own in the place of this one, to save first. It is left alone at the
first signal, and so is what the command has to say once it has saved. A second signal ends the process whatever handler
is there. Once Python takes the interpreter down, when all work is done and told, it has no handlers: a signal kills the
process without a line, and a shell shows the same status.

This file is imported before all others, so it imports only what starts in milliseconds. A signal that comes earlier,
while the interpreter starts and this file is imported (a hundredth of a second each), is the interpreter's own affair:
SIGTERM kills the process, and so does SIGINT, or Python says KeyboardInterrupt with a traceback. Nothing was begun by
then, so nothing is lost.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False  # as in the package's __init__
if TYPE_CHECKING:
    from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
_CALLS = itertools.count()  # of `_end`


def end_by_signal() -> None:
    """Let SIGINT and SIGTERM end this process; one that is ignored stays so, as `nohup` and a shell's `&` want it."""
    _hold_standard_streams()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard,), name="onestep-signals", daemon=True).start()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _hold_standard_streams() -> None:
    """Open the null device where the caller closed a standard stream: else the next file, of a run, were written to."""
    while (opened := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(opened)


def _listen(heard: int) -> NoReturn:
    """End the process at a signal that nothing else handles, or that is not the first."""
    asked = False
    while True:
        for number in os.read(heard, 64):
            if number in ENDING and (asked or (signal.getsignal(number) is _end and not _heeded())):
                _end(number)
            asked = asked or number in ENDING


def _heeded() -> bool:
    """Whether a fit was asked to save; this thread may wake only when it has done so and put `_end` back."""
    heeded = getattr(sys.modules.get("onestep_jax.devices.stop_signals"), "HEEDED", None)  # importing it imports JAX
    return heeded is not None and heeded.is_set()


def _end(number: int, _frame: Any = None) -> NoReturn:
    """Say so and end the process; the handler of the main thread and the listening thread may both come here."""
    if next(_CALLS):
        time.sleep(1.0)  # the other one says it
        os._exit(128 + number)
    line = f"onestep: stopped by {signal.Signals(number).name}\n".encode()
    if os.isatty(2):
        line = _SHOW_CURSOR + b"\n" + line
    try:
        os.write(2, line)
    finally:
        os._exit(128 + number)

"""Several processes of one job: joining it, opening a run together, and waiting for each other at the end.

The runtime is JAX's own (`jax.distributed`). Processes of independent texts meet twice, when a run is opened and when
it ends; in between they do not talk to each other. If one process dies, JAX ends all of them. That is like a `kill -9`
of the job, and the same command resumes from what was saved.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from onestep_jax.errors import PROCESSES, Interrupted, Stranded, UserError, Whole, one_line
from onestep_jax.store.run import Run

# A process that has nothing left to do waits for the slowest. By default JAX would end the job five minutes after the
# first exit.
SHUTDOWN_SECONDS = 24 * 3600
JOIN_SECONDS = 300.0
TELL_SECONDS = 10.0  # a process that waits so long for the others says so
# How often a process that waits reads what the others have recorded: at most every two seconds, and for at most a tenth
# of the time, because a large run in an object store takes a while to read.
LOOK_SECONDS = 2.0
LOOK_SHARE = 0.1


def join_job(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    seconds: float = JOIN_SECONDS,
    say: Callable[[str], None] | None = None,
) -> None:
    """Join a job of several processes; to be called before any other use of JAX.

    The first three arguments are given, or none where JAX finds them out itself (Cloud TPU, GKE, Slurm).

    Args:
      coordinator: HOST:PORT of process 0.
      processes: how many.
      process: which one this is, from 0.
      seconds: to wait for the other processes.
      say: receives a line where they are not there at once.

    Raises:
      UserError: if one of the arguments is missing or wrong, or JAX cannot start.
      Stranded: if the other processes do not come. JAX then aborts this process a while later.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} missing: give all of {', '.join(given)}, or none where JAX finds out")
    if coordinator is not None and processes is not None and process is not None:
        _check_address(coordinator)
        PROCESSES.check("--processes", processes)
        Whole(0, processes - 1).check("--process", process)
        if process == 0:
            _check_port_is_free(coordinator)
    before = signal.getsignal(signal.SIGTERM)
    _initialize(coordinator, processes, process, seconds, say)
    # JAX has installed a handler of its own. It would swallow a SIGTERM that comes before a fit has something to save.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _check_address(coordinator: str) -> None:
    """Refuse what JAX would wait on in vain, or answer with an error of Python's."""
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or set(host) & set("/@ ") or not (port.isascii() and port.isdecimal()):
        raise UserError(f"--coordinator {coordinator}: expected HOST:PORT of process 0, such as 10.0.0.1:1234")
    Whole(1, 65535).check(f"--coordinator {coordinator}: port", int(port[:9]))


def _check_port_is_free(coordinator: str) -> None:
    """Refuse a port on which this host cannot listen; JAX would end in a segmentation fault."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2])), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise UserError(f"--coordinator {coordinator}: cannot listen there ({reason}); {_cure(coordinator)}") from error


def _initialize(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    seconds: float,
    say: Callable[[str], None] | None,
) -> None:
    """Start `jax.distributed` in a thread: where others do not come it aborts the process instead of raising."""
    errors: list[Exception] = []

    def start() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=math.ceil(2 * seconds) + 60,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except Exception as error:  # of JAX, its plugins and the cluster that it asks, each with kinds of its own
            errors.append(error)

    thread = threading.Thread(target=start, name="onestep-join", daemon=True)
    thread.start()
    told = min(TELL_SECONDS, seconds / 2)
    thread.join(told)
    if thread.is_alive() and say is not None:
        say(f"onestep: waiting for the other processes of the job, {seconds - told:g} s more at most")
    thread.join(seconds - told)
    if thread.is_alive():
        missing = f"not all of {processes} processes came" if process == 0 else f"no answer from {coordinator}"
        cure = f"start processes 0 to {(processes or 1) - 1}, each with the same --coordinator"
        raise Stranded(f"--distributed: cannot join the job ({missing} within {seconds:g} s); {cure}")
    if errors:
        raise UserError(
            f"--distributed: cannot join the job ({one_line(errors[0])}); {_cure(coordinator)}"
        ) from errors[0]


def _cure(coordinator: str | None) -> str:
    if coordinator is None:
        return "give --coordinator HOST:PORT --processes P --process I"
    return "process 0 needs a port of its own host that is free: give all processes another one"


def open_in_turn(first: Callable[[], Run], others: Callable[[], Run]) -> Run:
    """Open a run in process 0 (`first`), and then in the other processes (`others`).

    Raises:
      UserError: in every process, if process 0 could not open it.
    """
    if jax.process_count() == 1:
        return first()
    from jax.experimental import multihost_utils

    run: Run | None = None
    refused: UserError | None = None
    if jax.process_index() == 0:
        try:
            run = first()
        except UserError as error:
            refused = error
    opened = bool(multihost_utils.broadcast_one_to_all(np.int32(refused is None)))
    if refused is not None:
        raise refused
    if not opened:
        raise UserError("process 0 could not open the run and says why; this process stops, too")
    return run or others()


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Do what every process of the job does for itself; where one of them fails, all stop instead of waiting for it.

    Args:
      what: is done within, as in "could not …".

    Raises:
      UserError: in a process that did not fail itself, if another one did.
      Stranded: in one that failed and cannot tell the others, since its devices do not start.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if jax.distributed.is_initialized():
        done = _done_by_each(failed)
        if failed is None and not done.all():
            raise UserError(f"process {done.argmin()} could not {what} and says why; this process stops, too")
    if failed is not None:
        raise failed


def _done_by_each(failed: Exception | None) -> np.ndarray:
    """Whether each process has done it, (processes,) bool."""
    from jax.experimental import multihost_utils

    try:
        return np.ravel(multihost_utils.process_allgather(np.int32(failed is None))) == 1
    except Exception:
        if failed is None:
            raise
        raise Stranded(str(failed)) from failed


def meet(name: str) -> None:
    """Wait until every process of the job has come here."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def wait_for_others(
    run: Run, texts: int, stopping: Callable[[], bool], say: Callable[[Mapping[str, float]], None]
) -> None:
    """Wait until all texts of a run are recorded; called by a process that has nothing left to fit.

    Args:
      run: open in this process.
      texts: how many the run has.
      stopping: whether a signal has asked to stop.
      say: receives what is recorded, accuracies by text_id, after each look.

    Raises:
      Interrupted: if asked to stop, or if the other processes have left while texts are not recorded.
    """
    while True:
        began = time.monotonic()
        gone = run.others_left()  # read first: a process records everything before it leaves
        recorded = run.accuracies()
        say(recorded)
        if len(recorded) >= texts:
            return
        if gone or stopping():
            left = texts - len(recorded)
            raise Interrupted(f"{left} texts of {run.folder} are not done; the same command resumes them")
        time.sleep(max(LOOK_SECONDS, (time.monotonic() - began) * (1 / LOOK_SHARE - 1)))

"""Several processes of one job: joining it, opening a run together, and waiting for each other at the end.

The runtime is JAX's own (`jax.distributed`). Processes of independent texts meet twice, when a run is opened and when
it ends; in between each goes its own way. JAX takes a process that dies for the end of all: it is a `kill -9` of the
job, and the same command goes on from what was saved.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from onestep_jax.errors import Interrupted, UserError
from onestep_jax.store.run import Run

# A process that has nothing left to do waits for the slowest; JAX would end the job five minutes after the first exit.
SHUTDOWN_SECONDS = 24 * 3600
LOOK_SECONDS = 2.0  # at least, between looks at what the others have recorded
LOOK_SHARE = 0.1  # of the time, at most, goes into these looks: a large run in an object store takes a while to read


def join_job(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join a job of several processes; before any other use of JAX.

    Args:
      coordinator: HOST:PORT of process 0; without it, processes and process, JAX finds out (Cloud TPU, GKE, Slurm).
      processes: how many.
      process: which one this is, from 0.

    Raises:
      UserError: if something is missing, or the others do not come.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} missing: give all of {', '.join(given)}, or none where JAX finds out")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UserError(f"--process {process}: expected 0 to {processes - 1}")
    try:
        jax.distributed.initialize(coordinator, processes, process, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        cure = "give --coordinator HOST:PORT --processes P --process I" if coordinator is None else "start all of them"
        raise UserError(f"--distributed: cannot join the job ({reason}); {cure}") from error
    # JAX has put its own handler there, which would swallow a SIGTERM that comes before a fit has something to save.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def open_in_turn(first: Callable[[], Run], others: Callable[[], Run]) -> Run:
    """Open a run in process 0, and then in the others.

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
        raise UserError("process 0 could not open the run and says why; this one stops with it")
    return run or others()


def meet(name: str) -> None:
    """Wait until every process of the job has come here."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def wait_for_others(
    run: Run, texts: int, stopping: Callable[[], bool], say: Callable[[Mapping[str, float]], None]
) -> None:
    """Wait until all texts of a run are recorded; a process whose own are done calls it.

    Args:
      run: this process's.
      texts: how many the run has.
      stopping: whether a signal has asked to stop.
      say: told after each look what is recorded, accuracies by text_id.

    Raises:
      Interrupted: if asked to stop, or if the others have left with texts not recorded.
    """
    while True:
        began = time.monotonic()
        gone = run.others_left()  # before the look: what a process records, it records before it leaves
        recorded = run.accuracies()
        say(recorded)
        if len(recorded) >= texts:
            return
        if gone or stopping():
            left = texts - len(recorded)
            raise Interrupted(f"{left} texts of {run.folder} are not done; the same command goes on with them")
        time.sleep(max(LOOK_SECONDS, (time.monotonic() - began) * (1 / LOOK_SHARE - 1)))

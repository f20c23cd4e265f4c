"""Where the results of a fit go: into memory, or into a run directory from which the fit can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from onestep_jax.errors import Interrupted
from onestep_jax.fitting.slots import FitProblem
from onestep_jax.fitting.snapshot import SavedWork, pack
from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.fitting.work_queue import Group, Share
from onestep_jax.store.results import TextResult
from onestep_jax.store.run import Run

FLUSH_SECONDS = 10.0


class Recorder:
    """Keeps results in memory: nothing is saved, nothing is resumed, and a signal ends the process as usual.

    Attributes:
      results: that were kept and not yet recorded elsewhere, in the order in which they came.
      recorded: accuracies by text_id, of the texts that had a result before this session.
      share: the part of the work that this process takes.
    """

    def __init__(self) -> None:
        self.results: list[TextResult] = []
        self.recorded: Mapping[str, float] = {}
        self.share = Share()

    def claim(self, block: int) -> bool:
        """Take a block of work by its number; False if another process has it."""
        return True

    def in_flight(
        self, groups: Sequence[Group], problem: FitProblem, make_task: Callable[[Group, int], Task]
    ) -> tuple[list[Task], list[Outcome]]:
        """What earlier sessions saved of these groups, see `SavedWork.of`."""
        return [], []

    def keep(self, texts: Iterable[TextResult]) -> None:
        """Receive finished texts."""
        self.results.extend(texts)

    def flush_is_due(self) -> bool:
        """Whether results have waited long enough to be recorded."""
        return False

    def flush(self) -> Mapping[str, float]:
        """Record the results that were kept.

        Returns:
          Accuracies by text_id of what all processes have recorded; empty where no other process records.
        """
        return {}

    def save_is_due(self) -> bool:
        """Whether the slots in flight should be saved."""
        return False

    def save(self, tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> None:
        """Keep tasks with a saved slot and outcomes of unfinished groups instead of those saved before."""

    def finish(self) -> None:
        """Return when everything is recorded; nothing is in flight any more."""

    def stop_is_asked(self) -> bool:
        """Whether a signal has asked for the work to be saved and the fit to stop."""
        return False

    def stop(self) -> NoReturn:
        """End a fit that was asked to stop, after its work was saved."""
        raise AssertionError("a fit in memory is never asked to stop")


class RunRecorder(Recorder):
    """Records results in parts of a run directory, and the slots in flight as saved states.

    Processes that each take blocks of their own ("apart") claim them in the run, and each records what it finds.
    Processes in lockstep all do the same work, and only the first one records it.

    Args:
      run: open for writing.
      lockstep: whether the processes of the job run one program together.
      save_every: seconds between saves of the slots in flight.
      stop_is_asked: whether a signal has asked to stop.
    """

    def __init__(self, run: Run, *, lockstep: bool, save_every: float, stop_is_asked: Callable[[], bool]):
        super().__init__()
        self._run, self._save_every, self._stop_is_asked = run, save_every, stop_is_asked
        self._apart = run.processes > 1 and not lockstep
        self._writes = not lockstep or run.process == 0
        self._last_flush = self._last_save = time.monotonic()
        self.recorded = run.accuracies()
        self._saved = SavedWork(run.saved_states(), run.load_state_arrays)
        if self._apart:
            self.share = Share(process=run.process, processes=run.processes, block=run.session.block)

    def claim(self, block: int) -> bool:
        return self._run.claim(block) if self._apart else True

    def in_flight(
        self, groups: Sequence[Group], problem: FitProblem, make_task: Callable[[Group, int], Task]
    ) -> tuple[list[Task], list[Outcome]]:
        return self._saved.of(groups, problem, make_task)

    def flush_is_due(self) -> bool:
        return time.monotonic() - self._last_flush > FLUSH_SECONDS

    def flush(self) -> Mapping[str, float]:
        if self._writes:
            self._run.append(self.results)
        self.results, self._last_flush = [], time.monotonic()
        return self._run.accuracies() if self._apart else {}

    def save_is_due(self) -> bool:
        return time.monotonic() - self._last_save > self._save_every

    def save(self, tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> None:
        self._last_save = time.monotonic()
        if self._writes:
            arrays, record = pack(tasks, outcomes)
            self._run.save_state(arrays, record)

    def finish(self) -> None:
        if self._writes:
            self._run.save_state({}, {})
            self._run.wait()

    def stop_is_asked(self) -> bool:
        return self._stop_is_asked()

    def stop(self) -> NoReturn:
        """Wait until the saved work is on the disk.

        Raises:
          Interrupted: always.
        """
        self._run.wait()
        raise Interrupted(f"stopped; everything is saved in {self._run.folder}, the same command goes on from there")

"""How far a fit is, and the meter that counts it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a fit is.

    Attributes:
      texts: in the fit.
      solved: texts at accuracy 1.
      finished: texts with a result, solved or not.
      running: groups in slots; a group is one text unless texts share a vector.
      waiting: texts neither finished nor running.
      steps_per_second: gradient evaluations of one group, since the last report.
      seconds_left: estimate from the texts finished since this process began, or None before the first.
    """

    texts: int
    solved: int
    finished: int
    running: int
    waiting: int
    steps_per_second: float
    seconds_left: float | None


class Meter:
    """Counts finished texts, each once, and tells a callback how far the fit is.

    In a job of several processes it counts what this process knows of all of them.

    Args:
      texts: in the fit.
      group: texts of a group.
      tell: receives each report; None for nobody.
      finished_before: accuracies by text_id of the texts that earlier sessions finished; they count as finished, but
        not towards the speed.
    """

    def __init__(
        self,
        texts: int,
        group: int,
        tell: Callable[[Progress], None] | None,
        finished_before: Mapping[str, float],
    ):
        self._texts, self._group, self._tell = texts, group, tell
        self._finished: set[str] = set()
        self._solved = 0
        self.note(finished_before)
        self._finished_before = len(self._finished)
        self._began = self._reported = time.monotonic()

    def note(self, accuracies: Mapping[str, float]) -> None:
        """Count finished texts, accuracies by text_id; texts counted before are left out."""
        new = accuracies.keys() - self._finished
        self._finished |= new
        self._solved += sum(accuracies[text_id] == 1 for text_id in new)

    def report(self, running: int, steps: int) -> None:
        """Report with so many groups running, after so many steps since the last report."""
        now = time.monotonic()
        since, self._reported = now - self._reported, now
        if self._tell is None:
            return
        finished = len(self._finished)
        rate = (finished - self._finished_before) / max(now - self._began, 1e-9)
        progress = Progress(
            texts=self._texts,
            solved=self._solved,
            finished=finished,
            running=running,
            waiting=max(0, self._texts - finished - running * self._group),
            steps_per_second=steps / max(since, 1e-9),
            seconds_left=(self._texts - finished) / rate if rate else None,
        )
        self._tell(progress)

    def show_recorded(self, accuracies: Mapping[str, float]) -> None:
        """Count and report what all processes have recorded, when this one has nothing left to run."""
        self.note(accuracies)
        self.report(running=0, steps=0)

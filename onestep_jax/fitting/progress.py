"""How far a fit is, as it tells whoever watches."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a fit is.

    Attributes:
      texts: in the fit; solved, finished (solved or not), running and waiting ones among them.
      steps_per_second: gradient evaluations of one text, since the last report.
      seconds_left: estimate from the texts finished since this process began, or None before the first.
    """

    texts: int
    solved: int
    finished: int
    running: int
    waiting: int
    steps_per_second: float
    seconds_left: float | None

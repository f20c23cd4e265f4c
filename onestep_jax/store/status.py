"""How far a run is, read from its directory while it is going on: nothing is written and nobody's lock is taken."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from onestep_jax.errors import Damaged
from onestep_jax.store.locks import holder
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parts import read_times
from onestep_jax.store.reading import each_part, read_config, read_summary, read_texts
from onestep_jax.store.saved_states import origin, own_states, reached, warn_of_others
from onestep_jax.store.sessions import Owner, Session, read_session

ENDS = ("solved", "exhausted", "failed", "encoded", "refined")


@dataclasses.dataclass(frozen=True)
class Flight:
    """A text in flight, as last saved: place in the source, identity, seed, gradient evaluations made."""

    index: int
    text_id: str
    seed: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
      texts: of the run.
      recorded: text_id → index, accuracy, steps and status of those with a result.
      in_flight: unrecorded texts of which a resume goes on from saved steps.
      session: the present or last one.
      owner: the process that holds the lock, None if the run is not going.
      an_hour: texts recorded per hour of the session, None before the first; from the sessions' own stop-watches, so
        that setting a clock changes nothing.
    """

    texts: int
    recorded: dict[str, dict[str, Any]]
    in_flight: list[Flight]
    session: Session | None
    owner: Owner | None
    an_hour: float | None

    @property
    def left(self) -> int:
        """Texts without a result."""
        return self.texts - len(self.recorded)

    def counted(self, status: str) -> int:
        """Recorded texts of a status, see `ENDS`."""
        return sum(row["status"] == status for row in self.recorded.values())

    @property
    def ends(self) -> dict[str, int]:
        """Recorded texts by how they ended; what only an encoder makes is left out where there is none of it."""
        counts = {name: self.counted(name) for name in ENDS}
        return {name: count for name, count in counts.items() if count or name in ENDS[:3]}

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Recorded texts whose numbers stopped being finite."""
        return [row for row in self.recorded.values() if row["status"] == "failed"]

    @property
    def outlook(self) -> str:
        """What the same onestep fit would do."""
        if not self.left:
            return "nothing to do"
        going_on = f", {len(self.in_flight)} of them from where they were saved" if self.in_flight else ""
        return f"{self.left} texts to do{going_on}"


def read_status(folder: Path) -> Status:
    """Look at a run directory.

    Raises:
      UserError: if it is none, or damaged.
    """
    identity = read_config(folder)["identity"]
    texts = read_texts(folder, identity)
    order = [text_id for text_id, _ in texts]
    session, owner = _session(folder), holder(folder / "lock")
    states, others = own_states(folder, origin(identity, texts), Arrays())
    recorded = read_summary(folder)  # after the states, so that a text is never in both
    far: dict[tuple[tuple[int, ...], int], float] = {}
    for _, state in states:
        far |= {task: max(steps, far.get(task, 0)) for task, steps in reached(state.record).items()}
    flights = [
        Flight(index, order[index], seed, int(steps))
        for (texts, seed), steps in far.items()
        for index in texts
        if order[index] not in recorded and not math.isinf(steps)
    ]
    flights.sort(key=lambda flight: flight.index)
    seconds = {name: state.elapsed for name, state in states}
    warn_of_others(folder, others)
    return Status(len(order), recorded, flights, session, owner, session and _an_hour(folder, session, seconds))


def _session(folder: Path) -> Session | None:
    """The present or last session; None, with a warning, where its file is damaged: all else of a run is told."""
    try:
        return read_session(folder)
    except Damaged as error:
        warnings.warn(str(error), stacklevel=3)
        return None


def _an_hour(folder: Path, session: Session, seconds: dict[str, float]) -> float | None:
    """Texts per hour of a session; `seconds` are those at which its states were saved."""

    def read(name: str) -> tuple[int, float]:
        return read_times(folder, name) if name.startswith(session.prefix) else (0, 0.0)

    new, written = zip((0, 0.0), *each_part(folder, read), strict=True)
    elapsed = max([*written, *(spent for name, spent in seconds.items() if name.startswith(session.prefix))])
    return 3600 * sum(new) / elapsed if sum(new) and elapsed else None


def status_json(status: Status) -> dict[str, Any]:
    """What `onestep status --json` prints."""
    return {
        "texts": status.texts,
        "recorded": len(status.recorded),
        **status.ends,
        "failures": status.failures,
        "in_flight": [dataclasses.asdict(flight) for flight in status.in_flight],
        "texts_an_hour": status.an_hour,
        "session": status.session and asdict(status.session),
        "going": status.owner and asdict(status.owner),
        "left": status.left,
        "outlook": status.outlook,
    }

"""The work of one process: the groups of a fit, cut into blocks that processes claim whole, and the tasks that wait.

Every process cuts the same blocks and begins to claim at a place of its own, so that two processes rarely want the same
block. A process that has finished its own blocks claims those that are left. A single process has one block for each
padded length.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from onestep_jax.fitting.tasks import Task

CLAIMS = 64  # of a process in a sweep, about, at most: each is a file

Group: TypeAlias = tuple[int, ...]
"""Indices of the texts of a group."""


class WorkBlock(NamedTuple):
    """Groups of one padded length.

    Attributes:
      number: the same in all processes.
      groups: the groups.
    """

    number: int
    groups: tuple[Group, ...]


class Share(NamedTuple):
    """Which part of the work a process takes.

    Attributes:
      process: its number, from 0.
      processes: how many take blocks of the same run.
      block: groups of a block; None for all groups of a length.
    """

    process: int = 0
    processes: int = 1
    block: int | None = None


def block_size(groups: int, slots: int, processes: int) -> int:
    """Groups of a block: enough to fill the slots of a process, and no more than balance needs."""
    if processes == 1:
        return max(1, groups)
    return max(slots, -(-groups // (CLAIMS * processes)))


def cut(groups: Sequence[Group], padded: Sequence[int], size: int) -> dict[int, list[WorkBlock]]:
    """Blocks by padded length, longest first.

    Args:
      groups: all groups of the fit, in source order.
      padded: padded length of each group, in tokens.
      size: groups of a block; the last block of a length has what is left.
    """
    found: dict[int, list[WorkBlock]] = {}
    number = 0
    for positions in sorted(set(padded), reverse=True):
        members = [group for group, length in zip(groups, padded, strict=True) if length == positions]
        pieces = [tuple(members[first : first + size]) for first in range(0, len(members), size)]
        found[positions] = [WorkBlock(number=number + i, groups=piece) for i, piece in enumerate(pieces)]
        number += len(pieces)
    return found


def claim_order(blocks: Sequence[WorkBlock], process: int, processes: int) -> list[WorkBlock]:
    """The blocks in the order in which a process claims them."""
    first = len(blocks) * process // processes
    return [*blocks[first:], *blocks[:first]]


class WorkQueue:
    """Tasks of one padded length, in the order in which the engine takes them.

    When no task waits, the next block is claimed, until one has tasks for this process. The next seed of a group goes
    to the end. A task that the engine gives back is the next to be taken.

    Args:
      blocks: in the order in which they are claimed.
      claim: takes a block and answers with its tasks; none if another process has it or all of it is done.
    """

    def __init__(self, blocks: Iterable[WorkBlock], claim: Callable[[WorkBlock], Sequence[Task]]):
        self._unclaimed, self._claim = deque(blocks), claim
        self._waiting: deque[Task] = deque()

    @property
    def exhausted(self) -> bool:
        """Whether no task waits and no block is left to claim."""
        return not self._waiting and not self._unclaimed

    @property
    def resumable(self) -> list[Task]:
        """Waiting tasks that continue from a saved slot."""
        return [task for task in self._waiting if task.saved is not None]

    def claim_until_ready(self) -> bool:
        """Claim blocks until a task waits; whether one does."""
        while not self._waiting and self._unclaimed:
            self._waiting.extend(self._claim(self._unclaimed.popleft()))
        return bool(self._waiting)

    def take(self) -> Task | None:
        """Remove and return the next task, or None if there is none."""
        return self._waiting.popleft() if self.claim_until_ready() else None

    def upcoming(self, count: int) -> Iterator[Task]:
        """The next tasks that wait, at most `count`; no block is claimed for them."""
        return itertools.islice(self._waiting, count)

    def add(self, task: Task) -> None:
        """Put a task at the end."""
        self._waiting.append(task)

    def give_back(self, task: Task) -> None:
        """Put a task at the front."""
        self._waiting.appendleft(task)

"""Blocks: the groups of a fit in their order of work, cut into pieces that the processes of a job claim whole.

Every process cuts alike and begins at a place of its own, so that claims seldom meet; one that has nothing left goes on
with what nobody has claimed. A single process has one block for each padded length and asks nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

CLAIMS = 64  # of a process in a sweep, at most about so many: each is a file


class Block(NamedTuple):
    """Groups of one padded length.

    Attributes:
      number: the same in all processes.
      groups: indices of the texts of each.
    """

    number: int
    groups: tuple[tuple[int, ...], ...]


def block_size(groups: int, slots: int, processes: int) -> int:
    """Groups of a block: enough to fill the slots of a process, and no more than balance needs."""
    if processes == 1:
        return max(1, groups)
    return max(slots, -(-groups // (CLAIMS * processes)))


def cut(groups: Sequence[tuple[int, ...]], padded: Sequence[int], size: int) -> dict[int, list[Block]]:
    """Blocks by padded length, longest first.

    Args:
      groups: indices of the texts of each.
      padded: length of each group, in tokens.
      size: groups of a block; the last of a length has what is left.
    """
    found: dict[int, list[Block]] = {}
    number = 0
    for positions in sorted(set(padded), reverse=True):
        members = [group for group, length in zip(groups, padded, strict=True) if length == positions]
        pieces = [tuple(members[first : first + size]) for first in range(0, len(members), size)]
        found[positions] = [Block(number + i, piece) for i, piece in enumerate(pieces)]
        number += len(pieces)
    return found


def from_its_place(blocks: Sequence[Block], process: int, processes: int) -> deque[Block]:
    """The blocks in the order in which a process claims them."""
    turned = deque(blocks)
    turned.rotate(-(len(blocks) * process // processes))
    return turned

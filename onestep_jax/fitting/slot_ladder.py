"""How many slots: a halving ladder, so that a sweep needs few compiled programs and few slots stay idle at its end.

The widths of a sweep are S, S/2, S/4, … Fewer texts than slots begin on the widest rung that they fill. When nothing
waits and at most half of the slots are busy, the groups in flight move to a narrower rung, if that saves more work of
idle slots than compiling the narrower program costs. The decision depends on numbers of steps and operations, never on
a clock, so that the same run goes the same way every time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

# Floating-point operations that a device does while a program compiles, by its platform: about 10 s of a small CPU at
# 100 GFLOP/s; 30 s of an accelerator at a few hundred TFLOP/s.
COMPILING = {"cpu": 1e12}
COMPILING_ELSEWHERE = 1e16
STEPS_A_TOKEN = 8  # gradient evaluations that a text is taken to need before any has ended; `fast` takes 4 to 10


def rungs(slots: int, devices: int) -> list[int]:
    """Widths from the widest to one slot a device, each a multiple of the devices."""
    a_device = -(-slots // devices)
    found = [a_device]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return [devices * width for width in found]


def starting(ladder: Sequence[int], groups: int) -> int:
    """The widest rung that so many groups fill, or the narrowest."""
    return next((width for width in ladder if width <= groups), ladder[-1])


def shared_lengths(
    padded: Sequence[int], flops: Callable[[int], float], platform: str = "cpu", boundary: int | None = None
) -> list[int]:
    """Padded lengths of groups, after lengths of few groups have joined the next longer one.

    A length of its own costs a compiled program. Padding to a longer one costs operations at each step, in proportion
    to the number of groups. The lower of the two is chosen, from the longest length down, by counts alone.

    Args:
      padded: padded length of each group, in tokens.
      flops: operations of a step of a group of so many tokens.
      platform: of the devices.
      boundary: tokens that padding never leads a text across; None if there is no such number.
    """
    counts, joined = Counter(padded), {}
    longer: int | None = None
    for positions in sorted(counts, reverse=True):
        across = boundary is not None and longer is not None and positions <= boundary < longer
        if longer is not None and not across:
            more = counts[positions] * STEPS_A_TOKEN * positions * (flops(longer) - flops(positions))
            if more < COMPILING.get(platform, COMPILING_ELSEWHERE):
                joined[positions] = longer
                continue
        joined[positions] = longer = positions
    return [joined[positions] for positions in padded]


def narrower(
    ladder: Sequence[int], width: int, running: int, flops: float, steps: float, platform: str = "cpu"
) -> int | None:
    """The rung to move to when nothing waits, or None to stay.

    Args:
      ladder: of `rungs`.
      width: slots now.
      running: slots that hold a group.
      flops: operations of a step of one slot.
      steps: that the running groups are expected to take yet.
      platform: of the devices.
    """
    target = min(rung for rung in ladder if rung >= running)
    if 2 * target > width + 1:
        return None
    idle = (width - target) * flops * steps
    return target if idle > COMPILING.get(platform, COMPILING_ELSEWHERE) else None


class SlotLadder:
    """The widths that a sweep may run with, and the one that it runs with now.

    Each padded length begins on a rung of its own (`begin`) and may step down to narrower ones (`step_down`). A rung
    that the memory of the devices does not hold is left for the rest of the sweep (`leave`).

    Attributes:
      width: slots now.
    """

    def __init__(self, ladder: Sequence[int], platform: str):
        self._rungs, self._platform = list(ladder), platform
        self.width, self._flops = self._rungs[0], 0.0
        self._spent: list[int] = []

    def begin(self, groups: int, flops: float) -> None:
        """Take the rung for so many groups of a length, a step of which takes so many operations."""
        self.width, self._flops, self._spent = starting(self._rungs, groups), flops, []

    def note_spent(self, steps: int) -> None:
        """Note how many steps a group of this length took from a seed."""
        self._spent.append(steps)

    def step_down(self, running: int) -> bool:
        """Move to a narrower rung if that pays, when so many groups run and none waits; whether it did.

        Each running group is expected to take as many steps more as the ended ones took on average.
        """
        if not running or not self._spent:
            return False
        expected = sum(self._spent) / len(self._spent)
        found = narrower(self._rungs, self.width, running, self._flops, expected, self._platform)
        self.width = found or self.width
        return found is not None

    def leave(self) -> bool:
        """Leave the rung and all wider ones for good; False if there is no narrower one."""
        left = [rung for rung in self._rungs if rung < self.width]
        if not left:
            return False
        self._rungs, self.width = left, left[0]
        return True

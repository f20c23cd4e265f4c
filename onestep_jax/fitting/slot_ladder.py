"""How many slots: a halving ladder, so that a sweep needs few compiled programs and its tail few idle slots.

The widths of a sweep are S, S/2, S/4, … Fewer texts than slots begin on the widest rung that they fill. When nothing
waits and at most half of the slots are busy, the groups in flight move to a narrower rung, if the work that idle slots
would do is more than compiling the narrower program costs. The decision hangs on numbers of steps and operations, never
on a clock, so that the same run goes the same way every time.
"""

from __future__ import annotations

# Floating-point operations that a device does while a program compiles, by its platform: about 10 s of a small CPU at
# 100 GFLOP/s; 30 s of an accelerator at a few hundred TFLOP/s.
COMPILING = {"cpu": 1e12}
COMPILING_ELSEWHERE = 1e16


def rungs(slots: int, devices: int) -> list[int]:
    """Widths from the widest to one slot a device, each a multiple of the devices."""
    a_device = -(-slots // devices)
    found = [a_device]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return [devices * width for width in found]


def starting(ladder: list[int], groups: int) -> int:
    """The widest rung that so many groups fill, or the narrowest."""
    return next((width for width in ladder if width <= groups), ladder[-1])


def narrower(
    ladder: list[int], width: int, running: int, flops: float, steps: float, platform: str = "cpu"
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

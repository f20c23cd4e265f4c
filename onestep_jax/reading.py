"""Reading the parts and states of a run directory while other processes replace them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from onestep_jax.config import UserError

_T = TypeVar("_T")


def each_of(
    listing: Callable[[], list[str]], read: Callable[[str], _T], damaged: Callable[[UserError], _T] | None = None
) -> dict[str, _T]:
    """What `read` makes of each part or state of one listing, by name, in its order.

    Whoever replaces some of them commits the new one first and then deletes the old ones, each from its commit record
    on. So one that cannot be read and is no longer listed has been replaced, and the listing is read again, until all
    of one listing are read; one that is still listed is damaged. What has been read is kept meanwhile.

    Args:
      listing: names of those that are committed now.
      read: reads one; raises UserError where that cannot be.
      damaged: makes of the error what stands for a damaged one.

    Raises:
      UserError: that of a damaged one, without `damaged`.
    """
    done: dict[str, _T] = {}
    while True:
        names = listing()
        for name in names:
            if name in done:
                continue
            try:
                done[name] = read(name)
            except UserError as error:
                if name not in listing():
                    break
                if damaged is None:
                    raise
                done[name] = damaged(error)
        else:
            return {name: done[name] for name in names}

"""What a person can put right, and how it is said.

May import nothing of the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that a person can put right; the command line prints it as one line and exits with status 2."""


class Stranded(UserError):
    """A process cannot tell the others of its job that it ends, and must not wait for them."""


class Damaged(UserError):
    """What is there is not what this package writes there."""


class Unreadable(UserError):
    """The storage does not give what is there, so that nothing is known of it; in particular not that it is damaged."""


class Interrupted(Exception):
    """A fit was told to stop; its state is saved and the same call goes on from there."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint " (did you mean 'x'?)" for a mistyped name, or an empty string if nothing known is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first name in `given` that is not in `known`, naming the nearest.

    Raises:
      UserError: for an unknown name.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")


def check_least(least: int, **numbers: int) -> None:
    """Refuse the first number that is smaller than `least`.

    Raises:
      UserError: naming it.
    """
    for name, number in numbers.items():
        if number < least:
            raise UserError(f"{name} = {number}: expected at least {least}")

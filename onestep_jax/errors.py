"""What a person can put right, and how it is said.

May import nothing of the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

_SECRETS = (
    (re.compile(r"(\w://)[^\s/]*@"), r"\1***@"),  # a user and a password or token in an address
    (re.compile(r"\bhf_([A-Za-z0-9]{20,}|(oauth|jwt)_[\w.-]{20,})"), "hf_***"),  # a token of the hub
)
_KEPT_TOKEN = re.compile(r"^\s*\w*token\s*=\s*(\S+)", re.MULTILINE)  # in a list of several
SHOWN = 60  # characters of a wrong value that a message repeats


def redacted(text: str) -> str:
    """The text without passwords and tokens, for messages and records."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    for token in _hub_tokens():
        text = text.replace(token, "***") if len(token) > 7 else text  # a shorter one is a word of any sentence
    return text


def _hub_tokens() -> list[str]:
    """The tokens in the environment and in the files that `hf auth login` writes, whatever form they have."""
    told = os.environ.get
    caches = told("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = told("HF_HOME") or os.path.join(caches, "huggingface")
    path = os.path.expandvars(os.path.expanduser(told("HF_TOKEN_PATH") or os.path.join(home, "token")))
    several = _KEPT_TOKEN.findall(_small_file(os.path.join(os.path.dirname(path), "stored_tokens")))
    return [
        told("HF_TOKEN", "").strip(),
        told("HUGGING_FACE_HUB_TOKEN", "").strip(),
        _small_file(path).strip(),
        *several,
    ]


def _small_file(path: str) -> str:
    """The beginning of a file as text; nothing where there is none: a pipe is left to its reader."""
    try:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read(2**16).decode("utf-8", "replace")
    except (OSError, ValueError):
        pass
    return ""


class UserError(ValueError):
    """Input that a person can put right; the command line prints it as one line and exits with status 2.

    Passwords and tokens in its message are replaced.
    """

    def __init__(self, message: object = ""):
        super().__init__(redacted(str(message)))


class Stranded(UserError):
    """A process cannot tell the others of its job that it ends, and must not wait for them."""


class Damaged(UserError):
    """What is there is not what this package writes there."""


class Unreadable(UserError):
    """The storage does not give what is there, so that nothing is known of it; in particular not that it is damaged."""


class Interrupted(Exception):
    """A fit was told to stop; its state is saved and the same call goes on from there.

    Passwords and tokens in its message are replaced.
    """

    def __init__(self, message: object = ""):
        super().__init__(redacted(str(message)))


def one_line(error: Exception) -> str:
    """What an error says, without the specification that tensorstore adds."""
    first = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec=")[0]
    return f"{first[:300]}…" if len(first) > 300 else first or type(error).__name__


def shown(value: Any) -> str:
    """A wrong value as a message repeats it: in one line, and not all of it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"


def check_kind(expected: str, kinds: Any, **given: Any) -> None:
    """Refuse the first argument that is of none of these types.

    Args:
      expected: what to give, in words.
      kinds: as of `isinstance`.
      given: name of the argument → its value.

    Raises:
      UserError: naming it.
    """
    for name, value in given.items():
        if not isinstance(value, kinds):
            raise UserError(f"{name} = {shown(value)}, of type {type(value).__name__}: expected {expected}")


def check_list(expected: str, name: str, given: Any) -> list[Any]:
    """The entries of a list, an array or another iterable, but not the letters of a string.

    Raises:
      UserError: for anything else.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise UserError(f"{name} = {shown(given)}, of type {type(given).__name__}: expected {expected}")
    return list(given)


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
        if not isinstance(name, str):
            raise UserError(f"{what} {shown(name)}: expected a name; known: {', '.join(known)}")
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")


def check_least(least: int, **given: int) -> None:
    """Refuse the first number that is smaller than `least`.

    Raises:
      UserError: naming it.
    """
    for name, number in given.items():
        check_kind("a number", numbers.Real, **{name: number})
        if number < least:
            raise UserError(f"{name} = {number}: expected at least {least}")


@dataclasses.dataclass(frozen=True)
class Whole:
    """The whole numbers from `least` to `most`, and words such as "auto" that may stand for one."""

    least: int = 1
    most: int = 1_000_000
    words: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Refuse what is none of them.

        Raises:
          UserError: naming it.
        """
        if (said := self._against(value)) is not None:
            raise UserError(f"{name} = {shown(value)}: {said}")

    def parse(self, text: str) -> Any:
        """The number that a text is, or the word.

        Raises:
          UserError: if it is none of them.
        """
        plain = re.fullmatch(r"[+-]?[0-9]{1,40}", text)
        value = int(text) if plain else text
        if (said := self._against(value)) is not None:
            raise UserError(f"{shown(value)}: {said}")
        return value

    def _against(self, value: Any) -> str | None:
        if isinstance(value, str) and value in self.words:
            return None
        also = "".join(f", or {word!r}" for word in self.words)
        number = _whole(value)
        if number is None:
            return f"expected a whole number from {self.least:,} to {self.most:,}{also}"
        if number < self.least:
            return f"expected at least {self.least:,}{also}"
        return f"expected at most {self.most:,}{also}" if number > self.most else None


@dataclasses.dataclass(frozen=True)
class Real:
    """The finite numbers from `least` to `most`; with `above`, those greater than `least`; with `below`, less than
    `most`.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuse what is none of them.

        Raises:
          UserError: naming it.
        """
        if not self._has(value):
            raise UserError(f"{name} = {shown(value)}: expected {self}")

    def parse(self, text: str) -> float:
        """The number that a text is.

        Raises:
          UserError: if it is none of them.
        """
        number = float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) else math.nan
        if not self._has(number):
            raise UserError(f"{shown(text)}: expected {self}")
        return number

    def _has(self, value: Any) -> bool:
        try:
            number = math.nan if isinstance(value, bool | str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            return False
        low = number > self.least if self.above else number >= self.least
        high = number < self.most if self.below else number <= self.most
        return math.isfinite(number) and low and high

    def __str__(self) -> str:
        low = "" if self.least == -math.inf else f"{'above' if self.above else 'at least'} {self.least:g}"
        high = "" if self.most == math.inf else f"{'below' if self.below else 'at most'} {self.most:g}"
        return "a finite number" + ", " * bool(low or high) + " and ".join(filter(None, (low, high)))


def _whole(value: Any) -> int | None:
    """The value as an int, None if it is no whole number; numbers of numpy and JAX count, truth values do not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


# What the command line and the functions of the package take.
STEPS = Whole(1, 10**9)  # a device counts them in 32 bits
SEED = Whole(0, 2**32 - 1)
SEEDS = Whole(words=("auto",))
SLOTS = Whole(words=("auto",))
GROUP = Whole(words=("all",))
MOST_TEXTS = Whole(1, 2**16)  # in a forward pass
COUNT = Whole(1, 10**9)
TOKEN = Whole(0, 2**31 - 1)  # its id; which of them a model has is checked elsewhere
ROOM = Whole(0, 10**9)  # tokens
SIZE = PROCESSES = Whole()
PAUSE = Real(0)  # seconds
DURATION = Real(0, above=True)  # seconds
RATE = Real(0, above=True)
MARGIN = Real(0, 1000)  # logits
WEIGHT = Real(0, 10**6)  # of a loss

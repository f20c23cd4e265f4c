"""Reading a run directory while other processes replace parts and states, and the storage may refuse for a moment."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from onestep_jax.errors import Unreadable, UserError, one_line
from onestep_jax.store.storage import entries, is_local, read_through

_T = TypeVar("_T")
PAUSES = (0.1, 0.4)  # seconds before each further attempt of a read that the storage refused
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NOTHING = "nothing is there"
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP)


def patiently(path: Path, read: Callable[[Path], _T]) -> _T:
    """What `read` makes of a file or folder, tried again where the storage refuses it.

    What fails twice although every byte of it can be read is not what it should be: that error is `read`'s own.

    Raises:
      Unreadable: if the storage refuses to the last.
    """
    refused: OSError | None = None
    for attempt, pause in enumerate((*PAUSES, 0.0)):
        try:
            return read(path)
        except UserError:
            raise
        except Exception as error:
            refused = _refusal(path, error)
            if refused is None and (attempt or _is_absent(error)):
                raise
        if refused is not None:
            time.sleep(pause)
    assert refused is not None
    reason = refused.strerror or one_line(refused)
    cure = "nothing is known to be damaged: make it readable and run the same command again"
    raise Unreadable(f"{refused.filename or path}: cannot be read ({reason}); {cure}") from refused


def _refusal(path: Path, error: Exception) -> OSError | None:
    """The refusal of the storage behind an error; pyarrow, Orbax and tensorstore may each call it what they like."""
    if isinstance(error, OSError) and error.errno is not None and not _is_absent(error):
        return error
    try:
        read_through(path)
    except OSError as found:
        return None if _is_absent(found) else found
    return None


def _is_absent(error: Exception) -> bool:
    """Whether an error says that nothing of the kind is there, or can be."""
    return isinstance(error, _ABSENT) or (isinstance(error, OSError) and error.errno in _IMPOSSIBLE)


def no_folder(path: Path) -> str:
    """Why a path is no folder, empty if it is one; in an object store, where folders are only names, always empty.

    Raises:
      Unreadable: if the file system does not say.
    """
    if not is_local(path):
        return ""
    try:
        found = patiently(path, os.stat)
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    except OSError as error:
        return error.strerror or one_line(error)
    except ValueError:
        return "no file can have this name"
    if stat.S_ISDIR(found.st_mode):
        return ""
    return "it is a file" if stat.S_ISREG(found.st_mode) else "it is a device, pipe or socket"


def listing(folder: Path) -> list[Path]:
    """Files and folders in a folder, none if it is not there.

    Raises:
      Unreadable: if the storage refuses to the last.
    """
    return patiently(folder, entries)


def each_of(
    names_now: Callable[[], list[str]], read: Callable[[str], _T], failed: Callable[[str, UserError], _T] | None = None
) -> dict[str, _T]:
    """What `read` makes of each part or state of one listing, by name, in its order.

    Whoever replaces some of them commits the new one first and then deletes the old ones, each from its commit record
    on. So one that cannot be read and is no longer listed has been replaced, and the listing is read again, until all
    of one listing are read; one that is still listed is at fault. What has been read is kept meanwhile.

    Args:
      names_now: names of those that are committed now.
      read: reads one; raises UserError where that cannot be.
      failed: makes of name and error what stands for one at fault.

    Raises:
      UserError: that of one at fault, without `failed`.
    """
    done: dict[str, _T] = {}
    while True:
        names = names_now()
        for name in names:
            if name in done:
                continue
            try:
                done[name] = read(name)
            except UserError as error:
                if name not in names_now():
                    break
                if failed is None:
                    raise
                done[name] = failed(name, error)
        else:
            return {name: done[name] for name in names}

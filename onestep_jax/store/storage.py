"""Writing and reading single files so that a kill leaves each either as it was or as it should be.

A path is a local one, or by an address such as gs://bucket/folder one of an object store, where a file is written whole
by nature, folders are only names, and nothing can be renamed or locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from onestep_jax.errors import UserError, check_kind, one_line


def run_path(address: str | Path) -> Path:
    """Where a run directory is: a local path, or for an address with "://" a `upath.UPath`, which has its methods.

    Raises:
      UserError: if it is no path, an address that storages take for a pattern, or one that no installed library knows.
    """
    if isinstance(address, str | os.PathLike) and "://" not in str(address):
        if not str(address):
            raise UserError("'': expected a run directory; give . for the working folder")
        return Path(address)
    if not hasattr(address, "fs"):
        check_kind("a path or an address", str, run=address)
    if set(str(address)) & set("*?["):  # what is read, copied and deleted would be what matches it: other runs
        raise UserError(f"{address}: *, ? and [ in an address are patterns to object stores; give a name without them")
    if hasattr(address, "fs"):
        return cast(Path, address)  # of `upath` already
    # Else gcsfs asks by gRPC what kind of bucket it is, and waits a minute where it is not allowed to.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        from fsspec import get_filesystem_class
        from upath import UPath

        get_filesystem_class(str(address).partition("://")[0])
        path = UPath(address, use_listings_cache=False)  # other processes write there as well
        path.fs  # noqa: B018, finds the library
    except (ImportError, OSError, ValueError) as error:
        cure = "for gs:// install onestep_jax[gcs], for others the fsspec library of that storage"
        raise UserError(f"{address}: cannot open such an address ({one_line(error)}); {cure}") from error
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Whether a path is of this machine's file system, and not of an object store."""
    return isinstance(path, Path)


def check_writable(path: Path) -> None:
    """Make the folder of a file and find out whether the file can be written; it stays as it was.

    Raises:
      UserError: if it cannot.
    """
    with writing(path):
        make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass


def read_bytes(path: Path, most: int) -> bytes:
    """The first bytes of a file, at most so many.

    Raises:
      OSError: if it cannot be read.
    """
    with _plain_errors(path), path.open("rb") as file:
        return file.read(most)


def replace(path: Path, content: bytes, check: Callable[[], None] | None = None) -> None:
    """Write a file whole: to a neighbour, to the disk, then renamed into place; in an object store at once.

    `check` is called before it appears; if it raises, or somebody removes the neighbour meanwhile, the file stays as it
    was.
    """
    if not is_local(path):
        _put(path, content, check or (lambda: None))
        return
    neighbour = path.with_name(path.name + ".tmp")
    try:
        with neighbour.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check()
        os.replace(neighbour, path)
    except BaseException:
        with contextlib.suppress(OSError):
            neighbour.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _put(path: Path, content: bytes, check: Callable[[], None]) -> None:
    """Write an object; where `check` raises only afterwards, take it back."""
    check()
    with _plain_errors(path):
        path.write_bytes(content)
    try:
        check()
    except UserError:
        remove(path)
        raise


def create(path: Path, content: bytes = b"") -> bool:
    """Make a file; False if it was there already. Of several callers, each with a content of its own, one gets True."""
    try:
        if is_local(path):
            _create_local(path, content)
        else:
            with _plain_errors(path):
                _store_of(path).pipe_file(_key(path), content, mode="create")
    except FileExistsError:
        # A client that got no answer asks again, and then meets what it has made itself.
        return bool(content) and not is_local(path) and path.read_bytes() == content
    return True


def _create_local(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:  # a full disk may have room for a name
            path.unlink()
            raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it; in an object store there is nothing to make."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, by name; none if it is not there.

    Raises:
      OSError: if the storage refuses.
    """
    try:
        if is_local(folder):
            return sorted(folder.iterdir(), key=lambda path: path.name)
        # Not `iterdir`: it asks `isdir` first, to which the libraries answer no whatever the storage refuses.
        with _plain_errors(folder):
            keys = {key.rstrip("/") for key in _store_of(folder).ls(_key(folder), detail=False)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.EIO, one_line(error), str(folder)) from error  # a refusal, see `listing.patiently`
    # Where an object has the name of the folder, it is among what is in it.
    names = {key.rpartition("/")[2] for key in keys - {_key(folder).rstrip("/")}}
    return [folder / name for name in sorted(names)]


def read_through(path: Path) -> None:
    """Read every byte of a file, or of all files in a folder.

    Raises:
      OSError: if the storage refuses one, or there is nothing.
    """

    def refuse(error: OSError) -> None:
        raise error

    if not is_local(path):
        with _plain_errors(path):
            _store_of(path).cat(_key(path), recursive=True)
        return
    walk = os.walk(path, onerror=refuse) if path.is_dir() else [(path.parent, [], [path.name])]
    for place in [Path(top, name) for top, _, names in walk for name in names]:
        with place.open("rb") as file:
            while file.read(2**20):
                pass


def remove(path: Path) -> None:
    """Delete a file, or a folder with all in it, if it is there."""
    if not is_local(path):
        with _plain_errors(path), contextlib.suppress(FileNotFoundError):
            _store_of(path).rm(_key(path), recursive=True)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Give a file or folder another name, which must be free.

    In an object store this copies and then deletes. The `mv` of fsspec is not used: for some storages (older gcsfs is
    one) it also copies the names of folders. Those are no objects, so it stops with FileNotFoundError.
    """
    if is_local(path):
        os.replace(path, target)
        return
    with _plain_errors(path):
        _store_of(path).copy(_key(path), _key(target), recursive=bool(entries(path)))
    remove(path)


def send(folder: Path, target: Path) -> None:
    """Copy what is in a local folder into a folder of an object store.

    Raises:
      OSError: if the storage refuses.
    """
    with _plain_errors(target):
        # The "/" means what is in the folder; without it fsspec makes a folder in a target that exists already.
        _store_of(target).put(f"{folder}/", _key(target), recursive=True)


def fetch(source: Path, folder: Path) -> None:
    """Copy what is in a folder of an object store into a local folder.

    Raises:
      OSError: if it cannot be read; FileNotFoundError if it is not there.
    """
    with _plain_errors(source):
        _store_of(source).get(f"{_key(source)}/", str(folder), recursive=True)


def _store_of(path: Path) -> Any:
    """The fsspec file system of a path in an object store."""
    return cast(Any, path).fs


def _key(path: Path) -> str:
    return cast(Any, path).path


@contextlib.contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Make an OSError of what the library of an object store raises, each having kinds of its own."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        if is_local(path):
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {one_line(error)}", str(path)) from error


_FULL = (errno.ENOSPC, errno.EDQUOT)
_CURES = {
    _FULL: "free some space",
    (errno.ENOENT,): "make the folder that is missing",
    (errno.EROFS,): "give a place that is not read-only",
    (errno.EACCES, errno.EPERM): "allow writing there, or give another place",
    (errno.ENAMETOOLONG,): "give a shorter name",
    (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY): "move away what is in the way, or give another place",
}


def is_full(error: Exception) -> bool:
    """Whether it says that a disk, or one's share of it, is full; tensorstore says so in words."""
    return (isinstance(error, OSError) and error.errno in _FULL) or any(os.strerror(no) in str(error) for no in _FULL)


def refusal(folder: Path, error: Exception) -> UserError:
    """One clear line for what the storage said, with the cure that fits."""
    number = errno.ENOSPC if is_full(error) else error.errno if isinstance(error, OSError) else None
    reason = "the disk is full" if number == errno.ENOSPC else one_line(error)
    cure = next((cure for numbers, cure in _CURES.items() if number in numbers), "see that the place can be written")
    intact = f"everything recorded before is intact; {cure} and run the same command again"
    return UserError(f"{folder}: cannot write ({reason}); {intact}")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a refusal of the storage into one clear line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
        raise refusal(folder, error) from error

"""Compiled programs kept on disk between processes, by JAX's persistent compilation cache."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import jax
import zstandard

VARIABLE = "ONESTEP_COMPILATION_CACHE"  # a folder, or "off"
LIMIT = 2**31  # bytes; beyond it JAX deletes the least recently used programs
WORTH_KEEPING = 0.1  # seconds of compiling; at JAX's default of 1 only the step would be kept, of a fit's many programs

_ENTRY, _USED = "-cache", "-atime"  # endings of JAX's files: a program, and when it was last used
_HEALED, _HEALING = ".healed", ".healing"  # their times are when the last healing began, and when one under way did

# Setting of JAX → its default, and our value, which is used only while the setting has its default.
_CHANGED = {
    "jax_compilation_cache_max_size": (-1, LIMIT),
    "jax_persistent_cache_min_compile_time_secs": (1.0, WORTH_KEEPING),
}


def cache_folder() -> Path | None:
    """The folder that programs are kept in unless JAX has one; None if `ONESTEP_COMPILATION_CACHE` is "off"."""
    wanted = os.environ.get(VARIABLE)
    if wanted == "off":
        return None
    if wanted:
        return Path(wanted)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onestep_jax" / "xla"


def given_folder() -> str | None:
    """The folder that JAX is configured with, None without one."""
    return _setting("jax_compilation_cache_dir")


def use_cache() -> None:
    """Turn the cache on, unless it is switched off or JAX is configured with a folder (`JAX_COMPILATION_CACHE_DIR`).

    A folder that cannot be written makes JAX warn; programs are then compiled as if there were no cache.
    """
    folder = cache_folder()
    if folder is None or given_folder() is not None:
        return
    with suppress(OSError, filelock.Timeout):  # then it is healed by a later process
        heal(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, (default, ours) in _CHANGED.items():
        if _setting(name) == default:
            jax.config.update(name, ours)


def heal(folder: Path, patience: float = 10.0) -> None:
    """Remove what a full disk, a killed process or another way of compressing left in a cache.

    JAX never replaces an entry that it cannot read. An entry without the file that says when it was used, or that file
    alone, makes it refuse all further ones. Entries are read that are no older than the last healing.

    Args:
      folder: of the cache; nothing happens if it is not there.
      patience: seconds to wait for another process.

    Raises:
      OSError: if the folder cannot be written.
      filelock.Timeout: if another process holds the cache.
    """
    if not folder.is_dir():
        return
    marker, began = folder / _HEALED, folder / _HEALING
    with filelock.FileLock(folder / ".lockfile", timeout=patience):  # JAX's own lock on the cache
        began.touch()  # times are compared of files only: the system's clock may run ahead of the file system's
        healed = marker.stat().st_mtime_ns if marker.exists() else 0
        entries = {path.name.removesuffix(_ENTRY): path for path in folder.glob(f"*{_ENTRY}")}
        used = {path.name.removesuffix(_USED): path for path in folder.glob(f"*{_USED}")}
        for key, path in entries.items():
            if key not in used or (path.stat().st_mtime_ns >= healed and not _is_whole(path)):
                path.unlink()
        for key, path in used.items():
            if key not in entries or not entries[key].exists():
                path.unlink()
        began.replace(marker)


def _is_whole(entry: Path) -> bool:
    """Whether JAX can unpack an entry; where `zstandard` is installed it packs with it."""
    try:
        zstandard.ZstdDecompressor().decompress(entry.read_bytes())
    except zstandard.ZstdError:
        return False
    return True


def _setting(name: str) -> Any:
    """Value of a JAX setting, from the environment or `jax.config.update`."""
    return getattr(jax.config, name)

"""Compiled programs kept on disk between processes, by JAX's persistent compilation cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

VARIABLE = "ONESTEP_COMPILATION_CACHE"  # a folder, or "off"
LIMIT = 2**31  # bytes; beyond it JAX deletes the least recently used programs
WORTH_KEEPING = 0.1  # seconds of compiling; at JAX's default of 1 only the step would be kept, of a fit's many programs

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
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, (default, ours) in _CHANGED.items():
        if _setting(name) == default:
            jax.config.update(name, ours)


def _setting(name: str) -> Any:
    """Value of a JAX setting, from the environment or `jax.config.update`."""
    return getattr(jax.config, name)

"""Compiled programs kept on disk between processes, by JAX's persistent compilation cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

VARIABLE = "ONESTEP_COMPILATION_CACHE"  # a folder, or "off"
LIMIT = 2**31  # bytes, beyond which the programs used least recently are deleted
WORTH_KEEPING = 0.1  # seconds of compiling; by JAX's default, 1, only steps would be kept, of a fit's many programs

# What JAX is told where nobody told it otherwise: setting → its default, and what takes its place.
_CHANGED = {
    "jax_compilation_cache_max_size": (-1, LIMIT),
    "jax_persistent_cache_min_compile_time_secs": (1.0, WORTH_KEEPING),
}


def cache_folder() -> Path | None:
    """Where programs are kept by default, or None if `ONESTEP_COMPILATION_CACHE` is "off"."""
    wanted = os.environ.get(VARIABLE)
    if wanted == "off":
        return None
    if wanted:
        return Path(wanted)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onestep_jax" / "xla"


def given_folder() -> str | None:
    """The folder that JAX has been told of."""
    return _setting("jax_compilation_cache_dir")


def use_cache() -> None:
    """Turn the cache on, unless JAX has been told of one (`JAX_COMPILATION_CACHE_DIR`) or it is off.

    A folder that cannot be written costs a warning of JAX and nothing else.
    """
    folder = cache_folder()
    if folder is None or given_folder() is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, (default, ours) in _CHANGED.items():
        if _setting(name) == default:
            jax.config.update(name, ours)


def _setting(name: str) -> Any:
    """What JAX is told, from the environment or by `jax.config.update`."""
    return getattr(jax.config, name)

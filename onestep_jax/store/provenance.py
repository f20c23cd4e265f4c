"""Where a result comes from: versions of the libraries, and the commit of a checkout."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any


def versions() -> dict[str, Any]:
    """Versions of what decides the numbers, and the commit of a checkout."""
    names = ("onestep_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {"versions": versions, "commit": None}
    return {"versions": versions, "commit": commit.stdout.strip()}

"""Seconds from a checkpoint's files to arrays on the device, and of plain reading by safetensors; files in the cache.

`experiments/studies/loading.py` measures more: memory, several devices, a fresh process for each reading.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from onestep_jax.bench.models import bytes_of
from onestep_jax.bench.timing import interleaved, record, spread
from onestep_jax.errors import UserError
from onestep_jax.model.checkpoint import default_dtype, load_model
from onestep_jax.model.gguf import is_gguf
from onestep_jax.model.hub import locate, shards


def bench_load(
    source: str = "default", *, repeats: int = 5, dtype: str | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Time `load_model` and reading every tensor with safetensors, in turn.

    Args:
      source: folder, hub id or "default".
      repeats: timed loads of each way.
      dtype: that the weights are cast to.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per way.

    Raises:
      UserError: for a GGUF file.
    """
    dtype, folder = dtype or default_dtype(), locate(source)
    if is_gguf(folder):
        raise UserError(
            f"{folder}: a GGUF file, which safetensors cannot read for comparison; give a checkpoint folder"
        )

    def ours() -> Any:
        model = load_model(folder, dtype=dtype, tokenizer=False)
        return jax.block_until_ready(model.params)

    stored = sum(path.stat().st_size for path in shards(folder))
    size = bytes_of(load_model(folder, dtype=dtype, tokenizer=False))
    say(f"{stored / 1e6:.4g} MB in {len(shards(folder))} files, {size / 1e6:.4g} MB in {dtype}")
    seconds = interleaved({"onestep_jax": ours, "safetensors": lambda: _read_plainly(folder)}, repeats)
    rows: list[dict[str, Any]] = [{"way": way} | spread("seconds", found) for way, found in seconds.items()]
    for row in rows:
        row["GB/s of the files"] = stored / 1e9 / row["seconds median"]
    ours_, theirs = (row["seconds median"] for row in rows)
    settings = {"model": source, "repeats": repeats, "dtype": dtype, "stored bytes": stored, "bytes": size}
    return record(
        "load", settings, rows, ratios={"speed of onestep_jax over safetensors": theirs / ours_}, seconds=seconds
    )


def _read_plainly(folder: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint as a NumPy array."""
    from safetensors import safe_open

    tensors = {}
    for path in shards(folder):
        with safe_open(path, framework="numpy") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return tensors

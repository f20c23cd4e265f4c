"""What the training of an encoder costs: tokens per second, with and without corrections; share of the ceiling."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from onestep_jax.bench.models import subject
from onestep_jax.bench.timing import interleaved, matmul, record, spread
from onestep_jax.encoder.design import Design
from onestep_jax.encoder.recipe import Recipe
from onestep_jax.encoder.training import State, Trainer
from onestep_jax.encoder.windows import Pool
from onestep_jax.model.cost import step_flops
from onestep_jax.model.decoder import Model, parameter_shapes

TOKENS = 100_000  # random ones, to draw windows from


def bench_encoder(
    source: str = "default",
    *,
    length: int = 16,
    batch: int = 64,
    corrections: int = 4,
    repeats: int = 5,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time updates of the reader alone, with corrections, and with corrections to first order.

    Args:
      source: see `models.subject`.
      length: tokens of a window.
      batch: windows of an update.
      corrections: learned steps that an update unrolls.
      repeats: timed updates of each way.
      dtype: of the frozen weights; by default float32 on a CPU, else bfloat16.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per way. The share of the ceiling counts what the mathematics needs: see `flops`.
    """
    model = subject(source, dtype)
    ways = {
        "reader": (0, False),
        f"{corrections} corrections": (corrections, False),
        f"{corrections} corrections, first order": (corrections, True),
    }
    updaters = {name: Updater(model, length, batch, count, first) for name, (count, first) in ways.items()}
    ceiling, operations = matmul(model.dtype)
    say(f"{len(updaters)} ways, {batch} windows of {length} tokens")
    seconds = interleaved({**updaters, "matrix product": ceiling}, repeats)
    most = operations / statistics.median(seconds.pop("matrix product"))
    rows: list[dict[str, Any]] = []
    for name, (count, first) in ways.items():
        spent = statistics.median(seconds[name])
        work = batch * flops(model, length, count, first)
        rows.append(
            {"way": name}
            | spread("ms an update", seconds[name], 1e3)
            | {"tokens per second": batch * length / spent, "of the ceiling": work / spent / most}
        )
    settings = {"model": source, "length": length, "batch": batch, "corrections": corrections, "repeats": repeats}
    plain, whole, first = (row["ms an update median"] for row in rows)
    ratios = {"corrections over the reader": whole / plain, "first order over second order": first / whole}
    return record("encoder", settings, rows, ratios=ratios, seconds=seconds, ceiling=most)


class Updater:
    """Updates of an encoder on random tokens; a call makes one."""

    def __init__(self, model: Model, length: int, batch: int, corrections: int, first_order: bool):
        tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=TOKENS)
        pool = Pool(tokens, np.array([TOKENS]))
        recipe = Recipe(updates=10**6, batch=batch, growth=0.0, reading=0.0, first_order=first_order)
        self._trainer = Trainer(model, Design(length=length, corrections=corrections), recipe, pool, pool)
        self._state: State = self._trainer.begin()
        self._kind = recipe.update(1, self._trainer.design)  # of the greatest length

    def __call__(self) -> None:
        self._state, loss, _ = self._trainer.step(self._state, self._kind)
        jax.block_until_ready(loss)


def flops(model: Model, length: int, corrections: int, first_order: bool) -> int:
    """Operations that an update needs for one window.

    The reader goes forward and backward with gradients of its weights: 6 for each weight of a block and token. The
    decoder goes forward and backward to its inputs, `cost.step_flops`, for the last vectors and for each correction; a
    gradient that is differentiated once more costs as much again forward, and twice as much backward.
    """
    blocks = {path: shape for path, shape in parameter_shapes(model.config).items() if path.startswith("block_")}
    read = 6 * (length + 2) * sum(math.prod(shape) for shape in blocks.values() if len(shape) == 2)
    decoded = step_flops(model.config, length)
    return read + decoded * (1 + corrections * (1 if first_order else 3))

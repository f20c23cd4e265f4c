"""Solved texts per hour of a whole sweep, each way in a process of its own, from its start to its last result.

    onestep_jax     texts in slots that are refilled, and halved towards the end (preset `fast`)
    lockstep        the same engine and preset in batches, each of which waits for its slowest text
    one at a time   the same engine and preset, one slot
    PyTorch         the protocol of the paper, one text at a time, on the first few texts

Start-up, compiling and loading are included, and no program is taken from a cache on disk. The process of PyTorch
also imports this package, which takes a few seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from onestep_jax.bench import WAYS
from onestep_jax.bench.process import in_a_process, solved_an_hour
from onestep_jax.bench.pytorch import Fitted, Reference
from onestep_jax.bench.timing import record
from onestep_jax.devices.placement import Pmap
from onestep_jax.errors import check_known
from onestep_jax.fitting import PRESETS, fit, resolve, run_plan
from onestep_jax.model.checkpoint import default_dtype
from onestep_jax.model.decoder import Model
from onestep_jax.model.untrained import load_any
from onestep_jax.store.results import TextResult
from onestep_jax.texts.corpora import load_tokens


def bench_sweep(
    source: str = "default",
    *,
    texts: str | Sequence[str] = "gen",
    count: int = 64,
    length: int = 32,
    steps: int = 5000,
    slots: int | str = "auto",
    preset: str = "fast",
    ways: Sequence[str] = WAYS,
    reference_texts: int = 4,
    repeats: int = 1,
    dtype: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the ways over the same texts, one after the other.

    Args:
      source: folder, hub id or "default".
      texts: source of the texts, see `corpora.load_tokens`; several sources give their texts in turn.
      count: texts of all sources together.
      length: tokens of each.
      steps: budget of a text, in gradient evaluations.
      slots: texts at a time in the first two ways, or "auto".
      preset: of all ways but PyTorch, which follows the paper.
      ways: which of `WAYS` take part.
      reference_texts: how many texts PyTorch gets, the first ones.
      repeats: how often each way runs.
      dtype: of the weights.
      seed: of the texts.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per way and turn, and ratios of solved texts per hour over all turns.
    """
    check_known("way", ways, WAYS)
    check_known("preset", [preset], PRESETS)
    dtype = dtype or default_dtype()
    model = load_any(source, dtype=dtype)
    sources = [texts] if isinstance(texts, str) else list(texts)
    tokens = texts_in_turn(model, sources, count=count, length=length, seed=seed)
    settings = {
        "model": source,
        "texts": sources,
        "count": count,
        "length": length,
        "steps": steps,
        "slots": slots,
        "preset": preset,
        "dtype": dtype,
        "seed": seed,
    }
    rows = []
    for turn in range(repeats):
        for way in ways:
            given = tokens[:reference_texts] if way == "PyTorch" else tokens
            found = in_a_process(solve, {**settings, "way": way, "tokens": given})
            rows.append({"way": way, "turn": turn, **found})
            say(f"{way}: {found['solved']} of {found['texts']} solved in {found['seconds']:.0f} s")
    return record("sweep", settings, rows, ratios=solved_an_hour(rows))


def texts_in_turn(model: Model, sources: list[str], *, count: int, length: int, seed: int) -> list[list[int]]:
    """Texts of the sources, one of each in turn, so that every batch is mixed."""
    shares = [len(range(first, count, len(sources))) for first in range(len(sources))]
    drawn = [
        iter(load_tokens(model, source, count=share, length=length, seed=seed))
        for source, share in zip(sources, shares, strict=True)
        if share
    ]
    return [next(drawn[i % len(drawn)]).tolist() for i in range(count)]


def solve(task: dict[str, Any]) -> dict[str, Any]:
    """Fit the texts of a task in its way; returns plain numbers."""
    run = _torch if task["way"] == "PyTorch" else _ours
    fits, seconds = run(task)
    return {**summary(fits), "seconds of fitting": seconds}


def summary(fits: Sequence[Fitted]) -> dict[str, Any]:
    """What became of texts, in plain numbers."""
    steps = [fitted.steps for fitted in fits]
    solved = sum(fitted.solved for fitted in fits)
    return {"texts": len(fits), "solved": solved, "steps mean": sum(steps) / len(steps), "steps": steps}


def _torch(task: dict[str, Any]) -> tuple[list[Fitted], float]:
    """The paper's protocol; what became of each text, and the seconds of fitting."""
    reference = Reference(task["model"], task["dtype"])
    began = time.perf_counter()
    fits = [reference.fit(ids, task["steps"], seed) for seed, ids in enumerate(task["tokens"])]
    return fits, time.perf_counter() - began


def _ours(task: dict[str, Any]) -> tuple[list[Fitted], float]:
    """One of our ways; what became of each text, and the seconds of fitting."""
    model = load_any(task["model"], dtype=task["dtype"])
    began = time.perf_counter()
    if task["way"] == "lockstep":
        results = _lockstep(task, model)
    else:
        alone = task["way"] == "one at a time"
        results = fit(
            model,
            task["tokens"],
            preset=task["preset"],
            steps=task["steps"],
            slots=1 if alone else task["slots"],
            placement=Pmap(jax.local_devices()[:1]) if alone else "auto",
        )
    fits = [Fitted(solved=text.accuracy == 1, steps=text.steps) for text in results]
    return fits, time.perf_counter() - began


def _lockstep(task: dict[str, Any], model: Model) -> list[TextResult]:
    """Batches one after the other, each until its last text has ended; slots are neither refilled nor halved."""
    plan = resolve(
        model, task["tokens"], preset=task["preset"], steps=task["steps"], slots=task["slots"], placement=Pmap()
    )
    results = []
    for first in range(0, len(plan.ids), plan.ladder[0]):
        rows = slice(first, first + plan.ladder[0])
        batch = dataclasses.replace(plan, tokens=plan.tokens[rows], ids=plan.ids[rows], ladder=plan.ladder[:1])
        results += run_plan(batch)
    return results

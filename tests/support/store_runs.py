"""Run directories made of nothing, and fits that are interrupted, for the tests of the store."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from onestep_jax import Results, TextResult, fit
from onestep_jax.store.names import committed
from onestep_jax.store.results import Trial
from onestep_jax.store.run import Run, open_run
from onestep_jax.tokens import text_ids

IDENTITY = {"model": "abc", "scheme": {"arrangement": "one-step", "share": None, "group": 1}, "seed": 0}
SETTINGS = {"model": "default", "slots": 4}


def results(count: int, shared: bool = False, width: int = 4) -> list[TextResult]:
    """Results of so many texts; arrays of more than a kilobyte lie in the store as they are, smaller ones do not."""
    rng = np.random.default_rng(count)
    m = rng.normal(size=width).astype(np.float32)
    made = []
    for i in range(count):
        trace = np.array([[10, 2.5, 0.5], [17, 0.25, 1.0]])
        path = {name: rng.normal(size=(2, width)).astype(np.float32) for name in "em"} if i % 2 else None
        trial = Trial(0, "solved", 1.0, 0.25, 17, 16, trace, np.arange(3, dtype=np.int32), path)
        vectors = {
            "e": rng.normal(size=width).astype(np.float32),
            "m": m if shared else rng.normal(size=width).astype(np.float32),
        }
        tokens = np.arange(i, i + 3, dtype=np.int32)
        text_id = text_ids([tokens])[0]
        nats = np.array([np.nan, 0.5, i], np.float32)
        numbers = (1.0, 3, 0.25, 17, 16, 1.5, 0, "solved", 0.5 + i)
        made.append(TextResult(i, text_id, tokens, vectors, tokens.copy(), nats, *numbers, (trial,)))
    return made


def opened(folder: Path, texts: list[TextResult], identity: dict = IDENTITY, **how) -> Run:
    return open_run(folder, identity, SETTINGS, [(text.text_id, text.tokens) for text in texts], **how)


def same(ours: Results, theirs: list[TextResult]) -> None:
    assert [text.text_id for text in ours] == [text.text_id for text in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for field in dataclasses.fields(TextResult):
            if field.name not in ("vectors", "trials"):
                np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
        for name in b.vectors:
            np.testing.assert_array_equal(a.vectors[name], b.vectors[name])
        for one, other in zip(a.trials, b.trials, strict=True):
            np.testing.assert_array_equal(one.trace, other.trace)
            assert (one.path is None) == (other.path is None)
            if one.path is not None:
                for name in "em":
                    np.testing.assert_array_equal(one.path[name], other.path[name])
            np.testing.assert_array_equal(one.first_hit, other.first_hit)
            assert (one.seed, one.status, one.steps) == (other.seed, other.status, other.steps)


def task(index: int, steps: int, seed: int = 0) -> dict:
    """What the record of a saved state says of a text in flight."""
    return {"texts": [index], "seed": seed, "trace": [[steps, 0.5, 0.25]]}


# --- whole fits ---


class Enough(Exception):
    pass


def interrupted(model, texts, run, **how):
    """Begin a fit and end it once it has saved what is in flight."""

    calls, deadline = [], time.monotonic() + 60

    def stop(progress):
        calls.append(progress)
        if len(calls) > 2:  # after each chunk it is saved, in the background
            while not committed(run, "state"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise Enough

    with pytest.raises(Enough):
        fit(model, texts, run=run, preset="paper", steps=600, slots=4, save_every=0.0, progress=stop, **how)
    assert committed(run, "state")


def finished(model, texts, run, **how):
    return fit(model, texts, run=run, preset="paper", steps=600, slots=4, **how)

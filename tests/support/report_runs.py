"""Runs for the tests of the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from onestep_jax.report.inputs import FittedRun
from onestep_jax.store.reading import read_config, read_results
from onestep_jax.store.run import open_run


def copy_run(source: Path, target: Path, *, recorded: int | None = None, **changes) -> Path:
    """A run directory with the texts of another: all planned, the first `recorded` recorded, settings changed."""
    config, results = read_config(source), read_results(source)
    texts = [(text.text_id, text.tokens) for text in results]
    with open_run(target, config["identity"], config["settings"] | changes, texts) as run:
        run.append(results.texts[:recorded])
    return target


def read(folder: Path, tokenizer=None, **changes) -> FittedRun:
    """A run as the report reads it, without a look for its tokenizer."""
    results = read_results(folder)
    made = FittedRun(folder.name, folder, read_config(folder), results, len(results), tokenizer)
    return dataclasses.replace(made, **changes)

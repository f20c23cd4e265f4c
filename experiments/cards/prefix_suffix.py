"""A suffix from its prefix: how many more tokens two vectors hold behind the text's own beginning.

    onestep experiment prefix_suffix --model HuggingFaceTB/SmolLM2-135M --texts excerpts:FILE

The paper's outlook is an encoder that maps a prefix to vectors for its suffix. Here nothing is encoded. The question is
how much of a suffix two fitted vectors must still hold when the model sees the prefix. The prefix is frozen text before
them: [p_1 … p_P] [e] [m]×(N−1). A piece of text is cut in two; the second part is the suffix, and its capacity is the
longest beginning that comes out without an error (in tokens, and in nats under the model run autoregressively) behind

    true     the first part itself: what it makes likely need not be in the vectors
    other    the first part of another piece: the same kind of text, which says nothing of this suffix
    bos      the model's BOS alone

H_LM is given the prefix, so it is smaller for the same tokens behind the true one. If the vectors hold a fixed number
of nats, the true prefix lets out more tokens and the same nats.

Writes prefix_suffix.csv (a row a prefix), prefix_suffix_texts.csv (a row a text and prefix) and prefix_suffix.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onestep_jax import OneStep
from onestep_jax.analysis.capacity import search
from onestep_jax.analysis.text_capacity import Capacity
from onestep_jax.experiment.study import Study
from onestep_jax.model.likelihood import text_nats
from onestep_jax.prototokens.prefixes import prefix_tokens

KINDS = ("true", "other", "bos")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `before` is the length of a prefix in tokens."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    texts: str = "pg19"
    count: int = 10
    before: int = 32
    lengths: tuple[int, ...] = (8, 11, 16, 22, 32, 45, 64, 90, 128)
    threshold: float = 1.0
    preset: str = "fast"
    steps: int = 2000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of a real model, or seconds."""
    if smoke:
        return Config("default", "demo", count=2, before=3, lengths=(2, 4), steps=60)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=10, lengths=(8, 11, 16, 22, 32, 45))


def run(config: Config, study: Study) -> None:
    """Search the capacity of every suffix behind every kind of prefix."""
    longest = max(config.lengths)
    pieces = study.texts(config.texts, config.count, config.before + longest, config.seed)
    suffixes, own = [ids[config.before :].tolist() for ids in pieces], [ids[: config.before].tolist() for ids in pieces]
    bos = prefix_tokens(study.model, "bos").tolist()
    prefixes = {"true": own, "other": own[1:] + own[:1], "bos": [bos] * len(own)}
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        nats = [one.nats for one in text_nats(study.model, suffixes, prefixes=prefixes[kind])]
        table = search(
            study.model,
            suffixes,
            config.lengths,
            run=study.run_folder(kind),
            scheme=OneStep(),
            prefixes=prefixes[kind],
            threshold=config.threshold,
            progress=study.progress,
            preset=config.preset,
            steps=config.steps,
            seed=config.seed,
        )
        found = table.capacities(threshold=config.threshold, nested=True)
        rows += [_row(kind, text, one, nats[text]) for text, one in enumerate(found)]
    study.table("prefix_suffix_texts", rows)
    study.table("prefix_suffix", [_summary(rows, kind, longest) for kind in KINDS])
    _draw(study, rows)


def _row(kind: str, text: int, found: Capacity, nats: np.ndarray) -> dict[str, Any]:
    """One suffix behind one kind of prefix."""
    row = {"prefix": kind, "text": text, "tokens": found.tokens, "nats": float(nats[: found.tokens].sum())}
    return row | {"nats per token of the suffix": float(nats.mean())}


def _summary(rows: Sequence[Mapping[str, Any]], kind: str, longest: int) -> dict[str, Any]:
    own = [row for row in rows if row["prefix"] == kind]
    summary: dict[str, Any] = {"prefix": kind, "texts": len(own)}
    for name in ("tokens", "nats", "nats per token of the suffix"):
        values = np.array([row[name] for row in own], float)
        summary |= {f"{name} mean": values.mean(), f"{name} std": values.std(), f"{name} median": np.median(values)}
    return summary | {"texts at the longest length": sum(row["tokens"] == longest for row in own)}


def _draw(study: Study, rows: Sequence[Mapping[str, Any]]) -> None:
    """Each text's capacity behind the three prefixes, in tokens and in nats."""
    with study.figure("prefix_suffix", columns=2) as axes:
        for axis, name, unit in zip(axes, ("tokens", "nats"), ("tokens N", "H_LM given the prefix, nats"), strict=True):
            table = {kind: [row[name] for row in rows if row["prefix"] == kind] for kind in KINDS}
            for values in zip(*table.values(), strict=True):
                axis.plot(KINDS, values, color="0.7", linewidth=0.8)
            axis.plot(KINDS, [np.mean(values) for values in table.values()], "o-", color="tab:blue", label="mean")
            axis.set(ylabel=unit, ylim=(0, None))
            axis.legend(frameon=False, fontsize="small")

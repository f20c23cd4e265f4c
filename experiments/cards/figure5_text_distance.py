"""Figure 5: how far apart are two learned `e`, against how far apart their texts are?

    onestep experiment figure5_text_distance --model meta-llama/Llama-3.2-1B

The fits are those of Figure 6: continuations of contexts by the model, `m` shared by all texts and seeds. For pairs of
different texts, after the same context or after different ones, the cosine distance of the `e` is drawn against the
distance of the texts: token-level, the cosine distance of TF-IDF vectors, and semantic, the cosine distance of sentence
embeddings by all-MiniLM-L6-v2. The paper: 50 contexts of PG-19, 10 continuations of each.

    pairs at equal distance of the texts       the paper
    same context, beside different contexts    slightly nearer

The semantic part needs the extra `analysis` and the encoder, downloaded or in the folder that `--encoder` names; where
it cannot be had, or with `--encoder none`, a line says so and the tables hold the token-level part alone.
`--runs runs/experiments/figure6_distances/runs/share-m` reads the fits of Figure 6 instead of making them again; all
settings of the texts must be those of that run.

Writes figure5.csv (a row a bin of text distances), figure5_gap.csv (a row a measure: by how much the same context is
nearer at equal text distance, which is within a bin, and its 95 % interval by drawing contexts, and texts within them,
with replacement) and figure5.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax import OneStep
from onestep_jax.analysis.distances import (
    Gap,
    Relations,
    cosine_distances,
    learned_vectors,
    nearer_by,
    plain_ids,
    relation_pairs,
)
from onestep_jax.analysis.similarity import Bin, binned, in_bins, semantic_distances, token_distances
from onestep_jax.errors import UserError, check_known
from onestep_jax.experiment.study import Study
from onestep_jax.store.reading import read_results
from onestep_jax.store.results import Results
from onestep_jax.texts import continued_texts
from onestep_jax.tokens import as_text

NAMES = {"same_context": "same context", "different_contexts": "different contexts"}
MEASURES = {"token": "token-level (TF-IDF)", "semantic": "semantic (MiniLM)"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment figure5_text_distance --card`.

    `texts` is the source of the contexts, `count` how many there are, `context` and `length` the tokens of a context
    and of a continuation, `share` "m" or "none", `runs` a run directory of Figure 6 to read, `encoder` "download",
    "none" or a folder.
    """

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    context: int = 128
    continuations: int = 10
    seeds: int = 10
    length: int = 128
    share: str = "m"
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0
    bins: int = 20
    encoder: str = "download"
    runs: str = ""


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        sizes: dict[str, Any] = {"count": 4, "context": 16, "continuations": 3, "seeds": 2, "length": 8, "bins": 4}
        return Config("default", "demo", **sizes, share="none", preset="fast", steps=150, encoder="none")
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    sizes: dict[str, Any] = {"count": 8, "context": 32, "continuations": 5, "seeds": 5, "length": 16, "bins": 8}
    return Config("default", "demo", **sizes, preset="fast", steps=800)


def run(config: Config, study: Study) -> None:
    """Fit or read, then measure the distances of texts and of `e`."""
    check_known("value of --share", [config.share], ["m", "none"])
    sizes = {name: getattr(config, name) for name in ("count", "context", "seeds", "length", "seed")}
    owners, texts = continued_texts(study.model, config.texts, per_context=config.continuations, **sizes)
    results = read(config, study, texts) if config.runs else fitted(config, study, texts)
    pairs = relation_pairs(owners, plain_ids(results), seed=config.seed)
    learned = learned_vectors(results)
    vectors = {name: cosine_distances(learned, getattr(pairs, name)) for name in NAMES}
    curves, gaps = {}, []
    for measure, distances in text_distances(config, study, results, pairs).items():
        curves[measure] = found = binned(distances, vectors, bins=config.bins)
        strata = {name: in_bins(values, found) for name, values in distances.items()}
        same = Relations(np.zeros(0), **vectors)
        gap = nearer_by(same, pairs, owners, plain_ids(results), strata=strata, seed=config.seed)
        gaps.append(_gap(measure, found, gap, config, results))
    study.table("figure5", [_row(measure, bin) for measure, found in curves.items() for bin in found])
    study.table("figure5_gap", gaps)
    draw(curves, study)


def fitted(config: Config, study: Study, texts: Sequence[np.ndarray]) -> Results:
    """The fits of Figure 6, made here."""
    scheme = OneStep(share="m", group=len(texts)) if config.share == "m" else OneStep()
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    return study.fit(f"share-{config.share}", texts, scheme=scheme, **options)


def read(config: Config, study: Study, texts: Sequence[np.ndarray]) -> Results:
    """The fits of Figure 6, made elsewhere; they must be of these texts, this model and this way of sharing."""
    results = read_results(Path(config.runs))
    cure = "give the settings of that run, or leave --runs out"
    if results.model != study.model.fingerprint or (results.scheme.get("share") or "none") != config.share:
        raise UserError(f"{config.runs}: fits on another model, or not of share = {config.share!r}; {cure}")
    if [text.tokens.tolist() for text in results] != [ids.tolist() for ids in texts]:
        raise UserError(f"{config.runs}: {len(results)} fits of other texts than these {len(texts)}; {cure}")
    return results


def text_distances(
    config: Config, study: Study, results: Results, pairs: Relations
) -> dict[str, dict[str, np.ndarray]]:
    """Measure → relation → distances of the texts; without the semantic ones where they cannot be had."""
    tokens = [text.tokens for text in results]
    found = {"token": {name: token_distances(tokens, getattr(pairs, name)) for name in NAMES}}
    if config.encoder == "none":
        study.say("semantic distances left out (--encoder none)")
        return found
    strings = [as_text(study.model.tokenizer, ids) for ids in tokens]
    folder = None if config.encoder == "download" else config.encoder
    try:
        both = np.concatenate([getattr(pairs, name) for name in NAMES])
        ends = np.cumsum([len(getattr(pairs, name)) for name in NAMES])[:-1]
        parts = np.split(semantic_distances(strings, both, folder=folder), ends)
    except UserError as error:
        if folder is not None:
            raise
        study.say(f"semantic distances left out: {error}")
        return found
    return found | {"semantic": dict(zip(NAMES, parts, strict=True))}


def _row(measure: str, found: Bin) -> dict[str, Any]:
    row: dict[str, Any] = {"measure": measure, "relation": found.relation, "from": found.low, "to": found.high}
    row |= {"pairs": found.pairs, "text distance mean": found.text_distance}
    return row | {"e distance mean": found.mean, "e distance std": found.std}


def _gap(measure: str, curves: Sequence[Bin], gap: Gap, config: Config, results: Results) -> dict[str, Any]:
    """By how much pairs of one context are nearer at equal text distance; `shared bins` is how many say so."""
    sides = [{bin.low for bin in curves if bin.relation == name} for name in NAMES]
    pairs = {f"{NAMES[name]} pairs": sum(bin.pairs for bin in curves if bin.relation == name) for name in NAMES}
    row: dict[str, Any] = {"measure": measure, "share": config.share, "exact": np.mean(results.accuracy == 1)} | pairs
    row |= {"shared bins": len(sides[0] & sides[1]), "nearer by": gap.gap, "low": gap.low, "high": gap.high}
    row |= {"contexts resampled": gap.contexts, "texts resampled": gap.texts}
    return row | {"paper": "slightly nearer"}


def draw(curves: dict[str, list[Bin]], study: Study) -> None:
    """Mean distance of `e` against that of the texts, with a standard deviation around it."""
    with study.figure("figure5", columns=len(curves)) as axes:
        for axis, (measure, found) in zip(axes, curves.items(), strict=True):
            for relation, colour in zip(NAMES, ("tab:orange", "tab:green"), strict=True):
                own = [bin for bin in found if bin.relation == relation]
                x, mean, std = (
                    np.array([getattr(bin, key) for bin in own]) for key in ("text_distance", "mean", "std")
                )
                axis.plot(x, mean, marker="o", color=colour, label=f"{NAMES[relation]}, mean ± standard deviation")
                axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
            axis.set(xlabel=f"distance of the texts, {MEASURES[measure]}", ylabel="cosine distance of two e")
            axis.margins(y=0.2)
            axis.legend(frameon=False, fontsize="small")

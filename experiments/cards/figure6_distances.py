"""Figure 6: is a learned `e` nearer to those of the same text, or of texts after the same context, than to others?

    onestep experiment figure6_distances --model meta-llama/Llama-3.2-1B

The model continues each context several times; all but the last continuation are fitted from one start, the last from
several seeds. Cosine distances between the `e` are compared in three relations: same text and different seeds, same
context and different continuations, different contexts. The paper: 50 contexts of PG-19, 10 continuations of each, 10
seeds of the tenth, `m` shared by all texts and seeds.

    relation             cosine distance
    same text            the least, about 0.7 to 0.9
    same context         greater
    different contexts   the greatest

How long contexts and continuations are, our notes on the paper say of the access test only (128 and 256 tokens, trained
on the first 128); contexts and continuations of 128 tokens are taken here. Beside the paper's way the same is done with
an `m` of each text's own, to see whether the order hangs on the sharing. Every fit counts, exact or not; how many are
exact stands in each row.

Pairs share vectors, so that their number says little about how sure a difference is. Its 95 % interval is that of
drawing contexts, and texts within them, with replacement.

Writes figure6.csv (a row a way and relation), figure6_auc.csv (a row a way and two relations: how well distance tells
the one from the other, 0.5 for not at all, by how much the one is nearer, and the interval of that) and figure6.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
    separations,
    summary,
)
from onestep_jax.errors import check_known
from onestep_jax.experiment.study import Study
from onestep_jax.store.results import Results
from onestep_jax.texts import continued_texts

PAPER = {"same_text": (0.7, 0.9)}  # cosine distances, about
NAMES = {
    "same_text": "same text, different seeds",
    "same_context": "same context, different continuations",
    "different_contexts": "different contexts",
}
SHARES = {"m": "m shared by all", "none": "m of each text"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment figure6_distances --card`.

    `texts` is the source of the contexts, `count` how many there are, `context` and `length` the tokens of a context
    and of a continuation, `share` which of "m" and "none" to do.
    """

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    context: int = 128
    continuations: int = 10
    seeds: int = 10
    length: int = 128
    share: tuple[str, ...] = ("m", "none")
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        sizes: dict[str, Any] = {"count": 4, "context": 16, "continuations": 3, "seeds": 2, "length": 8}
        return Config("default", "demo", **sizes, preset="fast", steps=150)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    sizes: dict[str, Any] = {"count": 8, "context": 32, "continuations": 5, "seeds": 5, "length": 16}
    return Config("default", "demo", **sizes, preset="fast", steps=800)


def run(config: Config, study: Study) -> None:
    """Fit the continuations in each way and compare the `e`."""
    check_known("value of --share", config.share, SHARES)
    sizes = {name: getattr(config, name) for name in ("count", "context", "seeds", "length", "seed")}
    owners, texts = continued_texts(study.model, config.texts, per_context=config.continuations, **sizes)
    rows, ranks, found = [], [], {}
    for share in config.share:
        scheme = OneStep(share="m", group=len(texts)) if share == "m" else OneStep()
        options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
        results = study.fit(f"share-{share}", texts, scheme=scheme, **options)
        pairs = relation_pairs(owners, plain_ids(results), seed=config.seed)
        vectors = learned_vectors(results)
        found[share] = Relations(*(cosine_distances(vectors, of_relation) for of_relation in pairs))
        rows += _described(share, results, found[share])
        for row in separations(found[share]):
            sides = {"nearer": row["nearer"], "farther": row["farther"], "seed": config.seed}
            gap = nearer_by(found[share], pairs, owners, plain_ids(results), **sides)
            ranks.append({"way": SHARES[share], "fits": len(results)} | row | gap_columns(gap))
    study.table("figure6", rows)
    study.table("figure6_auc", ranks)
    draw(found, study)


def _described(share: str, results: Results, distances: Relations) -> list[dict[str, Any]]:
    """A row a relation, with the paper's distances where it has the way and gives some."""
    first = {"way": SHARES[share], "fits": len(results), "exact": np.mean(results.accuracy == 1)}
    first |= {"accuracy mean": results.accuracy.mean()}
    rows = []
    for row in summary(distances):
        paper = PAPER.get(row["relation"], (None, None)) if share == "m" else (None, None)
        rows.append(first | row | {"paper from": paper[0], "paper to": paper[1]})
    return rows


def gap_columns(gap: Gap) -> dict[str, Any]:
    """A difference of distances, its interval, and how many were resampled for it."""
    row = {"nearer by": gap.gap, "low": gap.low, "high": gap.high}
    return row | {"contexts resampled": gap.contexts, "texts resampled": gap.texts}


def draw(found: Mapping[str, Relations], study: Study) -> None:
    """Histograms of each relation, a panel a way."""
    everything = np.concatenate([values for distances in found.values() for values in distances])
    edges = np.linspace(everything.min(), everything.max(), 31)
    with study.figure("figure6", columns=len(found)) as axes:
        for axis, (share, distances) in zip(axes, found.items(), strict=True):
            for relation, values in distances._asdict().items():
                weights = np.full(len(values), 1 / max(1, len(values)))
                axis.hist(values, edges, weights=weights, alpha=0.5, label=f"{NAMES[relation]} ({len(values):,})")
            axis.set(xlabel=f"cosine distance of two e, {SHARES[share]}", ylabel="share of pairs")
            axis.margins(y=0.35)
            axis.legend(frameon=False, fontsize="small", loc="upper left")

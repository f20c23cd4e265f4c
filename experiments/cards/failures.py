"""Failures at and beyond the capacity: which tokens come out wrong, and which come out right late?

    onestep experiment failures --model meta-llama/Llama-3.2-1B

Texts are fitted at lengths around the model's capacity and each token is looked at: its place, its nats under the same
model run autoregressively, and how often it occurs in the texts. The paper gives no number for this; it counts a text
as reconstructed from accuracy 0.99 on, and its capacity of Llama-3.2-1B on PG-19, m not shared (Table 3), is 362
tokens. For each column: the error rate and the median step of the first hit in bins, the chance that a wrong token has
the higher value than a right one (AUC; "within" among the tokens of one text) over the texts with errors, and the rank
correlation with the step of the first hit, tokens that were never right ranking last.

Writes failures.csv (a row a length, column and bin), failures_association.csv (a row a length and column),
failures_lengths.csv (a row a length) and failures.png.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onestep_jax.analysis import reconstructed
from onestep_jax.analysis.failures import TokenTable, association, binned, failing, token_table
from onestep_jax.experiment.study import Study

COLUMNS = {
    "position": "position of the token",
    "relative": "position / (N − 1)",
    "nats": "nats of the token",
    "occurrences": "occurrences in the texts",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `bins` of the columns that are not binned by powers of two."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    lengths: tuple[int, ...] = (256, 362, 512, 724)
    bins: int = 10
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's lengths around the capacity, or seconds: a budget too small for the longer texts."""
    if smoke:
        return Config("default", "demo", count=4, lengths=(5, 8), bins=4, preset="fast", steps=12)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=8, lengths=(32, 45, 64, 90), preset="fast", steps=1000)


def run(config: Config, study: Study) -> None:
    """Fit texts of every length and look at their tokens."""
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    prefixes = [ids[:length] for length in config.lengths for ids in whole]
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    results = study.fit("lengths", prefixes, **options)
    tables, summary, bins, associations = {}, [], [], []
    for length in config.lengths:
        texts = [text for text in results if len(text.tokens) == length]
        tables[length] = table = token_table(texts, corpus=[ids.tolist() for ids in whole])
        row = {"length": length, "texts": len(texts), "accuracy mean": np.mean([text.accuracy for text in texts])}
        row |= {"reconstructed": np.mean([reconstructed(text) for text in texts])}
        row |= {"exact": np.mean([text.accuracy == 1 for text in texts]), "tokens": len(table.right)}
        summary.append(row | {"wrong": int(np.sum(~table.right)), "never right": int(np.sum(table.first_hit < 0))})
        for column in COLUMNS:
            bins += _bins(length, table, column, config.bins)
            associations.append(_association(length, table, column))
    study.table("failures_lengths", summary)
    study.table("failures", bins)
    study.table("failures_association", associations)
    _draw(study, bins, config.lengths)


def _bins(length: int, table: TokenTable, column: str, bins: int) -> list[dict[str, Any]]:
    found = binned(table, column, bins=bins)._asdict()
    return [
        {"length": length, "by": column, **dict(zip(found, values, strict=True))}
        for values in zip(*found.values(), strict=True)
    ]


def _association(length: int, table: TokenTable, column: str) -> dict[str, Any]:
    """AUC where a text has right and wrong tokens, the correlation with the first hit over all texts."""
    wrong, every = association(failing(table), column), association(table, column)
    row = {"length": length, "by": column, "texts with errors": len(np.unique(failing(table).text))}
    row |= {"auc": wrong.auc, "auc within": wrong.auc_within, "texts of auc within": wrong.texts}
    return row | {"rank correlation with first hit": every.steps, "tokens": every.tokens}


def _draw(study: Study, bins: list[dict[str, Any]], lengths: tuple[int, ...]) -> None:
    """Error rate above, median step of the first hit below; a bin whose tokens were mostly never right has no point."""
    columns = [name for name in COLUMNS if name != "position"]
    with study.figure("failures", columns=len(columns), rows=2, size=(3.3, 2.8)) as axes:
        for i, column in enumerate(columns):
            for length in lengths:
                own = [row for row in bins if row["by"] == column and row["length"] == length]
                middle = [(row["low"] + row["high"]) / 2 for row in own]
                axes[i].plot(middle, [row["rate"] for row in own], marker="o", markersize=3, label=f"N = {length}")
                waits = [row["first_hit"] if np.isfinite(row["first_hit"]) else np.nan for row in own]
                axes[i + len(columns)].plot(middle, waits, marker="o", markersize=3)
            axes[i].set_ylim(-0.02, 1.02)
            axes[i + len(columns)].set(xlabel=COLUMNS[column])
            if column == "occurrences":
                for axis in (axes[i], axes[i + len(columns)]):
                    axis.set_xscale("log", base=2)
        axes[0].set_ylabel("share of wrong tokens")
        axes[len(columns)].set_ylabel("first hit, median step")
        axes[0].legend(frameon=False, fontsize="small")

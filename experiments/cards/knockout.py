"""Attention knockout: which layers have to let the m positions see e, and which to let them see one another?

    onestep experiment knockout --model HuggingFaceTB/SmolLM2-135M --texts excerpts:FILE

Texts are fitted. Then in some layers the m positions of [e, m, …, m] are kept from attending to e (the weight goes to
what they still see), the vectors stay as they are, and the text is decoded again. All that the m positions know of e
comes to them through attention. So where e is hidden in all layers, what is left is the token at e itself and what m
alone brings forth. Layers are taken out

    one       at a time
    window    `window` in a row, from each on
    up to     each layer, from the first
    from      each layer, to the last

and the same is done to the attention of an m position to the m positions before it (`hidden` m). The method is that of
arXiv:2304.14767; the paper has nothing of it. For comparison stands what is left when a vector itself is replaced, as
in the card `attention`.

Writes knockout.csv (a row a choice of layers), knockout_replaced.csv (a row a replacement) and knockout.png.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onestep_jax.analysis.attention import ablate
from onestep_jax.analysis.knockout import HIDDEN, WAYS, Knockout, knockout, layer_sets
from onestep_jax.errors import check_known
from onestep_jax.experiment.study import Study

REPLACED = ("e=0", "e=mean", "m=0", "m=mean")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    texts: str = "pg19"
    count: int = 50
    length: int = 64
    window: int = 3
    hidden: tuple[str, ...] = HIDDEN
    preset: str = "fast"
    steps: int = 2000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of a real model, or seconds."""
    if smoke:
        return Config("default", "demo", count=3, length=8, steps=250)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=24, length=32)


def run(config: Config, study: Study) -> None:
    """Fit the texts, then hide."""
    check_known("what is hidden", config.hidden, HIDDEN)
    layers = study.model.config.layers
    ways = {way: layer_sets(layers, way, config.window) for way in WAYS}
    options: dict[str, Any] = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    results = study.fit("texts", study.texts(config.texts, config.count, config.length, config.seed), **options)
    chosen = [range(0), *(one for sets in ways.values() for one in sets)]
    names = ["none", *(way for way, sets in ways.items() for _ in sets)]
    rows = []
    for hidden in config.hidden:
        found = knockout(study.model, results, chosen, hidden=hidden)
        made = [_row(hidden, way, one, found, i) for i, (way, one) in enumerate(zip(names, chosen, strict=True))]
        rows += made if not rows else made[1:]  # hiding nothing is the same for both
    study.table("knockout", rows)
    replaced = ablate(study.model, results, kinds=REPLACED)
    table = [{"replaced": kind, "texts": len(one.own), "accuracy mean": one.own.mean(), "accuracy std": one.own.std()}
             for kind, one in replaced.items()]  # fmt: skip
    study.table("knockout_replaced", table)
    _draw(study, config, rows, {row["replaced"]: row["accuracy mean"] for row in table})


def _row(hidden: str, way: str, layers: range, found: Knockout, place: int) -> dict[str, Any]:
    """One choice of layers, over texts."""
    accuracy, nats = found.accuracy_SG[place], found.nats_SG[place]
    row = {"hidden": hidden if layers else "nothing", "way": way}
    row |= {"first": layers[0] if layers else None, "last": layers[-1] if layers else None, "layers": len(layers)}
    row |= {"texts": len(accuracy), "accuracy mean": accuracy.mean(), "accuracy std": accuracy.std()}
    return row | {"exact": np.mean(accuracy == 1), "nats per token mean": nats.mean()}


def _draw(study: Study, config: Config, rows: list[dict[str, Any]], replaced: dict[str, float]) -> None:
    """One panel for what is hidden: accuracy by layer, each way a line."""
    ways = {
        "one": ("o-", "C0", "in this layer", "first"),
        "window": ("s-", "C1", f"in {config.window} layers from this one on", "first"),
        "up to": ("^-", "C2", "up to this layer", "last"),
        "from": ("v-", "C3", "from this layer on", "first"),
    }
    with study.figure("knockout", columns=len(config.hidden), size=(5.2, 3.6)) as axes:
        for axis, hidden in zip(axes, config.hidden, strict=True):
            axis.axhline(replaced["kept"], color="black", linewidth=1, linestyle=":", label="nothing hidden")
            axis.axhline(replaced[f"{hidden}=mean"], color="grey", linestyle="--", label="mean")
            for way, (style, colour, label, column) in ways.items():
                own = [row for row in rows if (row["hidden"], row["way"]) == (hidden, way)]
                values = [row["accuracy mean"] for row in own]
                axis.plot([row[column] for row in own], values, style, color=colour, markersize=4, label=label)
            axis.set(xlabel="layer", ylim=(-0.02, 1.05))
            axis.set_ylabel("accuracy, e hidden from m" if hidden == "e" else "accuracy, earlier m hidden from m")
        figure, (handles, labels) = axes[0].figure, axes[0].get_legend_handles_labels()
        labels[1] = "the vector replaced by its mean"
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")

"""Attention to e and ablations: which proto-token carries the text, and which layers and heads fetch it?

    onestep experiment attention --model meta-llama/Llama-3.2-1B

The m positions of [e, m, …, m] have no content of their own. Texts are fitted, and the attention that the m positions
pay to e, to themselves ("itself"), to the m positions before them ("others") and to a frozen prefix before e is
measured per layer and head, beside what attention spread evenly over the visible positions would pay. The four sum to
one. The prefix of a model whose first position is an attention sink is BOS, and it draws much of the attention.

Then a vector is replaced and the text decoded again: e by m, by zero, by the mean of all texts, by another text's e;
and m likewise. "donor" is the accuracy on the text that the vector came from. The question is one of the successors
(arXiv:2602.18301); the paper gives no number.

Writes attention.csv (a row a layer and head), attention_positions.csv (a row a layer and position), ablations.csv (a
row a replacement), attention.png (layers × heads, and by position) and ablations.png.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onestep_jax.analysis.attention import Ablation, Attention, ablate, attention
from onestep_jax.experiment.study import Study

MEANING = {
    "kept": "as fitted",
    "e=m": "m for e",
    "e=0": "zero for e",
    "e=mean": "mean e for e",
    "e=other": "another text's e",
    "m=e": "e for m",
    "m=0": "zero for m",
    "m=mean": "mean m for m",
    "m=other": "another text's m",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    length: int = 256
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of the paper's experiments, or seconds."""
    if smoke:
        return Config("default", "demo", count=4, length=8, preset="fast", steps=250)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=24, length=32, preset="fast", steps=2000)


def run(config: Config, study: Study) -> None:
    """Fit the texts, look at the attention, replace vectors."""
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    texts = study.texts(config.texts, config.count, config.length, config.seed)
    results = study.fit("texts", texts, **options)
    seen = attention(study.model, results)
    rows = [_head(seen, layer, head) for layer in range(seen.e_LHT.shape[0]) for head in range(seen.e_LHT.shape[1])]
    study.table("attention", rows)
    study.table("attention_positions", _positions(seen))
    _draw_attention(study, seen)
    ablations = ablate(study.model, results)
    study.table("ablations", [_ablation(kind, found) for kind, found in ablations.items()])
    _draw_ablations(study, ablations)


def _head(seen: Attention, layer: int, head: int) -> dict[str, Any]:
    """One head: means over texts and m positions."""
    e, even = seen.shares.e[:, layer, head], seen.uniform.e[:, layer, 0]
    row = {"layer": layer, "head": head, "texts": int(np.sum(~np.isnan(e)))}
    row |= {"e mean": np.nanmean(e), "e std": np.nanstd(e), "e uniform": np.nanmean(even)}
    row |= {"e / uniform": np.nanmean(e) / np.nanmean(even)}
    for name in ("itself", "others", "prefix"):
        row[f"{name} mean"] = np.nanmean(getattr(seen.shares, name)[:, layer, head])
        row[f"{name} uniform"] = np.nanmean(getattr(seen.uniform, name)[:, layer, 0])
    return row


def _positions(seen: Attention) -> list[dict[str, Any]]:
    """Attention to e by position, from 1 on: position 0 is e."""
    layers, _, positions = seen.e_LHT.shape
    return [
        {
            "layer": layer,
            "position": position,
            "texts": int(seen.texts_T[position]),
            "e mean over heads": seen.e_LHT[layer, :, position].mean(),
            "e of the highest head": seen.e_LHT[layer, :, position].max(),
            "e uniform": seen.uniform_LT[layer, position],
        }
        for layer in range(layers)
        for position in range(1, positions)
    ]


def _ablation(kind: str, found: Ablation) -> dict[str, Any]:
    donor = None if np.isnan(found.donor).all() else np.nanmean(found.donor)
    row = {"replaced": kind, "meaning": MEANING[kind], "texts": len(found.own)}
    row |= {"accuracy mean": found.own.mean(), "accuracy std": found.own.std()}
    return row | {"accuracy max": found.own.max(), "donor accuracy mean": donor}


def _draw_attention(study: Study, seen: Attention) -> None:
    share_LH = np.nanmean(seen.shares.e, axis=0)
    with study.figure("attention", columns=2, size=(4.4, 3.6)) as (heat, curve):
        heat.grid(False)
        image = heat.imshow(share_LH, vmin=0, vmax=1, aspect="auto", cmap="viridis", origin="lower")
        bar = heat.figure.colorbar(image, ax=heat, label="weight of the m positions on e (dashed: uniform)")
        bar.ax.axhline(np.nanmean(seen.uniform.e), color="white", linestyle="--")
        heat.set(xlabel="head", ylabel="layer")
        for ticks, count in ((heat.set_xticks, share_LH.shape[1]), (heat.set_yticks, share_LH.shape[0])):
            ticks(range(0, count, -(-count // 8)))
        layers = len(share_LH)
        colours = _colours(layers)
        for layer in range(layers):
            label = f"layer {layer}" if layer in (0, layers // 2, layers - 1) else None
            curve.plot(seen.e_LHT[layer].mean(0), color=colours[layer], label=label)
        uniform_T = seen.uniform_LT.max(0)  # of a layer that sees all positions, if some have a window
        curve.plot(np.arange(1, len(uniform_T)), uniform_T[1:], "k--", label="uniform")
        curve.set(xlabel="position", ylabel="weight on e, mean over heads", ylim=(-0.02, 1.02))
        curve.legend(frameon=False, fontsize="small")


def _colours(count: int) -> list[Any]:
    """Colours from the first layer to the last."""
    from matplotlib import colormaps

    return [colormaps["plasma"](0.9 * i / max(1, count - 1)) for i in range(count)]


def _draw_ablations(study: Study, ablations: dict[str, Ablation]) -> None:
    kinds = list(ablations)
    with study.figure("ablations", size=(5, 3.6)) as (axis,):
        mean, std = ([getattr(ablations[kind].own, name)() for kind in kinds] for name in ("mean", "std"))
        axis.barh([MEANING[kind] for kind in kinds], mean, xerr=std, color="C0", alpha=0.8, label="its own text")
        donors = [kind for kind in kinds if not np.isnan(ablations[kind].donor).all()]
        place = [kinds.index(kind) for kind in donors]
        axis.scatter(
            [ablations[kind].donor.mean() for kind in donors], place, color="C1", zorder=3, label="the donor's text"
        )
        axis.set(xlabel="accuracy (mean ± standard deviation over texts)", xlim=(0, 1.05))
        axis.invert_yaxis()
        axis.legend(frameon=False, fontsize="small")

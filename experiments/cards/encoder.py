"""An encoder: what comes out in one pass, what learned corrections add, and what its start saves a fit.

    onestep experiment encoder --model HuggingFaceTB/SmolLM2-135M --encoder DIR --texts excerpts:FILE,random

The paper ends with the wish for an encoder that makes the vectors without optimisation. Here one is measured on texts
that its training has not seen, of several kinds and lengths: tokens and texts exact after K = 0, 1, 2, … corrections,
and the horizon, the mean number of tokens before the first wrong one. Three floors stand beside it: its constant, from
which every text begins; the vectors of another text; and the same encoder before its training. Then each text is fitted
to the end by the same preset, from the encoder's vectors and from random ones. The corrections that a text took until
it was exact count as evaluations.

The cost of the training is counted in gradient evaluations of texts: 1 + K for each window. What it saves in each text
says after how many texts it has paid for itself.

Writes encoder.csv (a row a source, length and K), encoder_floors.csv, encoder_start.csv and encoder.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

from onestep_jax import Encoder, OneStep, Results, decode, encode, load_encoder
from onestep_jax.encoder.design import Design
from onestep_jax.encoder.encoding import evaluate
from onestep_jax.encoder.folder import make_encoder
from onestep_jax.encoder.objective import init_weights
from onestep_jax.experiment.study import Study
from onestep_jax.model.decoder import Model

UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `texts` are sources, and `encoder` a folder, "default" or "untrained"."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    encoder: str = "default"
    texts: tuple[str, ...] = ("pg19", "random")
    count: int = 64
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    fitted: int = 16
    preset: str = "fast"
    steps: int = 1000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of a real model, or seconds."""
    if smoke:
        return Config("default", UNTRAINED, ("demo",), count=2, lengths=(2, 4), fitted=2, steps=40)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", texts=("gen", "random"), lengths=(4, 8))


def run(config: Config, study: Study) -> None:
    """Measure an encoder on every source and length."""
    longest = max(config.lengths)
    model = study.model
    blank = untrained(model, Design(length=longest, corrections=1))
    encoder = blank if config.encoder == UNTRAINED else load_encoder(config.encoder, model)
    rows: list[dict[str, Any]] = []
    floors: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    for source in config.texts:
        tokens = study.texts(source, config.count, longest, config.seed)
        for length in config.lengths:
            texts = [ids[:length] for ids in tokens]
            name = short(source)
            rows += [{"texts": name, **row} for row in evaluate(model, encoder, texts)]
            floors += [{"texts": name, "length": length, **row} for row in _floors(model, encoder, texts)]
            starts += [{"texts": name, **_started(study, config, encoder, name, texts[: config.fitted])}]
    study.table("encoder", rows)
    study.table("encoder_floors", floors)
    study.table("encoder_start", starts)
    _draw(study, config, rows)


def short(source: str) -> str:
    """The name of a source: its kind, and of a file what comes before the first dot."""
    kind, _, path = source.partition(":")
    return f"{kind} {PurePath(path).name.partition('.')[0]}".strip()


def untrained(model: Model, design: Design, seed: int = 0) -> Encoder:
    """An encoder before its training."""
    return make_encoder(model, design, init_weights(model.network, design, model.params, jax.random.key(seed)), {})


def _floors(model: Model, encoder: Encoder, texts: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Tokens and texts exact with vectors that say nothing of the text."""
    given = [ids.tolist() for ids in texts]
    own = encode(model, encoder, given)
    constant = dict(zip(encoder.design.leaf_names, np.asarray(encoder.weights["constant"]), strict=True))
    others = [text.vectors for text in own]
    found = {
        "constant": with_vectors(own, [constant] * len(own)),
        "another text": with_vectors(own, others[1:] + others[:1]),
        UNTRAINED: encode(model, untrained(model, encoder.design), given),
    }
    rows = []
    for name, results in found.items():
        accuracy = np.array([text.accuracy for text in decode(model, results)])
        rows.append({"vectors": name, "accuracy": accuracy.mean(), "exact": (accuracy == 1).mean()})
    return rows


def with_vectors(results: Results, vectors: Sequence[Any]) -> Results:
    """The texts of some results with other vectors."""
    texts = [dataclasses.replace(text, vectors=own) for text, own in zip(results, vectors, strict=True)]
    return dataclasses.replace(results, texts=tuple(texts))


def _started(study: Study, config: Config, encoder: Encoder, name: str, texts: Sequence[np.ndarray]) -> dict[str, Any]:
    """Evaluations of a fit to the end, from the encoder's vectors and from random ones."""
    design, length = encoder.design, len(texts[0])
    encoded = encode(study.model, encoder, [ids.tolist() for ids in texts])
    name = f"{name.replace(' ', '-')}-{length}"
    how = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    scheme = OneStep(design.arrangement, prefix=design.prefix)
    start = study.fit(f"{name}-encoder", texts, scheme=scheme, start=encoded, **how)
    drawn = study.fit(f"{name}-random", texts, scheme=scheme, **how)
    spent = float(encoded.steps.mean() + start.steps.mean())
    row = {
        "length": length,
        "count": len(texts),
        "solved from the encoder": start.solved,
        "solved from random": drawn.solved,
        "evaluations from the encoder": spent,
        "evaluations from random": float(drawn.steps.mean()),
    }
    row["ratio"] = row["evaluations from the encoder"] / row["evaluations from random"]
    cost, saved = training_cost(encoder), row["evaluations from random"] - spent
    return row | {"cost of the training": cost, "paid after texts": cost / saved if saved > 0 else float("inf")}


def training_cost(encoder: Encoder) -> int:
    """Gradient evaluations of texts that a training took: 1 + K for each window; 0 for an untrained encoder."""
    return _cost(encoder.trained, encoder.design)


def _cost(trained: Mapping[str, Any], design: Design) -> int:
    """That of a training, and of the one before if it went on from an encoder."""
    recipe: dict[str, Any] = dict(trained.get("recipe", {}))
    reading = 0.0 if design.reader == "none" else recipe.get("reading", 0.0)
    mean = 1 + (1 - reading) * design.corrections
    before: dict[str, Any] = dict(trained.get("start", {}))
    earlier = _cost(before["trained"], Design.from_description(before["design"])) if before else 0
    return round(trained.get("updates", 0) * recipe.get("batch", 0) * mean) + earlier


def _draw(study: Study, config: Config, rows: Sequence[dict[str, Any]]) -> None:
    """Tokens and texts exact against the number of corrections, a line a length; a pair of panels a source."""
    with study.figure("encoder", columns=2, rows=len(config.texts)) as axes:
        for axis, (source, name) in zip(
            axes, ((short(source), name) for source in config.texts for name in ("accuracy", "exact")), strict=True
        ):
            for length in config.lengths:
                own = [row for row in rows if (row["texts"], row["length"]) == (source, length)]
                axis.plot([row["corrections"] for row in own], [row[name] for row in own], "o-", label=f"N = {length}")
            what = "tokens exact" if name == "accuracy" else "texts exact"
            axis.set(title=source, xlabel="corrections K", ylabel=what, ylim=(-0.02, 1.02))
            axis.legend(frameon=False, fontsize="small")

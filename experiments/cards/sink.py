"""The first position: where is it an attention sink, and can a token be read out of it?

    onestep experiment sink --model HuggingFaceTB/SmolLM2-135M --texts excerpts:FILE

In many language models later positions attend to the first one whatever stands there, and its hidden states are many
times larger than all others (massive activations). A token can then hardly be read out of it. With [e, m, …, m] that is
where e stands, and where the first token of the text has to come out. A frozen token in front takes the place of the
sink, and e becomes an ordinary position.

Two measurements, on the model as it is and with its weights shuffled (`control_untrained`: the same numbers, nothing
learned). First ordinary texts, with and without the model's BOS before them: the lengths of the hidden states by layer
and position, and the attention that position 0 draws. Then fits: each text with e guided ([e] [m]×(N−1), where e
predicts the first token) and unguided ([e] [m]×N, where its output is ignored), with and without a frozen BOS. "first
token" is the share of texts whose first token is exact at the end, "others" that of their other tokens.

Position 0 is that of the BOS where there is one.

Writes sink.csv (a row a kind of weights, prefix and layer), sink_fits.csv (a row a kind of weights, arrangement and
prefix) and sink.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onestep_jax import OneStep
from onestep_jax.experiment.study import Study
from onestep_jax.model.decoder import Model
from onestep_jax.model.sinks import Sinks, sinks
from onestep_jax.model.untrained import untrained
from onestep_jax.prototokens.prefixes import prefix_tokens
from onestep_jax.store.results import TextResult

TRAINED, PERMUTED = "trained", "permuted"
ARRANGED = {"guided": "one-step", "unguided": "unguided-e"}
PREFIXES = ("none", "bos")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment sink --card`. `positions` are those of the ordinary texts."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    texts: str = "pg19"
    count: int = 16
    length: int = 16
    positions: int = 64
    preset: str = "fast"
    steps: int = 600
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of a real model, or seconds."""
    if smoke:
        return Config("default", "demo", count=3, length=6, positions=12, steps=80)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=16, length=24)


def run(config: Config, study: Study) -> None:
    """Look at ordinary texts, then fit."""
    bos = prefix_tokens(study.model, "bos").tolist()
    whole = study.texts(config.texts, config.count, max(config.length, config.positions), config.seed)
    seen, places, fits = {}, [], []
    for kind, model in _models(study.model, config.seed):
        for prefix in PREFIXES:
            before = [] if prefix == "none" else bos
            seen[kind, prefix] = found = sinks(model, [ids[: config.positions] for ids in whole], prefix=before)
            places += _places(kind, prefix, found)
        for guided, arrangement in ARRANGED.items():
            for prefix in PREFIXES:
                options: dict[str, Any] = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
                options |= {"seeds": 1, "model": model}  # a hanging text shall be seen, not tried again
                scheme = OneStep(arrangement, prefix=prefix)
                texts = [ids[: config.length] for ids in whole]
                results = study.fit(f"{kind}-{guided}-{prefix}", texts, scheme=scheme, **options)
                fits.append({"weights": kind, "e": guided, "prefix": prefix} | _fit_row(list(results)))
    study.table("sink", places)
    study.table("sink_fits", fits)
    _draw(study, seen)


def _models(trained: Model, seed: int) -> Iterator[tuple[str, Model]]:
    yield TRAINED, trained
    yield PERMUTED, untrained(trained, seed, kind=PERMUTED)


def _places(kind: str, prefix: str, found: Sinks) -> list[dict[str, Any]]:
    """Rows of one model and prefix: position 0, the first after it, and the median of the later ones."""
    rows = []
    for layer, norms_T in enumerate(found.norms_LT):
        row = {"weights": kind, "prefix": prefix, "layer": layer, "norm at 0": norms_T[0], "norm at 1": norms_T[1]}
        row |= {"norm later, median": np.median(norms_T[2:]), "norm at 0 / later": norms_T[0] / np.median(norms_T[2:])}
        drawn = found.drawn_LT[layer] if layer < len(found.drawn_LT) else None
        row |= {"weight on 0": None if drawn is None else np.nanmean(drawn)}
        rows.append(row)
    return rows


def _fit_row(texts: Sequence[TextResult]) -> dict[str, Any]:
    """What became of the texts of one arrangement."""
    first = np.array([text.predicted[0] == text.tokens[0] for text in texts])
    others = np.array([np.mean(text.predicted[1:] == text.tokens[1:]) for text in texts])
    solved = [text.steps for text in texts if text.accuracy == 1]
    row = {"texts": len(texts), "solved": len(solved), "accuracy mean": np.mean([text.accuracy for text in texts])}
    row |= {"first token": first.mean(), "others": others.mean()}
    return row | {"evaluations of the solved": np.mean(solved) if solved else None}


def _draw(study: Study, seen: dict[tuple[str, str], Sinks]) -> None:
    """By layer: how much longer the first hidden states are, and the attention that they draw."""
    with study.figure("sink", columns=2) as (lengths, drawn):
        for (kind, prefix), found in seen.items():
            style = {"linestyle": "-" if prefix == "none" else "--", "color": "C0" if kind == TRAINED else "C1"}
            label = f"{kind}, {'no prefix' if prefix == 'none' else 'BOS in front'}"
            ratio = found.norms_LT[:, 0] / np.median(found.norms_LT[:, 2:], axis=1)
            lengths.plot(np.arange(len(ratio)), ratio, label=label, **style)
            drawn.plot(np.arange(len(found.drawn_LT)), np.nanmean(found.drawn_LT, axis=1), label=label, **style)
        lengths.set(xlabel="layer", ylabel="length of the hidden state, first / later", yscale="log")
        drawn.set(xlabel="layer", ylabel="attention to the first position", ylim=(-0.02, 1.02))
        drawn.legend(frameon=False, fontsize="small")

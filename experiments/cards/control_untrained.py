"""Untrained control: does the capacity come from training, or does any network of this shape emit exact tokens?

    onestep experiment control_untrained --model meta-llama/Llama-3.2-1B

The same texts are fitted at the same lengths, from the same draws and with the same optimiser, on models of one
architecture whose weights are

    trained    as published
    permuted   the entries of each trained tensor in random order: its whole distribution, none of its structure
    matched    normal, with the mean and the standard deviation of each trained tensor
    init       fresh, as before training: normal with standard deviation 0.02, norms 1, biases 0

each untrained kind for several weight seeds. Norm scales are treated like any tensor unless keep_norms is given.

What differs between kinds besides the weights. The presets `paper` and `fast` draw e and m from N(0, 1) for all kinds;
`fast` was chosen on two trained models and one of permuted weights. The recorded results of the packaged model are of
an older `fast`: AdamW, with start vectors at 0.2 of the standard deviation of the model's own input embeddings. For
"permuted" (exactly) and "matched" (nearly) this standard deviation is that of the trained model; for "init" it is 0.02.
The learning rate was absolute, so on "init" a step was longer beside the start vectors. control_untrained_models.csv
gives both standard deviations. H_LM (Eq. 3) is under the model that emits. An untrained model finds ln V nats or more
in every token, so equal tokens are not equal nats. The nats of the same tokens under the trained model are given beside
them.

The paper has no such control: its capacity of Llama-3.2-1B on PG-19, m not shared (Table 3), is 362 tokens.

Writes control_untrained.csv (a row a kind and length), control_untrained_models.csv (a row a model: capacity in tokens
and nats) and control_untrained.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from onestep_jax.analysis import reconstructed
from onestep_jax.analysis.text_capacity import capacity
from onestep_jax.errors import check_known
from onestep_jax.experiment.study import Study
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.model.decoder import Model, input_scale
from onestep_jax.model.likelihood import text_nats
from onestep_jax.model.untrained import KINDS, untrained
from onestep_jax.store.results import TextResult

TRAINED = "trained"
# (model, texts) → C_tokens of Table 3, m not shared.
PAPER = {
    ("meta-llama/Llama-3.2-1B", "random"): 256,
    ("meta-llama/Llama-3.2-1B", "fanfics"): 362,
    ("meta-llama/Llama-3.2-1B", "pg19"): 362,
    ("meta-llama/Llama-3.2-1B", "gen:pg19"): 362,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `weights` seeds of each untrained kind."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 16
    lengths: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 181, 256, 362, 512)
    kinds: tuple[str, ...] = (TRAINED, "permuted", "matched", "init")
    weights: int = 3
    keep_norms: bool = False
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        kinds = (TRAINED, "permuted", "init")
        return Config("default", "demo", count=2, lengths=(4, 8), kinds=kinds, weights=1, preset="fast", steps=120)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=6, lengths=(4, 8, 16, 24, 32), weights=2, preset="fast", steps=750)


def run(config: Config, study: Study) -> None:
    """Fit the same prefixes on every model."""
    check_known("kind of weights", config.kinds, (TRAINED, *KINDS))
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    prefixes = [ids[:length] for length in config.lengths for ids in whole]
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    fits: dict[tuple[str, int], list[TextResult]] = {}
    judged = [one.nats for one in text_nats(study.model, whole)]
    models = []
    for kind, number, model in _models(config, study.model):
        texts = list(study.fit(f"{kind}-{number}", prefixes, model=model, **options))
        fits[kind, number] = texts
        models.append(_model_row(config, model, kind, number, texts, judged))
    rows = [_row(fits, kind, length) for kind in config.kinds for length in config.lengths]
    study.table("control_untrained", rows)
    study.table("control_untrained_models", models)
    _draw(study, config, rows)


def _models(config: Config, trained: Model) -> Iterator[tuple[str, int, Model]]:
    """Kind, weight seed and model, one at a time."""
    for kind in config.kinds:
        if kind == TRAINED:
            yield kind, 0, trained
        else:
            for number in range(config.weights):
                yield kind, number, untrained(trained, number, kind=kind, keep_norms=config.keep_norms)


def _row(fits: dict[tuple[str, int], list[TextResult]], kind: str, length: int) -> dict[str, Any]:
    """One kind at one length, over texts and weight seeds."""
    models = [
        [text for text in texts if len(text.tokens) == length] for (name, _), texts in fits.items() if name == kind
    ]
    found = [text for texts in models for text in texts]
    accuracy = np.array([[text.accuracy for text in texts] for texts in models])
    solved = [text.steps for text in found if text.accuracy == 1]
    row = {"weights": kind, "length": length, "models": len(models), "fits": len(found)}
    row |= {"accuracy mean": accuracy.mean(), "accuracy std": accuracy.std()}
    row |= {"accuracy std of models": accuracy.mean(1).std()}
    row |= {"reconstructed": np.mean([reconstructed(text) for text in found]), "exact": np.mean(accuracy == 1)}
    row |= {"steps mean": np.mean([text.steps for text in found])}
    row |= {"steps median of exact": np.median(solved) if solved else None}
    return row | {"nats per token": np.nanmean(np.concatenate([text.nats for text in found]))}


def _model_row(
    config: Config, model: Model, kind: str, number: int, texts: list[TextResult], judged: list[np.ndarray]
) -> dict[str, Any]:
    """Capacity of one model, mean over texts, and the scale at which its vectors started."""
    found = [capacity(texts[i :: config.count]) for i in range(config.count)]
    preset, std = PRESETS[config.preset], input_scale(model)
    row = {"weights": kind, "weight seed": number, "fingerprint": model.fingerprint, "texts": len(found)}
    row |= {"input embedding std": std}
    row |= {"start std": preset.scale * (1.0 if preset.start == "normal" else std)}
    row |= {"c_tokens mean": np.mean([one.c_tokens for one in found])}
    row |= {"c_tokens max": max(one.c_tokens for one in found), "h_lm mean": np.mean([one.h_lm for one in found])}
    # without a BOS the first token has no nats
    missing = max(config.lengths) - len(judged[0])
    by_trained = [nats[: max(0, one.tokens - missing)].sum() for nats, one in zip(judged, found, strict=True)]
    row |= {"h_lm under trained mean": np.mean(by_trained)}
    row |= {"at longest": sum(one.tokens == one.longest_tried for one in found)}
    return row | {"paper c_tokens": PAPER.get((config.model, config.texts)) if kind == TRAINED else None}


def _draw(study: Study, config: Config, rows: list[dict[str, Any]]) -> None:
    panels = {
        "accuracy mean": "mean accuracy",
        "reconstructed": "share reconstructed",
        "steps median of exact": "steps to the exact text, median",
    }
    with study.figure("control_untrained", columns=len(panels), size=(3.6, 3.4)) as axes:
        for axis, (column, label) in zip(axes, panels.items(), strict=True):
            for kind, marker in zip(config.kinds, "os^D", strict=False):
                own = [row for row in rows if row["weights"] == kind]
                values = [np.nan if row[column] is None else row[column] for row in own]
                axis.plot(config.lengths, values, marker=marker, alpha=0.75, label=kind)
            axis.set_xscale("log", base=2)
            axis.set(xlabel="tokens N", ylabel=label)
        for axis in axes[:2]:
            axis.set_ylim(-0.02, 1.02)
        axes[2].set_yscale("log", base=2)
        axes[0].legend(frameon=False, fontsize="small")

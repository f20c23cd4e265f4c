"""Untrained control: does the capacity come from training, or does any network of this shape emit exact tokens?

    onestep experiment control_untrained --model meta-llama/Llama-3.2-1B

The same texts are fitted at the same lengths, from the same draws and with the same optimiser, on models of one
architecture whose weights are

    trained    as published
    permuted   the entries of each trained tensor in random order: its whole distribution, none of its structure
    matched    normal, with the mean and the standard deviation of each trained tensor
    init       fresh, as before training: normal with standard deviation 0.02, norms 1, biases 0

each untrained kind for several weight seeds. Norm scales are treated like any tensor unless keep_norms is given.

    onestep experiment control_untrained --kinds trained,permuted --parts embeddings,head,attention,mlp,"first third"

With `parts` the same kinds are also given to one part of the model alone, the rest as trained: "embeddings", "head",
"attention", "mlp", "first third", "middle third", "last third" (of the layers) or "layers:A-B"; several at once as
"attention+mlp". Where head and embeddings are one table, replacing one of the two makes two tables of it
(`onestep_jax/model/untrained.py`). The vectors [e, m, …, m] are no rows of the table, so without a prefix new
embeddings alone change nothing but the nats of the text, and what "fast" measures of random tokens to decide on a BOS
before e. The tables then have a column "part", and "prefix" is the number of frozen tokens that were put before e.

What differs between kinds besides the weights. The presets `paper` and `fast` draw e and m from N(0, 1) for all kinds;
`fast` was chosen on two trained models and one of permuted weights. control_untrained_models.csv gives the standard
deviations of the input embeddings and of the start vectors. H_LM (Eq. 3) is under the model that emits. An untrained
model finds ln V nats or more in every token, so equal tokens are not equal nats. The nats of the same tokens under the
trained model are given beside them.

The paper has no such control: its capacity of Llama-3.2-1B on PG-19, m not shared (Table 3), is 362 tokens.

Writes control_untrained.csv (a row a kind and length), control_untrained_models.csv (a row a model: capacity in tokens
and nats) and control_untrained.png; with `parts` also control_untrained_parts.png.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.analysis import reconstructed
from onestep_jax.analysis.text_capacity import capacity
from onestep_jax.errors import UserError, check_known
from onestep_jax.experiment.study import Study
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.model.decoder import Model, input_scale
from onestep_jax.model.likelihood import text_nats
from onestep_jax.model.untrained import KINDS, paths_of, untrained
from onestep_jax.store.results import TextResult

TRAINED, WHOLE = "trained", "all"
# (model, texts) → C_tokens of Table 3, m not shared.
PAPER = {
    ("meta-llama/Llama-3.2-1B", "random"): 256,
    ("meta-llama/Llama-3.2-1B", "fanfics"): 362,
    ("meta-llama/Llama-3.2-1B", "pg19"): 362,
    ("meta-llama/Llama-3.2-1B", "gen:pg19"): 362,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `weights` seeds of each untrained kind, which `parts` also get alone."""

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
    parts: tuple[str, ...] = ()


class Variant(NamedTuple):
    """Weights that are compared: a kind, and the part of the model that has them ("all", or "none" if trained)."""

    kind: str
    part: str

    def columns(self, config: Config) -> dict[str, Any]:
        """What tells it from others in a table, which says nothing of parts where there are none."""
        return {"weights": self.kind} | ({"part": self.part} if config.parts else {})

    def run(self, number: int) -> str:
        """The run directory of one weight seed."""
        part = "" if self.part in (WHOLE, "none") else re.sub(r"[^\w+]+", "-", self.part) + "-"
        return f"{self.kind}-{part}{number}"


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
    for part in "+".join(config.parts).split("+") if config.parts else ():
        paths_of(study.model.config, part)  # a part that the model does not have is refused before the first fit
    if config.parts and not set(config.kinds) & set(KINDS):
        raise UserError(f"--parts without a kind of new weights: add one of {', '.join(KINDS)} to --kinds")
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    prefixes = [ids[:length] for length in config.lengths for ids in whole]
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    fits: dict[tuple[Variant, int], list[TextResult]] = {}
    judged = [one.nats for one in text_nats(study.model, whole)]
    models = []
    for variant, number, model in _models(config, study.model):
        texts = list(study.fit(variant.run(number), prefixes, model=model, **options))
        fits[variant, number] = texts
        models.append(_model_row(config, model, variant, number, texts, judged))
    rows = [_row(config, fits, variant, length) for variant in _variants(config) for length in config.lengths]
    study.table("control_untrained", rows)
    study.table("control_untrained_models", models)
    _draw(study, config, [row for row in rows if row.get("part") in (None, "none", WHOLE)])
    if config.parts:
        _draw_parts(study, config, rows, models)


def _variants(config: Config) -> list[Variant]:
    """What is compared: first whole models, then parts."""
    whole = [Variant(kind, "none" if kind == TRAINED else WHOLE) for kind in config.kinds]
    return whole + [Variant(kind, part) for part in config.parts for kind in config.kinds if kind != TRAINED]


def _models(config: Config, trained: Model) -> Iterator[tuple[Variant, int, Model]]:
    """Variant, weight seed and model, one at a time."""
    for variant in _variants(config):
        if variant.kind == TRAINED:
            yield variant, 0, trained
            continue
        parts = [] if variant.part == WHOLE else variant.part.split("+")
        for number in range(config.weights):
            made = untrained(trained, number, kind=variant.kind, keep_norms=config.keep_norms, parts=parts)
            yield variant, number, made


def _row(
    config: Config, fits: dict[tuple[Variant, int], list[TextResult]], variant: Variant, length: int
) -> dict[str, Any]:
    """One variant at one length, over texts and weight seeds."""
    models = [
        [text for text in texts if len(text.tokens) == length] for (one, _), texts in fits.items() if one == variant
    ]
    found = [text for texts in models for text in texts]
    accuracy = np.array([[text.accuracy for text in texts] for texts in models])
    solved = [text.steps for text in found if text.accuracy == 1]
    row = variant.columns(config) | {"length": length, "models": len(models), "fits": len(found)}
    row |= {"accuracy mean": accuracy.mean(), "accuracy std": accuracy.std()}
    row |= {"accuracy std of models": accuracy.mean(1).std()}
    row |= {"reconstructed": np.mean([reconstructed(text) for text in found]), "exact": np.mean(accuracy == 1)}
    row |= {"steps mean": np.mean([text.steps for text in found])}
    row |= {"steps median of exact": np.median(solved) if solved else None}
    return row | {"nats per token": np.nanmean(np.concatenate([text.nats for text in found]))}


def _model_row(
    config: Config, model: Model, variant: Variant, number: int, texts: list[TextResult], judged: list[np.ndarray]
) -> dict[str, Any]:
    """Capacity of one model, mean over texts, and the scale at which its vectors started."""
    found = [capacity(texts[i :: config.count]) for i in range(config.count)]
    preset, std = PRESETS[config.preset], input_scale(model)
    row = variant.columns(config) | {"weight seed": number, "fingerprint": model.fingerprint, "texts": len(found)}
    row |= {"prefix": len(texts[0].prefix)} if config.parts else {}
    row |= {"input embedding std": std}
    row |= {"start std": preset.scale * (1.0 if preset.start == "normal" else std)}
    row |= {"c_tokens mean": np.mean([one.c_tokens for one in found])}
    row |= {"c_tokens max": max(one.c_tokens for one in found), "h_lm mean": np.mean([one.h_lm for one in found])}
    # without a BOS the first token has no nats
    missing = max(config.lengths) - len(judged[0])
    by_trained = [nats[: max(0, one.tokens - missing)].sum() for nats, one in zip(judged, found, strict=True)]
    row |= {"h_lm under trained mean": np.mean(by_trained)}
    row |= {"at longest": sum(one.tokens == one.longest_tried for one in found)}
    return row | {"paper c_tokens": PAPER.get((config.model, config.texts)) if variant.kind == TRAINED else None}


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


def _draw_parts(study: Study, config: Config, rows: list[dict[str, Any]], models: list[dict[str, Any]]) -> None:
    """A bar for each part and kind; dashed: as trained."""
    kinds, parts = [kind for kind in config.kinds if kind != TRAINED], [*config.parts, WHOLE]
    longest = [row for row in rows if row["length"] == max(config.lengths)]
    panels = {
        "accuracy mean": (longest, f"mean accuracy at N = {max(config.lengths)}"),
        "steps mean": (longest, f"evaluations at N = {max(config.lengths)}, mean"),
        "c_tokens mean": (models, "capacity in tokens, mean"),
    }
    with study.figure("control_untrained_parts", columns=len(panels), size=(3.8, 0.3 * len(parts) + 2.2)) as axes:
        for axis, (column, (table, label)) in zip(axes, panels.items(), strict=True):
            for place, kind in enumerate(kinds):
                found = [[row[column] for row in table if (row["weights"], row["part"]) == (kind, p)] for p in parts]
                at = np.arange(len(parts)) + 0.8 * (place + 0.5) / len(kinds) - 0.4
                axis.barh(at, [np.mean(values) for values in found], 0.8 / len(kinds), label=kind)
            for row in table:
                if row["weights"] == TRAINED:
                    axis.axvline(row[column], color="black", linestyle="--", linewidth=1, label="as trained")
            axis.set_yticks(range(len(parts)), parts if axis is axes[0] else [""] * len(parts))
            axis.set(xlabel=label)
            axis.invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize="small")

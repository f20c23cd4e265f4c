"""Training dynamics: how do capacity, price and surprisal of the same texts change while a model is trained?

    onestep experiment dynamics --model EleutherAI/pythia-160m --texts excerpts:FILE

The same texts are fitted at the same lengths, from the same draws, on checkpoints of one training. They are either
`revisions` of a hub id, as Pythia has them (step0 … step143000), or `models`: sources as of `--model`, such as folders
that `experiments/packaged/pretrain_default.py --checkpoints 0,10,100` writes.

    onestep experiment dynamics --packaged --model LAST --models FIRST,…,LAST --out runs/dynamics

The model of the card (`--model`) gives tokenizer and texts; all checkpoints must have the same tokenizer. The step of a
checkpoint is the number behind "step" in its revision or in the last part of its name. Where a revision has only
pickled weights, the refusal says how to convert them, and the folders go to `models`.

By checkpoint are measured: H_LM of the whole texts (Eq. 3, "nats per token"), the exact share and the evaluations of
fits at each length, and the capacity: the longest length with an accuracy of 0.99, in tokens and in nats of the
checkpoint itself and of the card's model. Each checkpoint decides for itself whether a BOS stands before e (preset
"fast"); "prefix" is the number of its frozen tokens.

The packaged size and the smoke have no training to show: they compare fresh weights with the packaged model. The paper
has nothing of this.

Writes dynamics.csv (a row a checkpoint), dynamics_lengths.csv (a row a checkpoint and length) and dynamics.png.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from onestep_jax.analysis import reconstructed
from onestep_jax.analysis.text_capacity import capacity
from onestep_jax.errors import UserError
from onestep_jax.experiment.study import Study
from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.decoder import Model
from onestep_jax.model.likelihood import text_nats
from onestep_jax.model.untrained import PREFIX, load_untrained
from onestep_jax.store.results import TextResult

PYTHIA = (0, 1, 8, 64, 512, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 143000)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `revisions` of `model` are compared, or `models` where they are given."""

    model: str = "EleutherAI/pythia-160m"
    revisions: tuple[str, ...] = tuple(f"step{step}" for step in PYTHIA)
    models: tuple[str, ...] = ()
    texts: str = "pg19"
    count: int = 16
    lengths: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    preset: str = "fast"
    steps: int = 2000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of Pythia's smallest models, or seconds."""
    ends = ("untrained:init:0:default", "default")
    if smoke:
        return Config("default", (), ends, "demo", count=2, lengths=(4, 8), steps=120)
    return Config()


def packaged() -> Config:
    """The packaged model, and fresh weights, on a small machine."""
    ends = ("untrained:init:0:default", "default")
    return Config("default", (), ends, "gen", count=6, lengths=(4, 8, 16, 24, 32), steps=750)


def run(config: Config, study: Study) -> None:
    """Fit the same prefixes on every checkpoint."""
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    prefixes = [ids[:length] for length in config.lengths for ids in whole]
    options: dict[str, Any] = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    judged = [one.nats for one in text_nats(study.model, whole)]
    rows, by_length = [], []
    for name, model in _checkpoints(config, study.model):
        texts = list(study.fit(_run(name), prefixes, model=model, **options))
        about = {"checkpoint": name, "step": step_of(name)}
        rows.append(about | _row(config, model, texts, whole, judged))
        by_length += [about | _length_row(texts, length) for length in config.lengths]
    study.table("dynamics", rows)
    study.table("dynamics_lengths", by_length)
    _draw(study, config, rows, by_length)


def step_of(name: str) -> int | None:
    """The number behind the last "step" in the last part of a checkpoint's name; None where there is none."""
    found = re.findall(r"step[-_ ]?(\d+)", name.rstrip("/").rpartition("/")[2])
    return int(found[-1]) if found else None


def _checkpoints(config: Config, given: Model) -> Iterator[tuple[str, Model]]:
    """Name and model of each checkpoint, one at a time."""
    names = config.models or config.revisions
    if not names:
        raise UserError("no checkpoints: give --models SOURCE,SOURCE,… or --revisions NAME,NAME,…")
    if len(set(names)) < len(names):
        raise UserError(f"--{'models' if config.models else 'revisions'}: a checkpoint is named twice")
    options: dict[str, Any] = {"dtype": jnp.dtype(given.dtype).name}
    for name in names:
        if not config.models:
            model = load_model(config.model, revision=name, **options)
        else:
            model = load_untrained(name, **options) if name.startswith(PREFIX) else load_model(name, **options)
        if _words(model) != _words(given):
            raise UserError(f"checkpoint {name!r}: another tokenizer or vocabulary than that of {given.source!r}")
        yield name, model


def _words(model: Model) -> tuple[int, Any]:
    """What the token ids of a model stand for."""
    return model.config.vocab_size, None if model.tokenizer is None else model.tokenizer.get_vocab()


def _run(name: str) -> str:
    """The run directory of a checkpoint."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _row(
    config: Config, model: Model, texts: list[TextResult], whole: list[np.ndarray], judged: list[np.ndarray]
) -> dict[str, Any]:
    """One checkpoint: the nats of the texts, and its capacity, mean over texts."""
    found = [capacity(texts[i :: config.count]) for i in range(config.count)]
    # without a BOS the first token has no nats
    missing = max(config.lengths) - len(judged[0])
    by_given = [nats[: max(0, one.tokens - missing)].sum() for nats, one in zip(judged, found, strict=True)]
    row = {"fingerprint": model.fingerprint, "texts": len(found), "prefix": len(texts[0].prefix)}
    row |= {"nats per token": np.mean(np.concatenate([one.nats for one in text_nats(model, whole)]))}
    row |= {"c_tokens mean": np.mean([one.c_tokens for one in found]), "c_tokens max": max(c.c_tokens for c in found)}
    row |= {"h_lm mean": np.mean([one.h_lm for one in found]), "h_lm under the card's model mean": np.mean(by_given)}
    row |= {"at longest": sum(one.tokens == one.longest_tried for one in found)}
    return row | {"evaluations mean": np.mean([text.steps for text in texts])}


def _length_row(texts: list[TextResult], length: int) -> dict[str, Any]:
    """One checkpoint at one length, over texts."""
    found = [text for text in texts if len(text.tokens) == length]
    solved = [text.steps for text in found if text.accuracy == 1]
    accuracy = np.array([text.accuracy for text in found])
    row = {"length": length, "texts": len(found), "accuracy mean": accuracy.mean(), "accuracy std": accuracy.std()}
    row |= {"reconstructed": np.mean([reconstructed(text) for text in found]), "exact": np.mean(accuracy == 1)}
    row |= {"evaluations mean": np.mean([text.steps for text in found])}
    return row | {"evaluations median of exact": np.median(solved) if solved else None}


def _draw(study: Study, config: Config, rows: list[dict[str, Any]], by_length: list[dict[str, Any]]) -> None:
    """By step on a scale that has a zero; by order where a checkpoint has no step."""
    steps = [row["step"] for row in rows]
    counted = None not in steps and len(set(steps)) == len(steps)
    at = np.array(steps if counted else range(len(rows)), float)
    order = np.argsort(at)
    with study.figure("dynamics", columns=3, size=(3.9, 3.4)) as axes:
        for column, label in {"c_tokens mean": "mean", "c_tokens max": "longest"}.items():
            axes[0].plot(at[order], [rows[i][column] for i in order], "o-", label=label)
        axes[0].set(ylabel="capacity in tokens", ylim=(0, None))
        axes[0].legend(frameon=False, fontsize="small")
        for length in config.lengths:
            own = [row["evaluations mean"] for row in by_length if row["length"] == length]
            axes[1].plot(at[order], [own[i] for i in order], "o-", label=f"N = {length}")
        axes[1].set(ylabel="evaluations of a fit, mean", yscale="log")
        axes[1].legend(frameon=False, fontsize="small")
        axes[2].plot(at[order], [rows[i]["nats per token"] for i in order], "o-")
        axes[2].set(ylabel="H_LM of the texts, nats per token")
        for axis in axes:
            if counted:
                axis.set_xscale("symlog", linthresh=1)
                axis.set_xlim(-0.3, 1.6 * at.max() + 0.3)
                axis.set(xlabel="training step")
            else:
                axis.set_xticks(range(len(rows)), [_short(row) for row in rows], rotation=20, ha="right")


def _short(row: dict[str, Any]) -> str:
    """A checkpoint for an axis: its step, or the last part of its name."""
    return str(row["checkpoint"]).rstrip("/").rpartition("/")[2][-24:] if row["step"] is None else f"step {row['step']}"

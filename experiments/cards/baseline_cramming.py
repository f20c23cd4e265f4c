"""Baseline: how much text K vectors hold for autoregressive decoding, forced and generated (Kuratov et al.).

    onestep experiment baseline_cramming --model meta-llama/Llama-3.2-1B

"Cramming 1568 Tokens into a Single Vector and Back Again" (arXiv:2502.13063) trains K vectors before the text itself,
[mem_1 … mem_K, t_1 … t_(N−1)], and counts the tokens that are right when each is predicted from the true ones before
it. That is no generation: after an early error, greedy decoding from the vectors alone goes elsewhere (Tarasov et al.,
Progressive Cramming). So both are measured, on the same vectors: *forced*, and *generated* from the vectors alone.
Protocol: vectors drawn at the scale of the embeddings, AdamW, learning rate 0.01, β1 = β2 = 0.9, weight decay 0.01, at
most 5,000 steps, and 2,000 without a better accuracy end a text. The predecessor reports, forced, with one vector:

    model         best length
    Pythia-160M            80
    Pythia-410M            96
    Pythia-1.4B           160
    Llama-3.2-1B          512
    Llama-3.2-3B        1,024
    Llama-3.1-8B        1,568

Read here: a text's best length is the longest tried one at an accuracy of at least 0.99, and a model's the maximum over
texts; median and mean are given beside. Lengths beyond the model's context are left out.

Writes cramming.csv (a row a K and length), cramming_best.csv (a row a K), cramming_texts.csv (a row a K and text) and
cramming.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onestep_jax import Cramming, Results, TextResult, UserError, regenerate
from onestep_jax.analysis import THRESHOLD, exact_horizon
from onestep_jax.analysis.text_capacity import Capacity, capacity
from onestep_jax.experiment.study import Study

# Last part of a model's name, in lower case → best length with one vector.
REPORTED = {
    "pythia-160m": 80,
    "pythia-410m": 96,
    "pythia-1.4b": 160,
    "llama-3.2-1b": 512,
    "llama-3.2-3b": 1024,
    "llama-3.1-8b": 1568,
}
WAYS = ("forced", "generated")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment baseline_cramming --card`."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    vectors: tuple[int, ...] = (1, 2)
    lengths: tuple[int, ...] = (8, 16, 32, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 1280, 1568, 2048)
    preset: str = "cramming"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The predecessor's size, or seconds."""
    if smoke:
        return Config("default", "demo", count=4, vectors=(1,), lengths=(4, 16), preset="fast", steps=150)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=8, lengths=(4, 8, 16, 32), preset="cramming", steps=1500)


def run(config: Config, study: Study) -> None:
    """Fit every text at every length with K vectors; predict its tokens from the true ones, and generate them."""
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    rows, best, texts = [], [], []
    for vectors in config.vectors:
        lengths = _fitting(config, study, vectors)
        prefixes = [ids[:length] for length in lengths for ids in whole]
        options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
        forced = study.fit(f"mem-{vectors}", prefixes, scheme=Cramming(vectors), **options)
        ways = {"forced": list(forced), "generated": _generated(study, forced)}
        rows += [{"vectors": vectors} | _at_length(ways, length) for length in lengths]
        capacities = {way: _capacities(found, config.count) for way, found in ways.items()}
        reported = REPORTED.get(config.model.rsplit("/", 1)[-1].lower()) if vectors == 1 else None
        best.append({"vectors": vectors} | _best(capacities) | {"reported forced tokens": reported})
        texts += [{"vectors": vectors} | row for row in _by_text(capacities)]
    study.table("cramming", rows)
    study.table("cramming_best", best)
    study.table("cramming_texts", texts)
    _draw(config, study, rows)


def _fitting(config: Config, study: Study, vectors: int) -> list[int]:
    """The lengths that the model's context has room for, beside all vectors but the last."""
    room = study.model.config.context - Cramming(vectors).extra
    lengths = [length for length in config.lengths if length <= room]
    if not lengths:
        raise UserError(f"--lengths: none of {config.lengths} is within the {room} positions of the model's context")
    if len(lengths) < len(config.lengths):
        study.say(f"lengths beyond {room} tokens are left out: the model's context is no longer")
    return lengths


def _generated(study: Study, forced: Results) -> list[TextResult]:
    """The same fits, with what greedy decoding makes of their vectors instead of the predictions from the true text."""
    texts = []
    for text, decoded in zip(forced, regenerate(study.model, forced), strict=True):
        hits = int(np.sum(decoded.tokens == text.tokens))
        changed = {"predicted": decoded.tokens, "accuracy": decoded.accuracy, "c_tokens": hits}
        texts.append(dataclasses.replace(text, **changed))
    return texts


def _at_length(ways: dict[str, list[TextResult]], length: int) -> dict[str, Any]:
    """Accuracies of all texts at one length."""
    row: dict[str, Any] = {"length": length}
    for way in WAYS:
        found = [text for text in ways[way] if len(text.tokens) == length]
        accuracy = np.array([text.accuracy for text in found])
        right = [exact_horizon(text.predicted, text.tokens) for text in found]
        row["texts"] = len(found)
        row |= {f"{way} mean": accuracy.mean(), f"{way} std": accuracy.std()}
        row |= {f"{way} at {THRESHOLD}": (accuracy >= THRESHOLD).mean(), f"{way} exact": (accuracy == 1).mean()}
        row |= {f"{way} tokens before an error": np.mean(right)}
        row |= {"steps mean": np.mean([text.steps for text in found])}
    return row


def _capacities(found: Sequence[TextResult], count: int) -> list[Capacity]:
    """Capacity of each text, each length by its own fit; the fits come length by length, `count` texts each."""
    return [capacity(found[i::count]) for i in range(count)]


def _best(capacities: dict[str, list[Capacity]]) -> dict[str, Any]:
    """Best length over the texts, and the nats of it."""
    row: dict[str, Any] = {"texts": len(capacities["forced"])}
    for way in WAYS:
        tokens = np.array([text.tokens for text in capacities[way]])
        nats = np.array([text.h_lm for text in capacities[way]])
        row |= {f"{way} tokens max": tokens.max(), f"{way} tokens median": np.median(tokens)}
        row |= {f"{way} tokens mean": tokens.mean()}
        row |= {f"{way} H_LM mean, nats": nats.mean(), f"{way} H_LM std, nats": nats.std()}
        row |= {f"{way} at the longest length": sum(text.tokens == text.longest_tried for text in capacities[way])}
    return row


def _by_text(capacities: dict[str, list[Capacity]]) -> list[dict[str, Any]]:
    """A row a text."""
    rows = []
    for i, forced in enumerate(capacities["forced"]):
        row: dict[str, Any] = {"text": i, "text_id of the longest": forced.best.text_id}
        for way in WAYS:
            text = capacities[way][i]
            row |= {f"{way} tokens": text.tokens, f"{way} H_LM, nats": text.h_lm, f"{way} exact": text.exact_tokens}
        rows.append(row)
    return rows


def _draw(config: Config, study: Study, rows: list[dict[str, Any]]) -> None:
    """Mean accuracy against length: lines of one colour are one K."""
    with study.figure("cramming", size=(6, 4)) as (axis,):
        for place, vectors in enumerate(config.vectors):
            own = [row for row in rows if row["vectors"] == vectors]
            for way, style in (("forced", "o-"), ("generated", "s--")):
                label = f"K = {vectors}, {way}"
                lengths, means = [row["length"] for row in own], [row[f"{way} mean"] for row in own]
                axis.plot(lengths, means, style, color=f"C{place}", label=label)
        axis.axhline(THRESHOLD, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="tokens N", ylabel="mean accuracy", ylim=(-0.02, 1.02))
        axis.legend(frameon=False, fontsize="small")

"""Margins: what of a solution survives another dtype, PyTorch or noise, and what a lead of ε logits costs.

    onestep experiment margins --model HuggingFaceTB/SmolLM2-135M --texts excerpts:FILE

A text is exact as soon as every token is the argmax, by however little. Autoregressive vectors that are right by a hair
are fragile: by the code of Progressive Cramming (Tarasov et al.), 68 to 70 % of the texts that are exact under teacher
forcing come out greedily, and 90 to 100 % after training to a lead of ε ≥ 0.5 logits, which costs tokens. Nothing is
published for one pass.

Each text is fitted with every ε of `margins`, where 0 is the ordinary fit. A text is *solved* once each target leads
the runner-up by ε. Of the solved texts are counted: those that are still exact with weights and activations in
bfloat16; in PyTorch, by transformers' own model in the dtype of the fit (empty where torch is not installed); the noisy
copies that are exact, for each σ of `sigmas`, relative to the root mean square of each vector
(`analysis.robustness.survival`). "noise radius" is the σ that 90 % of the copies of a text survive. "evaluations" are
means over all texts, solved or not; "times ε = 0" is their ratio to the first row.

Capacity: with ε = 0 and with the greatest ε, each text is fitted at every length of `lengths`. Its capacity is the
longest of them that is solved.

Writes margins.csv (a row an ε), margins_texts.csv (a row an ε and text), margins_lengths.csv (a row an ε and length),
margins_capacity.csv (a row an ε) and margins.png.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax import Model, Results, TextResult, UserError
from onestep_jax.analysis.robustness import Elsewhere, noise_radii, portability, survival
from onestep_jax.experiment.study import Study


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment margins --card`. `draws` are the noisy copies of a text."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    texts: str = "pg19"
    count: int = 32
    length: int = 32
    margins: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    sigmas: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    draws: int = 32
    lengths: tuple[int, ...] = (16, 32, 48, 64, 96, 128)
    preset: str = "fast"
    steps: int = 2000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of a real model, or seconds."""
    if smoke:
        sizes: dict[str, Any] = {"margins": (0.0, 1.0), "sigmas": (0.003, 0.03), "draws": 4, "lengths": (4, 8)}
        return Config("default", "demo", count=3, length=6, steps=200, **sizes)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=16, length=16, lengths=(8, 16, 24, 32), steps=1500)


def run(config: Config, study: Study) -> None:
    """Fit with every margin and try what survives, then the capacities."""
    margins = sorted({*config.margins, 0.0})
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    whole = study.texts(config.texts, config.count, max(config.length, *config.lengths), config.seed)
    rows, texts = [], []
    for margin in margins:
        chosen = [ids[: config.length] for ids in whole]
        results = study.fit(f"margin-{margin:g}", chosen, margin=margin, **options)
        solved = dataclasses.replace(results, texts=tuple(text for text in results if text.status == "solved"))
        radii = noise_radii(study.model, solved, draws=config.draws)
        rows.append(_row(config, study, margin, results, solved, radii))
        texts += _text_rows(margin, results, dict(zip((text.text_id for text in solved), radii, strict=True)))
    first = rows[0]["evaluations"]
    rows = [row | {"times ε = 0": row["evaluations"] / first} for row in rows]
    study.table("margins", rows)
    study.table("margins_texts", texts)
    lengths, capacities = [], []
    for margin in sorted({margins[0], margins[-1]}):
        chosen = [ids[:length] for length in config.lengths for ids in whole]
        found = list(study.fit(f"capacity-{margin:g}", chosen, margin=margin, **options))
        by_length = [found[i * config.count :][: config.count] for i in range(len(config.lengths))]
        lengths += [_at_length(margin, length, own) for length, own in zip(config.lengths, by_length, strict=True)]
        capacities.append(_capacity(margin, [[own[i] for own in by_length] for i in range(config.count)]))
    study.table("margins_lengths", lengths)
    study.table("margins_capacity", capacities)
    _draw(config, study, rows)


def _row(
    config: Config, study: Study, margin: float, results: Results, solved: Results, radii: np.ndarray
) -> dict[str, Any]:
    """One ε: shares are of its solved texts."""
    count = len(solved)
    row: dict[str, Any] = {"margin": margin, "texts": len(results), "solved": count, "exact": results.solved}
    row |= {"evaluations": results.steps.mean(), "lead median": np.median(solved.margin) if count else None}
    low = Elsewhere("bfloat16")
    row["exact in bfloat16"] = portability(_rounded(study.model), solved, low).exact / count if count else None
    row["exact in PyTorch"] = _in_torch(study, solved) if count else None
    for sigma in config.sigmas:
        shares = survival(study.model, solved, np.full(count, sigma), draws=config.draws)
        row[f"exact under noise {sigma:g}"] = shares.mean() if count else None
    return row | {"noise radius median": np.median(radii) if count else None}


def _rounded(model: Model) -> Model:
    """The same model in bfloat16."""
    return dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))


def _in_torch(study: Study, solved: Results) -> float | None:
    """Share exact by transformers' own model; None where there is no torch, or it cannot load the checkpoint."""
    if importlib.util.find_spec("torch") is None:
        return None
    way = Elsewhere(str(study.model.dtype), attention="own", backend="torch")
    try:
        return portability(study.model, solved, way).exact / len(solved)
    except UserError as error:
        study.say(f"PyTorch is left out: {error}")
        return None


def _text_rows(margin: float, results: Results, radii: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "margin": margin,
            "text": text.index,
            "status": text.status,
            "accuracy": text.accuracy,
            "evaluations": text.steps,
            "lead": text.margin,
            "noise radius": radii.get(text.text_id),
        }
        for text in results
    ]


def _at_length(margin: float, length: int, texts: Sequence[TextResult]) -> dict[str, Any]:
    """All texts at one length."""
    row = {"margin": margin, "length": length, "texts": len(texts)}
    row["solved"] = sum(text.status == "solved" for text in texts)
    return row | {"exact": sum(text.accuracy == 1 for text in texts), "evaluations": _mean(t.steps for t in texts)}


def _capacity(margin: float, texts: Sequence[Sequence[TextResult]]) -> dict[str, Any]:
    """Tokens and nats of each text's longest solved prefix, 0 where none is; its fits come by length."""
    best = [max((t for t in own if t.status == "solved"), key=lambda t: len(t.tokens), default=None) for own in texts]
    tokens = [0 if text is None else len(text.tokens) for text in best]
    row = {"margin": margin, "texts": len(texts), "tokens mean": _mean(tokens), "tokens median": np.median(tokens)}
    longest = max(len(text.tokens) for text in texts[0])
    row |= {"tokens max": max(tokens), "at the longest length": tokens.count(longest)}
    return row | {"H_LM mean, nats": _mean(0.0 if text is None else text.h_lm for text in best)}


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _draw(config: Config, study: Study, rows: Sequence[dict[str, Any]]) -> None:
    """By ε: shares that survive, and evaluations."""
    margins = [row["margin"] for row in rows]
    noise = [f"exact under noise {sigma:g}" for sigma in config.sigmas]
    with study.figure("margins", columns=2) as (shares, cost):
        for name in ("exact in bfloat16", "exact in PyTorch", *noise):
            values = [np.nan if row[name] is None else row[name] for row in rows]
            if not np.isnan(values).all():
                shares.plot(margins, values, "o:" if name in noise else "s-", label=name.removeprefix("exact "))
        shares.set(xlabel="margin ε, logits", ylabel="share of the solved texts still exact", ylim=(-0.02, 1.02))
        shares.legend(frameon=False, fontsize="small")
        cost.plot(margins, [row["evaluations"] for row in rows], "o-")
        cost.set(xlabel="margin ε, logits", ylabel="gradient evaluations, mean over all texts", ylim=(0, None))

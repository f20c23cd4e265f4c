"""Absorption: how many steps does each further token of a text cost, and does a surprising one cost more?

    onestep experiment absorption --model meta-llama/Llama-3.2-1B

A text grows by one token at a time (compare Progressive Cramming, Tarasov et al., ICML 2026). The vectors go on from
those that emit the prefix before; what is spent, in gradient evaluations, until the prefix up to the next token is
exact is the price of that token, 0 where it comes of itself. The learning rate is constant, AdamW 0.01, β = 0.9, so
that every token meets the same; the preset gives the scale of the start vectors and the temperature of the loss. A text
ends at the token whose budget is spent. Prices are set against surprisal, −ln P(t_i | t_<i) in nats under the same
model run autoregressively, by rank correlation: over all tokens, with the position of the token taken off both, and
within texts. The paper gives no number for this.

Writes absorption_tokens.csv (a row a token), absorption.csv (correlations and horizons) and absorption.png.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from onestep_jax.analysis.absorption import Absorbed, absorb, correlations
from onestep_jax.experiment.study import Study
from onestep_jax.store.parquet import read_rows, write_rows
from onestep_jax.store.storage import writing
from onestep_jax.tokens import as_text


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `steps` is the budget of one token, `batch` the texts that grow together."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    length: int = 128
    batch: int = 10
    preset: str = "paper"
    steps: int = 1000
    seed: int = 0


def config(smoke: bool) -> Config:
    """A size for the paper's model, or seconds."""
    if smoke:
        return Config("default", "demo", count=4, length=8, batch=4, preset="fast", steps=200)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", "gen", count=8, length=32, batch=8, preset="fast", steps=500)


def run(config: Config, study: Study) -> None:
    """Let every text grow, token by token."""
    texts = study.texts(config.texts, config.count, config.length, config.seed)
    found = grow(config, study, texts)
    tokenizer = study.model.tokenizer
    rows = [
        {
            "text": text,
            "position": position,
            "token": as_text(tokenizer, [texts[text][position]]),
            "nats": found.nats[text, position],
            "evaluations": found.evaluations[text, position],
            "solved": found.solved[text, position],
        }
        for text, position in zip(*np.nonzero(found.evaluations >= 0), strict=True)
    ]
    study.table("absorption_tokens", rows)
    rho = correlations(found)
    row = {"texts": len(texts), "tokens": rho.tokens, "rank correlation with nats": rho.pooled}
    row |= {"position taken off": rho.partial, "within texts": rho.within, "with position": rho.position}
    tried = found.evaluations[found.evaluations >= 0]
    row |= {"came of itself": np.mean(tried == 0), "evaluations median": np.median(tried)}
    row |= {
        "horizon mean": found.horizon.mean(),
        "horizon min": found.horizon.min(),
        "horizon max": found.horizon.max(),
    }
    study.table("absorption", [row])
    _draw(study, found, config.steps)


def grow(config: Config, study: Study, texts: list[np.ndarray]) -> Absorbed:
    """Absorb batch by batch; what an earlier call has finished is read."""
    parts = []
    for first in range(0, len(texts), config.batch):
        path = study.run_folder(f"batch-{first // config.batch:03d}.parquet")
        if not path.exists():
            options = {"steps": config.steps, "preset": config.preset, "seed": config.seed}
            chosen = texts[first : first + config.batch]
            _keep(path, absorb(study.model, chosen, batch=config.batch, **options))
        parts.append(_kept(path))
        study.say(f"texts {first} to {min(first + config.batch, len(texts)) - 1}: {parts[-1].horizon.tolist()} tokens")
    return Absorbed(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _keep(path: Path, found: Absorbed) -> None:
    columns = (array.tolist() for array in found)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [dict(zip(Absorbed._fields, values, strict=True)) for values in zip(*columns, strict=True)])


def _kept(path: Path) -> Absorbed:
    rows = read_rows(path)
    return Absorbed(*(np.array([row[name] for row in rows]) for name in Absorbed._fields))


def _draw(study: Study, found: Absorbed, budget: int) -> None:
    """Every token asked for after the first, with medians in parts of equally many tokens, and by position."""
    tried = (found.evaluations >= 0) & ~np.isnan(found.nats)
    tried[:, 0] = False
    nats, cost = found.nats[tried], found.evaluations[tried]
    with study.figure("absorption", columns=2, size=(4.2, 3.4)) as (scatter, curve):
        scatter.scatter(nats, cost, s=10, alpha=0.5, linewidths=0, label="token")
        parts = np.array_split(np.argsort(nats, kind="stable"), min(8, len(nats)))
        middle = [(np.median(nats[part]), np.median(cost[part])) for part in parts if len(part)]
        scatter.plot(*np.transpose(middle), "k.-", label="median")
        scatter.set(xlabel="surprisal of the token, nats", ylabel="gradient evaluations")
        scatter.legend(frameon=False, fontsize="small")
        positions = np.arange(1, tried.shape[1])
        each = [found.evaluations[tried[:, position], position] for position in positions]
        known = [
            (position, *np.quantile(costs, (0.25, 0.5, 0.75)))
            for position, costs in zip(positions, each, strict=True)
            if len(costs)
        ]
        place, low, middle_cost, high = np.transpose(known)
        curve.fill_between(place, low, high, alpha=0.25, linewidth=0, label="quartiles")
        curve.plot(place, middle_cost, marker=".", label="median")
        curve.set(xlabel="position of the token", ylabel="gradient evaluations")
        curve.legend(frameon=False, fontsize="small")
        for axis in (scatter, curve):
            axis.set_yscale("symlog", linthresh=1)
            axis.set_ylim(-0.2, 1.5 * budget)

"""Access test: can the model read a text out of its proto-tokens token by token?

    onestep experiment access --model meta-llama/Llama-3.2-1B

The model continues contexts of PG-19; e and m are fitted to the beginning of each continuation. Then it generates, one
token after the other, from combinations of e, m and BOS, greedily and at temperature 1. The paper: 50 contexts of 128
tokens, continuations of 256, e and m fitted to the first 128 of these. Its finding, for every combination:

    generated from e, m and BOS    nothing related to the text

Here relatedness is measured, by the tokens that agree place by place ("exact"), the longest common prefix and
substring, and the overlap of the bags of tokens (F1), against the text of the vectors and against other texts; p is
that of a permutation test. "rest" compares with the part of the continuation that was not fitted.

Controls are the decoding in one pass, by the same measures, and generation from the embeddings of the text's first
token ("t"), or its first two ("t t2"). After e, which emits the first token, the model sees it too, and [e, m] emits
the second. So only what goes beyond the control is read out of the vectors. In the rows "compared with" t or t t2,
"other" is the control's mean, and p that of flipping the signs of the differences, text by text.

`--starts` chooses the combinations. By default they are all, without those with BOS where the fits have a frozen
prefix, which is BOS already.

Writes access.csv (a row a start, temperature and measure), access_texts.csv (what was generated) and access.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from onestep_jax.analysis.access import MEASURES, Access, Relatedness, access, relatedness
from onestep_jax.experiment.study import Study
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.reconstruction import decode
from onestep_jax.store.results import Results
from onestep_jax.texts import contexts, continuations
from onestep_jax.tokens import as_text

PAPER = "nothing related"
ONE_PASS = "one pass"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; `texts` is the source of the contexts, of which `context` tokens are read."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 50
    per_context: int = 1
    context: int = 128
    continuation: int = 256
    length: int = 128
    starts: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = (0.0, 1.0)
    others: int = 8
    permutations: int = 10_000
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        base = Config("default", "demo", count=4, context=8, continuation=16, length=8, preset="fast", steps=250)
        return dataclasses.replace(
            base, starts=("e", "e m", "BOS", "t", "t t2"), temperatures=(0.0,), permutations=1000
        )
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine; there are eight contexts in the package, so each is continued thrice."""
    base = Config("default", "demo", count=8, per_context=3, context=32, continuation=64, length=32)
    return dataclasses.replace(base, preset="fast", steps=1500)


def run(config: Config, study: Study) -> None:
    """Fit the beginnings of continuations and try to read them out by generation."""
    model, generated_from = study.model, config.texts
    given = contexts(model, generated_from, count=config.count, length=config.context, seed=config.seed)
    sizes = {"length": config.continuation, "per_context": config.per_context}
    drawn = continuations(model, given, **sizes, seed=config.seed)
    # continuations of one context lie far apart, so that the next texts, compared with below, are of other contexts
    whole = [of_one[j] for j in range(config.per_context) for of_one in drawn]
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    results = study.fit("continuations", [ids[: config.length] for ids in whole], **options)

    test = {"others": config.others, "permutations": config.permutations, "seed": config.seed}
    chosen = config.starts or None
    found = access(model, results, combinations=chosen, temperatures=config.temperatures, **test)
    starts = list(dict.fromkeys(start for start, _ in found.generated))
    emitted = np.stack([one.tokens for one in decode(model, results)])
    fitted = np.stack([text.tokens for text in results])
    rest = np.stack([ids[config.length :] for ids in whole])
    rows = [_row("fitted", one) for one in relate(ONE_PASS, 0.0, emitted, fitted, tuple(MEASURES), config)]
    rows += [_row("fitted", one) for one in found.rows]
    rows += [_row(control, one) for control, compared in found.beyond.items() for one in compared]
    for (start, temperature), out in found.generated.items():
        related = relate(start, temperature, out, rest, ("substring", "overlap"), config)
        rows += [_row("rest", one) for one in related]
    study.table("access", rows)
    study.table("access_texts", list(_texts(model, results, found)))
    _draw(study, rows, [ONE_PASS, *starts], config.temperatures[0])


def relate(
    start: str, temperature: float, out: np.ndarray, wanted: np.ndarray, measures: Sequence[str], config: Config
) -> list[Relatedness]:
    """Compare tokens (texts, T) with those wanted of the same text and of the next few texts, as `access` does."""
    tokens = min(out.shape[1], wanted.shape[1])
    columns = np.arange(1 + min(config.others, config.count - 1))
    choice = (np.arange(len(out))[:, None] + columns[None]) % len(wanted)
    return relatedness(
        start,
        temperature,
        out[:, :tokens],
        wanted[:, :tokens],
        choice,
        measures=measures,
        permutations=config.permutations,
        seed=(config.seed, 2),
    )


def _row(compared: str, found: Relatedness) -> dict[str, Any]:
    generated = bool({"e", "m"} & set(found.start.split()))
    return {"compared with": compared, **found._asdict(), "paper": PAPER if generated else None}


def _texts(model: Model, results: Results, found: Access):
    for (start, temperature), out in found.generated.items():
        for text, ids in zip(results, out, strict=True):
            strings = {"generated": as_text(model.tokenizer, ids), "fitted": as_text(model.tokenizer, text.tokens)}
            yield {"text": text.index, "start": start, "temperature": temperature, **strings}


def _draw(study: Study, rows: list[dict[str, Any]], starts: list[str], temperature: float) -> None:
    labels = {"exact": "same token at the same place", "overlap": "overlap of tokens, F1"}
    with study.figure("access", columns=2, size=(4, 3.6)) as axes:
        for axis, (measure, label) in zip(axes, labels.items(), strict=True):
            chosen = {
                row["start"]: row
                for row in rows
                if row["compared with"] == "fitted"
                and row["measure"] == measure
                and row["start"] in (ONE_PASS, *starts)
                and row["temperature"] == (0.0 if row["start"] == ONE_PASS else temperature)
            }
            axis.scatter([chosen[start]["own"] for start in starts], starts, label="own text", zorder=3)
            others = [chosen[start]["other"] for start in starts]
            axis.scatter(others, starts, facecolors="none", edgecolors="C1", label="other texts", zorder=3)
            axis.set(xlabel=label, xlim=(-0.03, 1.03))
            axis.invert_yaxis()
        axes[0].set_ylabel("input of the model")
        axes[0].legend(frameon=False, fontsize="small", loc="center right")

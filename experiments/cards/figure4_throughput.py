"""Figure 4: how much faster is a text out in one forward pass than token by token?

    onestep experiment figure4_throughput --model meta-llama/Llama-3.2-1B

Each text is fitted at each length in both ways: e and m of its own for one forward pass, one [mem] for autoregressive
greedy generation with a KV cache (Kuratov et al.). Reconstruction throughput is the tokens of a text over the time of
its reconstruction, and the paper's is that of the longest length without an error, for texts one at a time.

    one pass over autoregressive, mean of the models of the paper on a GPU: 279

What is timed: from the trained vectors, arrays of the host, to token ids, arrays of the host, so with the transfer of
both and waiting for the device. One pass is one compiled program, which repeats the vectors, runs the model over all
positions and takes the argmax at each. Autoregressive is `onestep_jax.generate`: the pass over [mem], then one compiled
loop over the tokens, with nothing on the host in between. Neither counts the fit, nor loading or compiling: each
program runs over all texts first, which also tells which come out without an error, and then both take turns. Times
are medians, with the least and the greatest, of `repeats` turns.

Writes figure4.csv (a row a length and batch), figure4_longest.csv (a row a batch: each way at its own longest length at
which a text comes out without an error) and figure4.png.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from onestep_jax import OneStep
from onestep_jax.bench.decode import EMITTERS
from onestep_jax.bench.timing import interleaved
from onestep_jax.experiment.study import Study
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.reconstruction import behind_prefix
from onestep_jax.prototokens.schemes import Cramming
from onestep_jax.store.results import TextResult

PAPER_RATIO = 279  # mean over its models, texts one at a time
WAYS = {"one pass": OneStep(), "autoregressive": Cramming()}

Emit: TypeAlias = Callable[[Sequence[Mapping[str, np.ndarray]]], np.ndarray]  # leaves of texts → (texts, N) token ids


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment figure4_throughput --card`.

    `preset` is that of the one-pass fits, `autoregressive` that of the others; `batches` are texts at a time.
    """

    model: str = "meta-llama/Llama-3.2-1B"
    texts: str = "pg19"
    count: int = 10
    lengths: tuple[int, ...] = (32, 64, 128, 181, 256, 362, 512)
    batches: tuple[int, ...] = (1, 16)
    repeats: int = 20
    preset: str = "paper"
    autoregressive: str = "cramming"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    fast: dict[str, Any] = {"preset": "fast", "autoregressive": "fast"}
    if smoke:
        return Config("default", "demo", count=4, lengths=(2, 8), batches=(1, 4), repeats=5, steps=150, **fast)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    fast: dict[str, Any] = {"preset": "fast", "autoregressive": "fast"}
    return Config("default", "gen", count=8, lengths=(4, 8, 16, 32), steps=1000, **fast)


def run(config: Config, study: Study) -> None:
    """Fit in both ways, then time both."""
    whole = study.texts(config.texts, config.count, max(config.lengths), config.seed)
    prefixes = [ids[:length] for length in config.lengths for ids in whole]
    fits = {}
    for way, preset in zip(WAYS, (config.preset, config.autoregressive), strict=True):
        options = {"preset": preset, "steps": config.steps, "seed": config.seed}
        fits[way] = list(study.fit(way.replace(" ", "-"), prefixes, scheme=WAYS[way], **options))
    rows = []
    for place, length in enumerate(config.lengths):
        own = slice(place * config.count, (place + 1) * config.count)
        texts = {way: [_behind_prefix(study.model, text) for text in found[own]] for way, found in fits.items()}
        for batch in config.batches:
            rows.append({"length": length, "batch": batch, "texts": config.count})
            rows[-1] |= compared(study.model, texts, length, batch, config.repeats)
    study.table("figure4", rows)
    study.table("figure4_longest", [_longest(rows, batch) for batch in config.batches])
    draw(rows, config, study)


def compared(model: Model, texts: dict[str, list[TextResult]], length: int, batch: int, repeats: int) -> dict[str, Any]:
    """Columns of one length and batch: texts without an error, seconds and throughput of each way, and their ratio."""
    emits = {way: functools.partial(emit, model, length) for way, emit in EMITTERS.items()}
    row: dict[str, Any] = {f"{way} lossless": _lossless(emits[way], texts[way], batch) for way in WAYS}
    turns = {way: itertools.count() for way in WAYS}
    calls = {way: functools.partial(_turn, emits[way], texts[way], turns[way], batch) for way in WAYS}
    seconds = interleaved(calls, repeats)
    for way, found in seconds.items():
        row |= {f"{way} ms": 1e3 * np.median(found), f"{way} ms least": 1e3 * min(found)}
        row |= {f"{way} ms most": 1e3 * max(found), f"{way} tokens/s": batch * length / np.median(found)}
    return row | {"ratio": row["one pass tokens/s"] / row["autoregressive tokens/s"]}


def _behind_prefix(model: Model, text: TextResult) -> TextResult:
    """A text with what an emitter needs of its prefix among its vectors, so that no lookup is timed."""
    vectors = {name: behind_prefix(model, text, x_TD) if name == "mem" else x_TD for name, x_TD in text.vectors.items()}
    return dataclasses.replace(text, vectors={**vectors, "prefix": text.prefix})


def _turn(emit: Emit, texts: Sequence[TextResult], turns: Iterator[int], batch: int) -> None:
    """Emit the next texts."""
    emit([text.vectors for text in _some(texts, next(turns) * batch, batch)])


def _some(texts: Sequence[TextResult], first: int, batch: int) -> list[TextResult]:
    """`batch` texts from the `first` on, round and round."""
    return [texts[(first + i) % len(texts)] for i in range(batch)]


def _lossless(emit: Emit, texts: Sequence[TextResult], batch: int) -> int:
    """How many texts come out without an error; the program is compiled in passing."""
    exact = [False] * len(texts)
    for first in range(0, len(texts), batch):
        chosen = _some(texts, first, batch)
        made = emit([text.vectors for text in chosen])
        for i, (text, ids) in enumerate(zip(chosen, made, strict=True)):
            exact[(first + i) % len(texts)] = bool(np.array_equal(ids, text.tokens))
    return sum(exact)


def _longest(rows: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Each way at its own longest length at which a text comes out without an error."""
    found: dict[str, Any] = {"batch": batch}
    for way in WAYS:
        good = [row for row in rows if row["batch"] == batch and row[f"{way} lossless"]]
        best = max(good, key=lambda row: row["length"], default=None)
        found |= {f"{way} length": best and best["length"], f"{way} texts": best and best[f"{way} lossless"]}
        found |= {f"{way} tokens/s": best and best[f"{way} tokens/s"]}
    one_pass, autoregressive = (found[f"{way} tokens/s"] for way in WAYS)
    found |= {"ratio": one_pass / autoregressive if one_pass and autoregressive else None}
    return found | {"paper ratio": PAPER_RATIO if batch == 1 else None}


def draw(rows: Sequence[dict[str, Any]], config: Config, study: Study) -> None:
    """Throughput against length, with the range of the turns; filled points where a text comes out without an error."""
    with study.figure("figure4", size=(6, 4)) as (axis,):
        for number, batch in enumerate(config.batches):
            own = [row for row in rows if row["batch"] == batch]
            for way, line in zip(WAYS, ("-", "--"), strict=True):
                speed, least, most = (
                    np.array([batch * row["length"] / row[f"{way} ms{what}"] * 1e3 for row in own])
                    for what in ("", " most", " least")
                )
                colour = f"C{number}"
                style: dict[str, Any] = {"color": colour, "linestyle": line, "marker": "o", "markerfacecolor": "white"}
                axis.errorbar(
                    config.lengths, speed, yerr=[speed - least, most - speed], label=f"{way}, batch {batch}", **style
                )
                good = [i for i, row in enumerate(own) if row[f"{way} lossless"]]
                axis.plot([config.lengths[i] for i in good], speed[good], "o", color=colour, zorder=5)
        axis.plot([], [], "o", color="0.5", label="filled: a text without an error")
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.lengths, map(str, config.lengths))
        axis.set_yscale("log")
        axis.set(xlabel="tokens N", ylabel="tokens per second")
        axis.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

"""Table 4: how many seconds it takes to train the two vectors of one text.

    onestep experiment table4_training_time --model meta-llama/Llama-3.2-1B

Each text is fitted at each length on one device, one text at a time as in the paper, and again in batches: there a
text counts with its share of the device's time (each chunk's time divided by the texts under way). Compiling is not
counted. The paper: seconds of an A100 or H100, averaged over its text sources; a dash where a text is too long for the
model.

    model          N=32   64  128  256  512
    Pythia-160M       6   25   68    –    –
    Pythia-410M      10   21  106    –    –
    Pythia-1.4B      10   66  129    –    –
    Llama-3.2-1B     11   15   27   87    –
    Llama-3.2-3B     14   18   28   78  261
    Llama-3.1-8B     16   20   29   60  215

A fit stops when its text is solved, so the steps are given beside the seconds, and what a solved text costs when the
unsolved ones are paid for too. The median with the least and the most says whether one slow text makes the mean.

Writes table4.csv (a row a way of fitting and length) and table4.png.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from onestep_jax import Results
from onestep_jax.analysis import reconstructed
from onestep_jax.devices.placement import Pmap
from onestep_jax.experiment.study import Study

# Last part of a model's name, in lower case → {N: seconds} of the paper.
PAPER = {
    "pythia-160m": {32: 6, 64: 25, 128: 68},
    "pythia-410m": {32: 10, 64: 21, 128: 106},
    "pythia-1.4b": {32: 10, 64: 66, 128: 129},
    "llama-3.2-1b": {32: 11, 64: 15, 128: 27, 256: 87},
    "llama-3.2-3b": {32: 14, 64: 18, 128: 28, 256: 78, 512: 261},
    "llama-3.1-8b": {32: 16, 64: 20, 128: 29, 256: 60, 512: 215},
}
WAYS: dict[str, int | str] = {"one at a time": 1, "batched": "auto"}  # → slots


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment table4_training_time --card`."""

    model: str = "meta-llama/Llama-3.2-1B"
    texts: tuple[str, ...] = ("random", "fanfics", "pg19", "gen:pg19")
    count: int = 10
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    preset: str = "paper"
    steps: int = 5000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The paper's size, or seconds."""
    if smoke:
        return Config("default", ("demo",), count=4, lengths=(8,), preset="fast", steps=120)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine."""
    return Config("default", ("gen",), count=8, lengths=(8, 16, 32), preset="fast", steps=1500)


def run(config: Config, study: Study) -> None:
    """Fit every text at every length, one at a time and in batches, on one device."""
    whole = [
        ids for source in config.texts for ids in study.texts(source, config.count, max(config.lengths), config.seed)
    ]
    device = jax.local_devices()[0]
    options = {"preset": config.preset, "steps": config.steps, "seed": config.seed, "placement": Pmap([device])}
    paper = PAPER.get(config.model.rsplit("/", 1)[-1].lower(), {})
    rows = []
    for way, slots in WAYS.items():
        for length in config.lengths:
            # A run a length, so that no text is padded to that of another.
            name = f"{way.replace(' ', '-')}-{length}"
            results = study.fit(name, [ids[:length] for ids in whole], slots=slots, **options)
            row = {"fitted": way, "length": length, "device": device.device_kind} | _times(results)
            rows.append(row | {"paper seconds": paper.get(length)})
    study.table("table4", rows)
    with study.figure("table4", size=(6, 4)) as (axis,):
        for way in WAYS:
            own = [row for row in rows if row["fitted"] == way]
            mean, std = ([row[f"seconds {which}"] for row in own] for which in ("mean", "std"))
            axis.errorbar(config.lengths, mean, std, marker="o", capsize=3, label=f"{way}, {device.device_kind}")
        if paper:
            axis.plot(list(paper), list(paper.values()), "s--", color="grey", label="paper, A100 or H100")
        axis.set_xscale("log", base=2)
        axis.set_xticks(config.lengths, [str(length) for length in config.lengths])
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.set(xlabel="tokens N", ylabel="device-seconds a text")
        axis.legend(frameon=False, fontsize="small")


def _times(results: Results) -> dict[str, Any]:
    """Seconds and steps of a text, and what a solved one costs with the unsolved ones on its bill."""
    seconds = np.array([text.seconds for text in results])
    exact = sum(reconstructed(text) for text in results)
    return {
        "texts": len(results),
        "solved": results.solved,
        "reconstructed": exact,
        "steps mean": results.steps.mean(),
        "seconds mean": seconds.mean(),
        "seconds std": seconds.std(),
        "seconds median": np.median(seconds),
        "seconds least": seconds.min(),
        "seconds most": seconds.max(),
        "seconds a solved text": seconds.sum() / results.solved if results.solved else None,
        "milliseconds a step": 1000 * seconds.sum() / results.steps.sum(),
    }

"""Why the preset `fast` is what it is: work per solved text, in five parts.

    python experiments/studies/preset_fast.py --texts FILE --out runs/preset_fast

FILE holds at least two long texts, such as books: a .jsonl with one text a line in the column "text", or any other
source of `onestep fit`. The package brings no text that is long enough.

    choose      one change at a time of what the choosing started from; other optimisers on half of the texts
    curriculum  a text fitted at once, against its beginning first and then the whole from there (prefixes are nested)
    seeds       the same texts from several seeds: what giving a seed up after so many evaluations would cost
    bfloat16    `fast` where weights and activations are rounded
    judge       `fast`, what the choosing started from (`base`) and `paper` on texts that nothing was chosen on, at 24
                tokens; then longer prefixes of what is solved, for `paper` shorter ones of what is not

The tables of `experiments/results/preset_fast` were recorded on two cores of a CPU, with the defaults of this command.
FILE was books/validation.jsonl.xz: the 15 public-domain books that were held out when the packaged model was trained.

Texts are pieces of the books at evenly spaced places: the first half of the books for choosing, the second half for
judging. Work is counted in gradient evaluations times tokens, which no machine changes; an unsolved text counts with
its whole budget. Every part adds its rows to a CSV as they are made. The same command continues from what is there.
The tables of README.md beside the CSVs are made from them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from preset_tables import write_tables
from rich.console import Console

import onestep_jax
from onestep_jax import PRESETS, OneStep, Optimizer, Preset, Schedule
from onestep_jax.texts import read_source
from onestep_jax.tokens import tokenise

FAST, PAPER = PRESETS["fast"], PRESETS["paper"]
BASE = dataclasses.replace(FAST, start="embedding", scale=0.2)  # what the choosing started from
JUDGED = {"fast": (24, 32, 40), "base": (24, 32, 40), "paper": (24, 16)}  # tokens, in the order tried

Row = dict[str, Any]


@dataclasses.dataclass
class Study:
    """Texts and models of a study, and where its rows go."""

    model: onestep_jax.Model
    choosing: list[list[int]]
    judging: list[list[int]]
    out: Path
    steps: int
    say: Callable[[str], None]

    def rows(self, part: str) -> list[Row]:
        path = self.out / f"{part}.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, part: str, row: Row) -> None:
        path = self.out / f"{part}.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.say(f"{part}: {', '.join(map(str, row.values()))}")

    def fit(self, texts: list[list[int]], preset: Preset, steps: int, **options: Any) -> onestep_jax.Results:
        return onestep_jax.fit(options.pop("model", self.model), texts, preset=preset, steps=steps, **options)


def with_optimizer(name: str, schedule: Schedule | None = None, **arguments: Any) -> Preset:
    """`BASE` with another optimiser."""
    return dataclasses.replace(BASE, optimizer=Optimizer(name, arguments, schedule))


def with_argument(**changed: Any) -> Preset:
    """`BASE` with an argument of its optimiser changed."""
    arguments = {**BASE.optimizer.arguments, **changed}
    return dataclasses.replace(BASE, optimizer=dataclasses.replace(BASE.optimizer, arguments=arguments))


def cosine(horizon: int, end: float, warm_up: int = 20) -> Schedule:
    return Schedule("warmup_cosine_decay", {"warmup_steps": warm_up, "decay_steps": horizon, "end_value": end})


def candidates() -> Iterator[tuple[str, str, Preset]]:
    """(what is changed, to what, the preset)."""
    yield "nothing", "", BASE
    for size in (10, 20, 80):
        yield "memory", f"{size} pairs", with_argument(memory_size=size)
    for bound in (0.02, 0.04, 0.16):
        yield "bound of a step", f"RMS {bound}", with_argument(max_rms=bound)
    yield "learning rate", "0.5", with_argument(learning_rate=0.5)
    for temperature in (0.12, 0.4, 1.0):
        yield "temperature", f"{temperature}", dataclasses.replace(BASE, temperature=temperature)
    yield "start", "deviation of the embeddings", dataclasses.replace(BASE, scale=1.0)
    normal = dataclasses.replace(BASE, start="normal", scale=1.0)
    yield "start", "N(0, 1)", normal
    yield "start", "N(0, 4)", dataclasses.replace(normal, scale=2.0)
    yield "start", "N(0, 16)", dataclasses.replace(normal, scale=4.0)
    yield "start", "N(0, 1), and RMS 0.16", dataclasses.replace(normal, optimizer=with_argument(max_rms=0.16).optimizer)
    yield "start", "N(0, 1), and temperature 0.4", dataclasses.replace(normal, temperature=0.4)
    yield "optimizer", "optax.lbfgs, no line search", with_optimizer("lbfgs", learning_rate=1.0, linesearch=None)
    adam: dict[str, Any] = {"b1": 0.9, "b2": 0.9, "weight_decay": 0.01}
    yield (
        "optimizer",
        "adamw 0.06, cosine over 800",
        with_optimizer("adamw", cosine(800, 0.2), learning_rate=0.06, **adam),
    )
    quick: dict[str, Any] = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.8, "weight_decay": 0.01}
    yield "optimizer", "adamw 0.1, β₂ = 0.8, cosine over 300", with_optimizer("adamw", cosine(300, 0.1), **quick)
    yield "optimizer", "adamw 0.01, constant", with_optimizer("adamw", learning_rate=0.01, **adam)
    yield "optimizer", "nadamw 0.06", with_optimizer("nadamw", cosine(400, 0.1), learning_rate=0.06, b1=0.9, b2=0.9)
    yield "optimizer", "adan 0.06", with_optimizer("adan", cosine(800, 0.2), learning_rate=0.06)
    yield "optimizer", "lion 0.002", with_optimizer("lion", cosine(800, 0.2), learning_rate=0.002)
    yield "optimizer", "muon 0.5", with_optimizer("muon", cosine(800, 0.2), learning_rate=0.5)
    yield "optimizer", "prodigy", with_optimizer("prodigy", learning_rate=1.0)
    averaged: dict[str, Any] = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.9, "warmup_steps": 20}
    yield "optimizer", "schedule_free_adamw 0.1 (averages iterates)", with_optimizer("schedule_free_adamw", **averaged)
    yield "paper, temperature of fast", "", dataclasses.replace(PAPER, temperature=BASE.temperature)


def choose(study: Study) -> None:
    done = {(row["changed"], row["to"]) for row in study.rows("choose")}
    for changed, to, preset in candidates():
        if (changed, to) not in done:
            texts = study.choosing[: len(study.choosing) // (2 if changed == "optimizer" else 1)]
            results = study.fit([ids[:24] for ids in texts], preset, study.steps)
            study.add("choose", {"changed": changed, "to": to} | summary(results, 24))


def summary(results: onestep_jax.Results, length: int) -> Row:
    work = length * results.steps.sum() / results.solved if results.solved else float("inf")
    numbers = {"mean steps": results.steps.mean(), "median steps": np.median(results.steps)}
    numbers |= {"mean accuracy": results.accuracy.mean(), "work per solved text": work}
    return {"solved": results.solved, "texts": len(results)} | {key: f"{value:.4g}" for key, value in numbers.items()}


def curriculum(study: Study) -> None:
    """Each chain of lengths, the vectors of one being the start of the next."""
    done = {row["lengths"] for row in study.rows("curriculum")}
    for lengths in ((32,), (24, 32), (16, 32), (16, 24, 32)):
        name = " → ".join(map(str, lengths))
        if name in done:
            continue
        start, work, results = None, 0.0, None
        for length in lengths:
            texts = [ids[:length] for ids in study.choosing]
            results = study.fit(texts, FAST, study.steps, scheme=OneStep(start=start))
            start = {leaf: np.stack([text.vectors[leaf] for text in results]) for leaf in "em"}
            work += length * results.steps.mean()
        assert results is not None
        row = {"lengths": name, "solved": results.solved, "texts": len(results), "work a text": f"{work:.4g}"}
        study.add("curriculum", row)


def seeds(study: Study) -> None:
    done = {int(row["text"]) for row in study.rows("seeds")}
    for number, ids in enumerate(study.choosing[:6]):
        if number not in done:
            results = study.fit([ids[:32]], FAST, 3 * study.steps, copies=6, slots=6)
            for copy, text in enumerate(results):
                row = {"text": number, "copy": copy, "steps": text.steps, "solved": int(text.accuracy == 1)}
                study.add("seeds", row)


def bfloat16(study: Study) -> None:
    done = {row["dtype"] for row in study.rows("bfloat16")}
    for dtype in ("float32", "bfloat16"):
        if dtype not in done:
            model = onestep_jax.load_model(study.model.source, dtype=dtype)
            results = study.fit([ids[:24] for ids in study.choosing[:8]], FAST, study.steps, model=model)
            study.add("bfloat16", {"dtype": dtype} | summary(results, 24))


def judge(study: Study) -> None:
    """All texts at the first length; longer ones while a text is solved, shorter ones where it is not even there."""
    presets = {"fast": FAST, "base": BASE, "paper": PAPER}
    for name, (first, *others) in JUDGED.items():
        everyone = list(range(len(study.judging)))
        at_first = still = judge_at(study, name, presets[name], first, everyone)
        for length in others:
            if length > first:
                still = judge_at(study, name, presets[name], length, still)
            else:
                judge_at(study, name, presets[name], length, [text for text in everyone if text not in at_first])


def judge_at(study: Study, name: str, preset: Preset, length: int, texts: list[int]) -> list[int]:
    """Fit the texts that have no row yet; those of all that are solved."""

    def solved() -> dict[int, bool]:
        rows = [row for row in study.rows("judge") if (row["preset"], row["length"]) == (name, str(length))]
        return {int(row["text"]): row["solved"] == "1" for row in rows}

    missing = [text for text in texts if text not in solved()]
    if missing:
        results = study.fit([study.judging[text][:length] for text in missing], preset, preset.steps)
        for text, found in zip(missing, results, strict=True):
            numbers = {"steps": found.steps, "solved": int(found.accuracy == 1), "c_tokens": found.c_tokens}
            study.add("judge", {"preset": name, "length": length, "text": text} | numbers)
    return [text for text in texts if solved()[text]]


PARTS = {"choose": choose, "curriculum": curriculum, "seeds": seeds, "bfloat16": bfloat16, "judge": judge}


def pieces(books: Sequence[str], count: int, characters: int) -> list[str]:
    """`count` pieces of the books in turn, at evenly spaced places of each."""
    rounds = -(-count // len(books))
    cut = []
    for i in range(count):
        round_, book = divmod(i, len(books))
        start = len(books[book]) * (2 * round_ + 1) // (2 * rounds + 1)
        cut.append(books[book][start : start + characters])
    return cut


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, help="source of whole books, as for onestep fit")
    parser.add_argument("--model", default="default")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="default: all")
    parser.add_argument("--choosing", type=int, default=16, help="texts to choose on (default: 16)")
    parser.add_argument("--judging", type=int, default=32, help="texts to judge on (default: 32)")
    parser.add_argument("--steps", type=int, default=600, help="budget of a text while choosing (default: 600)")
    parser.add_argument("--out", type=Path, default=Path("runs/preset_fast"), help="folder (default: runs/preset_fast)")
    args = parser.parse_args()

    model = onestep_jax.load_model(args.model)
    books, longest = read_source(args.texts), max(max(lengths) for lengths in JUDGED.values())
    half = len(books) // 2
    halves = ((books[:half], args.choosing), (books[half:], args.judging))
    tokens = [tokenise(model.tokenizer, pieces(part, count, 40 * longest), longest) for part, count in halves]
    args.out.mkdir(parents=True, exist_ok=True)
    choosing, judging = ([ids.tolist() for ids in part] for part in tokens)
    study = Study(model, choosing, judging, args.out, args.steps, Console().print)
    for part in args.parts:
        PARTS[part](study)
        write_tables(study.out)


if __name__ == "__main__":
    main()

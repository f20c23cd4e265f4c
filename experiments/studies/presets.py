"""Why the preset `fast` is what it is: texts solved, and work, by several ways on several models.

    python experiments/studies/presets.py --texts FILE --model default --model smollm2-135m --out runs/presets

FILE holds long texts, such as books. A model is what `onestep fit --model` takes; `untrained:permuted:0:default` is the
packaged one with its weights shuffled, and experiments/packaged/real_model.py gets SmolLM2-135M. By default `fast` and
`paper` are run. --ways names others; each changes one thing of `fast`:

    guided          the arrangement [e] [m]×(N−1), in which the output at e is the first token
    one seed        no restart of a text that stagnates
    none, bos       no prefix, or a BOS on every model, instead of a BOS where the first position is an attention sink
    scale 2         start vectors from N(0, 4) instead of N(0, 1)
    embedding       start vectors at the deviation of the input embeddings
    temperature 1   the loss of Eq. 1
    identity        L-BFGS from a multiple of the identity instead of Adam's diagonal
    by accuracy     a seed is given up after 100 evaluations without a better accuracy, and as many as before it
    optax.lbfgs     the L-BFGS of Optax without its line search
    adamw           AdamW 0.1 with warm-up and a cosine over 100 + 8 N evaluations, at temperature 1
    adamw first     20 evaluations of that AdamW, then `fast` from there
    warm first      40 evaluations at temperature 1, then `fast` from there
    half first      the first half of the text, then the whole from there

The budget is that of --steps, 1,000 unless given, for every way. Each model, way and length is a run directory (two
where something comes first), so the same command continues, and another one adds to the tables. Work is counted in
gradient evaluations, which no machine changes, and a text that is not solved counts with its whole budget. `wrong` are
the positions of the tokens that are wrong at the end. Writes presets.csv (a row a text) and README.md (a row a model,
way and length).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import onestep_jax
from onestep_jax import PRESETS, OneStep, Optimizer, Preset, Results, Schedule
from onestep_jax.cli.options import load
from onestep_jax.cli.terminal import fitting_bar
from onestep_jax.texts.corpora import load_tokens

FAST = PRESETS["fast"]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Way:
    """How texts are fitted.

    Attributes:
      preset: of the fit.
      scheme: its arrangement and prefix; None for the preset's.
      first: the protocol of a fit that comes first and gives the start vectors.
      share: of each text's tokens that are fitted first.
      steps: evaluations that it may spend; None for all.
    """

    preset: Preset = FAST
    scheme: OneStep | None = None
    first: Preset | None = None
    share: float = 1.0
    steps: int | None = None


def changed(**values: Any) -> Way:
    return Way(dataclasses.replace(FAST, **values))


def without(optimizer: Optimizer, argument: str) -> Optimizer:
    """The optimiser with the argument's default."""
    return Optimizer(optimizer.name, {key: value for key, value in optimizer.arguments.items() if key != argument})


def adamw(length: int) -> Preset:
    horizon = Schedule("warmup_cosine_decay", {"warmup_steps": 20, "decay_steps": 100 + 8 * length})
    arguments = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.999, "weight_decay": 0.0}
    return dataclasses.replace(FAST, optimizer=Optimizer("adamw", arguments, horizon), temperature=1.0)


WAYS: dict[str, Callable[[int], Way]] = {
    "fast": lambda _: Way(),
    "paper": lambda _: Way(PRESETS["paper"]),
    "guided": lambda _: changed(arrangement="one-step"),
    "one seed": lambda _: changed(patience=None, seeds=1),
    "none": lambda _: changed(prefix="none"),
    "bos": lambda _: changed(prefix="bos"),
    "scale 2": lambda _: changed(scale=2.0),
    "embedding": lambda _: changed(start="embedding"),
    "temperature 1": lambda _: changed(temperature=1.0),
    "identity": lambda _: changed(optimizer=without(FAST.optimizer, "diagonal")),
    "by accuracy": lambda _: changed(patience=100, patience_per_token=0.0, progress=None),
    "optax.lbfgs": lambda _: changed(optimizer=Optimizer("lbfgs", {"learning_rate": 1.0, "linesearch": None})),
    "adamw": lambda length: Way(adamw(length)),
    "adamw first": lambda length: Way(first=adamw(length), steps=20),
    "warm first": lambda _: Way(first=dataclasses.replace(FAST, temperature=1.0), steps=40),
    "half first": lambda _: Way(first=FAST, share=0.5),
}


def measured(source: str, args: argparse.Namespace) -> Iterator[Row]:
    """A row for each way, length and text of one model."""
    model = load(source, args.dtype, None)
    whole = load_tokens(model, f"excerpts:{args.texts}", count=args.count, length=max(args.lengths), seed=args.seed)
    name = re.sub(r"\W+", "-", Path(source).name if Path(source).exists() else source)
    for word in args.ways:
        for length in args.lengths:
            texts = [ids[:length].tolist() for ids in whole]
            run = f"{re.sub(r'[^a-z0-9]+', '-', word)}-{length}"
            folder = args.out / "runs" / (name if str(model.dtype) == "float32" else f"{name}-{model.dtype}") / run
            found, before = fitted(model, texts, WAYS[word](length), args.steps, folder)
            labels = {"model": name, "dtype": str(model.dtype), "way": word, "length": length}
            labels |= {"budget": args.steps, "prefix tokens": len(found.scheme.get("prefix", []))}
            for number, text in enumerate(found):
                wrong = np.flatnonzero(text.predicted != text.tokens)
                row = labels | {"text": number, "steps": text.steps + before[number]}
                row |= {"seeds": len(text.trials), "solved": int(text.accuracy == 1), "c_tokens": text.c_tokens}
                yield row | {"wrong": " ".join(map(str, wrong[:8]))}


def fitted(
    model: onestep_jax.Model, texts: list[list[int]], way: Way, steps: int, folder: Path
) -> tuple[Results, Sequence[int]]:
    """Results of a way, and the evaluations that came first, of each text."""

    def fit(some: list[list[int]], part: str, **options: Any) -> Results:
        with fitting_bar() as progress:
            return onestep_jax.fit(model, some, run=folder / part, progress=progress, **options)

    if way.first is None:
        return fit(texts, "whole", preset=way.preset, scheme=way.scheme, steps=steps), [0] * len(texts)
    beginnings = [ids[: max(1, round(way.share * len(ids)))] for ids in texts]
    first = fit(beginnings, "first", preset=way.first, steps=way.steps or steps)
    scheme = OneStep(way.preset.arrangement, start=first.vectors)
    return fit(texts, "whole", preset=way.preset, scheme=scheme, steps=steps), first.steps.tolist()


def summary(rows: Sequence[Row]) -> list[Row]:
    """A row for each model, way and length."""
    found = []
    for key in dict.fromkeys(place(row)[:-1] for row in rows):
        own = [row for row in rows if place(row)[:-1] == key]
        model, dtype, way, length = key
        solved = [int(row["steps"]) for row in own if int(row["solved"])]
        spent = [int(row["steps"]) for row in own]
        line: Row = {"model": model, "dtype": dtype, "way": way, "prefix": own[0]["prefix tokens"], "N": length}
        line |= {"solved": f"{len(solved)} of {len(own)}", "budget": own[0]["budget"]}
        line |= {"mean evaluations": f"{np.mean(spent):.0f}"}
        line |= {"of the solved": f"{np.mean(solved):.0f}" if solved else "–"}
        line |= {"a solved text costs": f"{sum(spent) / len(solved):.0f}" if solved else "–"}
        found.append(line | {"restarts": sum(int(row["seeds"]) - 1 for row in own)})
    return found


def read(out: Path) -> list[Row]:
    """The table of texts as it is so far."""
    if not (out / "presets.csv").exists():
        return []
    with (out / "presets.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def place(row: Row) -> tuple[str, ...]:
    """What a row is about."""
    return tuple(str(row[name]) for name in ("model", "dtype", "way", "length", "text"))


def write(out: Path, rows: list[Row]) -> None:
    """The table of texts, and the page."""
    with (out / "presets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = summary(rows)
    table = [" | ".join(lines[0]), " | ".join("---" for _ in lines[0])]
    table += [" | ".join(map(str, line.values())) for line in lines]
    page = f"# Presets on several models\n\n{__doc__}\n" + "\n".join(f"| {line} |" for line in table) + "\n"
    (out / "README.md").write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, metavar="FILE", help="long texts, such as books")
    parser.add_argument("--model", action="append", required=True, dest="models", help="may be given several times")
    parser.add_argument("--out", type=Path, default=Path("runs/presets"), metavar="DIR")
    parser.add_argument("--ways", nargs="+", default=["fast", "paper"], choices=WAYS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--count", type=int, default=16, help="texts (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="which pieces of the texts (default: 0)")
    parser.add_argument("--steps", type=int, default=1000, help="budget of a text (default: 1000)")
    parser.add_argument("--dtype", help="of the weights (default: float32 on a CPU)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {place(row): row for row in read(args.out)}
    for source in args.models:
        for row in measured(source, args):
            rows[place(row)] = row
            write(args.out, list(rows.values()))


if __name__ == "__main__":
    main()

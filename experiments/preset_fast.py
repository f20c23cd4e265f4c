"""Why the preset `fast` is what it is: work per solved text of its parts, one change at a time, against `paper`.

    python experiments/preset_fast.py --texts books/validation.jsonl.xz --length 32 --count 8 --steps 1500 \
        --out experiments/results/preset_fast.csv

Texts are pieces of the books at evenly spaced places. Work is counted in gradient evaluations, so the figures do not
depend on the machine; an unsolved text counts with its whole budget, and where no text is solved the last column holds
the work of all of them. `experiments/results/preset_fast.csv` has the rows of `--only paper fast "fast, temperature 1"
"fast, start at the embeddings' own scale" "fast, constant learning rate 0.01" "paper, temperature of fast"` on the
packaged model: the temperature of the loss is what matters most. The peak and horizon of `fast` were chosen on these
eight pieces, so its own row flatters it a little.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import onestep_jax
from onestep_jax import PRESETS, Optimizer, Preset, Schedule
from onestep_jax.texts import read_source, tokenise


def candidates() -> dict[str, Preset]:
    """`paper`, `fast`, and `fast` with one thing changed."""
    paper, fast = PRESETS["paper"], PRESETS["fast"]
    made = {"paper": paper, "fast": fast}
    made["fast, temperature 1"] = dataclasses.replace(fast, temperature=1.0)
    made["fast, start at the embeddings' own scale"] = dataclasses.replace(fast, scale=1.0)
    made["fast, start N(0, 1)"] = dataclasses.replace(fast, start="normal", scale=1.0)
    made["fast, constant learning rate 0.01"] = dataclasses.replace(fast, optimizer=paper.optimizer)
    for peak, horizon in ((0.03, 400), (0.03, 1000), (0.06, 800), (0.015, 800)):
        made[f"fast, peak {peak}, horizon {horizon}"] = dataclasses.replace(fast, optimizer=warm(peak, horizon))
    made["paper, temperature of fast"] = dataclasses.replace(paper, temperature=fast.temperature)
    return made


def warm(peak: float, horizon: int) -> Optimizer:
    """AdamW of the paper under warm-up and cosine decay to a fifth of the peak."""
    arguments = {"learning_rate": peak, "b1": 0.9, "b2": 0.9, "weight_decay": 0.01}
    shape = {"warmup_steps": 20, "decay_steps": horizon, "end_value": 0.2}
    return Optimizer("adamw", arguments, Schedule("warmup_cosine_decay", shape))


def pieces(books: list[str], count: int, characters: int) -> list[str]:
    """`count` pieces of the books in turn, at evenly spaced places of each."""
    rounds = -(-count // len(books))
    cut = []
    for i in range(count):
        round_, book = divmod(i, len(books))
        start = len(books[book]) * (round_ + 1) // (rounds + 1)
        cut.append(books[book][start : start + characters])
    return cut


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, help="source as for onestep fit")
    parser.add_argument("--model", default="default")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--count", type=int, default=16, help="texts")
    parser.add_argument("--steps", type=int, default=2000, help="budget of a text")
    parser.add_argument("--slots", default="auto")
    parser.add_argument("--only", nargs="*", help="names of candidates (default: all)")
    parser.add_argument("--out", type=Path, help="CSV")
    args = parser.parse_args()

    model = onestep_jax.load_model(args.model)
    books = read_source(args.texts)
    tokens = tokenise(model.tokenizer, pieces(books, args.count, 40 * args.length), args.length)
    texts = [ids.tolist() for ids in tokens]
    rows = []
    for name, preset in candidates().items():
        if args.only and name not in args.only:
            continue
        slots = args.slots if args.slots == "auto" else int(args.slots)
        results = onestep_jax.fit(model, texts, preset=preset, steps=args.steps, slots=slots)
        work = results.steps.sum() / max(1, results.solved)
        numbers = (results.accuracy.mean(), np.median(results.steps), work)
        rows.append((name, results.solved, len(texts), *(round(float(number), 4) for number in numbers)))
        print(rows[-1], flush=True)
    header = ("candidate", "solved", "texts", "mean accuracy", "median steps", "steps per solved text")
    table = Table(*header)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()

"""What the presets do on several models: texts solved, and work, on pieces of books that nothing was chosen on.

    python experiments/studies/presets.py --texts FILE --model default --model smollm2-135m --out runs/presets

FILE holds long texts, such as books. A model is what `onestep fit --model` takes; `untrained:permuted:0:default` is the
packaged one with its weights shuffled, and experiments/packaged/real_model.py gets SmolLM2-135M.

    fast              as it is: a BOS in front where the model's first position is an attention sink
    fast, none        the same without a prefix
    fast, bos         the same with a BOS on every model
    fast, unguided    `fast` with the arrangement [e] [m]×N, where the output at e is not used
    paper             the optimiser and start of the paper

By default `fast`, the same without a prefix, and `paper` are run; --ways names others. The budget is that of --steps,
1,000 unless given, for every way.

Each model, way and length is a run directory, so the same command continues. Work is counted in gradient evaluations,
which no machine changes, and a text that is not solved counts with its whole budget. `wrong` are the positions of the
tokens that are wrong at the end. Writes presets.csv (a row a text) and README.md (a row a model, way and length).
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import onestep_jax
from onestep_jax.cli.options import load
from onestep_jax.cli.terminal import fitting_bar
from onestep_jax.texts.corpora import load_tokens

WAYS: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast"},
    "fast, none": {"preset": "fast", "scheme": onestep_jax.OneStep(prefix="none")},
    "fast, bos": {"preset": "fast", "scheme": onestep_jax.OneStep(prefix="bos")},
    "fast, unguided": {"preset": "fast", "scheme": onestep_jax.OneStep("unguided-e")},
    "paper": {"preset": "paper"},
}
Row = dict[str, Any]


def measured(source: str, args: argparse.Namespace) -> Iterator[Row]:
    """A row for each way, length and text of one model."""
    model = load(source, args.dtype, None)
    whole = load_tokens(model, f"excerpts:{args.texts}", count=args.count, length=max(args.lengths), seed=0)
    name = re.sub(r"\W+", "-", Path(source).name if Path(source).exists() else source)
    for way in args.ways:
        for length in args.lengths:
            texts = [ids[:length].tolist() for ids in whole]
            run = args.out / "runs" / name / f"{re.sub(r'[^a-z]+', '-', way)}-{length}"
            with fitting_bar() as progress:
                found = onestep_jax.fit(
                    model, texts, length=length, run=run, steps=args.steps, progress=progress, **WAYS[way]
                )
            prefix = found.scheme.get("prefix", [])
            for number, text in enumerate(found):
                wrong = np.flatnonzero(text.predicted != text.tokens)
                row = {"model": name, "dtype": str(model.dtype), "way": way, "prefix tokens": len(prefix)}
                row |= {"length": length, "text": number, "steps": text.steps, "solved": int(text.accuracy == 1)}
                yield row | {"c_tokens": text.c_tokens, "wrong": " ".join(map(str, wrong[:8]))}


def summary(rows: Sequence[Row], steps: int) -> list[Row]:
    """A row for each model, way and length."""
    keys = list(dict.fromkeys((row["model"], row["dtype"], row["way"], row["length"]) for row in rows))
    found = []
    for model, dtype, way, length in keys:
        own = [row for row in rows if (row["model"], row["way"], row["length"]) == (model, way, length)]
        solved = [row["steps"] for row in own if row["solved"]]
        spent = [row["steps"] for row in own]
        line: Row = {"model": model, "dtype": dtype, "way": way, "prefix": own[0]["prefix tokens"], "N": length}
        line |= {"solved": f"{len(solved)} of {len(own)}", "budget": steps, "mean evaluations": f"{np.mean(spent):.0f}"}
        line |= {"of the solved": f"{np.mean(solved):.0f}" if solved else "–"}
        found.append(line | {"a solved text costs": f"{sum(spent) / len(solved):.0f}" if solved else "–"})
    return found


def write(out: Path, rows: list[Row], steps: int) -> None:
    """The table of texts, and the page."""
    with (out / "presets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = summary(rows, steps)
    table = [" | ".join(lines[0]), " | ".join("---" for _ in lines[0])]
    table += [" | ".join(map(str, line.values())) for line in lines]
    page = f"# Presets on several models\n\n{__doc__}\n" + "\n".join(f"| {line} |" for line in table) + "\n"
    (out / "README.md").write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, metavar="FILE", help="long texts, such as books")
    parser.add_argument("--model", action="append", required=True, dest="models", help="may be given several times")
    parser.add_argument("--out", type=Path, default=Path("runs/presets"), metavar="DIR")
    parser.add_argument("--ways", nargs="+", default=["fast", "fast, none", "paper"], choices=WAYS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--count", type=int, default=16, help="texts (default: 16)")
    parser.add_argument("--steps", type=int, default=1000, help="budget of a text (default: 1000)")
    parser.add_argument("--dtype", help="of the weights (default: float32 on a CPU)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for source in args.models:
        for row in measured(source, args):
            rows.append(row)
            write(args.out, rows, args.steps)


if __name__ == "__main__":
    main()

"""How far the loss of a fit with a margin is shifted, and why: three shifts, the same texts.

    python experiments/studies/margin_loss.py --out runs/margin-loss

The target's logit counts δ = max(0, ε − S · T) less, at temperature T. S is `model.token_losses.SATURATED`; here it is
∞ (no shift, the usual loss), 8 and 0 (shifted by the whole margin). Texts are the demo's, by the preset `fast`.

Writes loss.csv (a row an ε and S): texts solved with the margin and exact ones, gradient evaluations (mean over all
texts, solved or not), seeds a text, and the least lead (least and median of the texts, in logits).
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onestep_jax import Model, fit, load_model
from onestep_jax.devices import placement
from onestep_jax.model import token_losses
from onestep_jax.texts.corpora import load_tokens

SHIFTS = (math.inf, 8.0, 0.0)


def measure(model: Model, texts: list[list[int]], margin: float, saturated: float, steps: int) -> dict[str, Any]:
    """Fit the texts with one margin and one shift."""
    token_losses.SATURATED = saturated
    for programs in (placement._pmapped, placement._row_by_row, placement._as_one):
        programs.cache_clear()  # they were traced with another shift
    jax.clear_caches()
    results = fit(model, texts, margin=margin, steps=steps)
    row = {"margin": margin, "S": saturated, "texts": len(results), "solved": results.status.count("solved")}
    row |= {"exact": results.solved, "evaluations": results.steps.mean()}
    row |= {"seeds a text": np.mean([len(text.trials) for text in results])}
    return row | {"lead least": results.margin.min(), "lead median": np.median(results.margin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="default, a folder or a hub id (default: default)")
    parser.add_argument("--count", type=int, default=8, help="texts (default: 8)")
    parser.add_argument("--length", type=int, default=8, help="tokens of each (default: 8)")
    parser.add_argument("--margins", type=float, nargs="+", default=[4.0, 6.0], help="ε (default: 4 6)")
    parser.add_argument("--steps", type=int, default=1200, help="gradient evaluations of a text (default: 1200)")
    parser.add_argument("--out", type=Path, default=Path("runs/margin-loss"), help="folder (default: runs/margin-loss)")
    args = parser.parse_args()
    model = load_model(args.model, dtype="float32")
    texts = [ids.tolist() for ids in load_tokens(model, "demo", count=args.count, length=args.length)]
    rows = []
    for margin in args.margins:
        for saturated in SHIFTS:
            rows.append(measure(model, texts, margin, saturated, args.steps))
            print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "loss.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows({key: f"{float(value):.6g}" for key, value in row.items()} for row in rows)


if __name__ == "__main__":
    main()

"""Why an encoder is built as it is: held-out curves of trainings that differ from the default in one thing.

    python experiments/studies/encoder_designs.py --texts books/train.jsonl.xz --out runs/encoder-designs

Each way trains an encoder of the packaged model on windows of --length tokens, with --corrections learned steps and
without a first stage. It is measured every 100 updates on the same 128 held-out windows. --ways takes some of them:

    default          the reader a copy of the blocks, the map from all positions through channels, network steps
    whole states     the map takes whole states instead of channels
    queries          the map reads the two queries alone
    matrix           a correction is a matrix
    diagonal         a correction is a number for each component
    lora             the reader is the frozen blocks with adapters of rank 16
    no reader        every text begins at the same vectors
    first order      no second derivatives, the same number of updates
    no corrections   the reader alone
    seed 1, seed 2   the default with other first weights and windows

With `--model untrained:permuted:0:default` the decoder is the packaged model with its weights shuffled.

A way that was stopped or killed goes on from its last saved state. Writes curves.csv (a row a way and a measurement:
tokens exact before the first correction and after the last, texts exact, nats a token, seconds of training) and a plot.
Seconds depend on the machine and on what else it does; compare them within one run.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onestep_jax import Design, Model, Recipe, load_model, train_encoder
from onestep_jax.cli.terminal import training_bar
from onestep_jax.texts.files import read_source

# way → what differs in the design and in the recipe
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "whole states": ({"channels": 0}, {}),
    "queries": ({"pooling": "queries"}, {}),
    "matrix": ({"step": "matrix"}, {}),
    "diagonal": ({"step": "diagonal"}, {}),
    "lora": ({"reader": "lora"}, {}),
    "no reader": ({"reader": "none"}, {}),
    "first order": ({}, {"first_order": True}),
    "no corrections": ({"corrections": 0}, {}),
    "seed 1": ({}, {"seed": 1}),
    "seed 2": ({}, {"seed": 2}),
}


def curve(model: Model, texts: Sequence[str], way: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train one way; its measurements, from the log of the training."""
    parts, how = WAYS[way]
    design = Design(**{"length": args.length, "corrections": args.corrections} | parts)
    recipe = Recipe(updates=args.updates, batch=args.batch, lr=3e-3, warmup=30, growth=0.0, reading=0.0)
    recipe = Recipe(**recipe.describe() | how)
    folder = args.out / way.replace(" ", "-")
    with training_bar() as progress:
        train_encoder(
            model,
            texts,
            folder,
            design=design,
            recipe=recipe,
            validate_every=args.every,
            data=Path(args.texts).name,
            progress=progress,
        )
    for line in (folder / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "validation" in row:
            found = row["validation"]
            yield {
                "way": way,
                "update": row["update"],
                "seconds": row["seconds"],
                "tokens exact at first": found["accuracy"][0],
                "tokens exact": found["accuracy"][-1],
                "texts exact": found["exact"][-1],
                "nats": found["nats"][-1],
            }


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Tokens exact after the last correction, against updates and against seconds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("update", "seconds"), strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            own = [row for row in rows if row["way"] == way]
            axis.plot([row[name] for row in own], [row["tokens exact"] for row in own], marker=".", label=way)
        axis.set_xlabel({"update": "updates", "seconds": "seconds of training"}[name])
    axes[0].set_ylabel("held-out tokens exact")
    axes[1].legend(fontsize=8)
    figure.savefig(out / "curves.png", dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, metavar="SOURCE", help="as of onestep fit; whole books")
    parser.add_argument("--model", default="default", help="default: the packaged one")
    parser.add_argument("--out", type=Path, default=Path("runs/encoder-designs"))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--corrections", type=int, default=4)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, metavar="U", help="updates between measurements")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args(argv)
    model, texts = load_model(args.model), read_source(args.texts)
    rows: list[dict[str, Any]] = []
    for way in args.ways:
        rows += curve(model, texts, way, args)
        with (args.out / "curves.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

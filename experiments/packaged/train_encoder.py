"""Train the encoder of the packaged model.

    python experiments/packaged/train_encoder.py --texts books/train.jsonl.xz --out onestep_jax/data/encoder

The texts are whole books; one of twenty is left out for validation. The first training has eight corrections and their
whole derivative. The second begins with its weights, rounded to bfloat16, and adds four corrections; it takes the
gradients inside them as constants. The same command goes on where it was stopped or killed. What `--work` holds, saved
states and token ids, is needed for that alone. At the end the weights are written to `--out`, in bfloat16, with a model
card that has the recipe, the hours and the figures. `onestep encode`, `onestep encoder eval` and `onestep demo
--encode` take them from there.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from onestep_jax import Design, Recipe, load_encoder, load_model, save_encoder, train_encoder
from onestep_jax.cli.terminal import training_bar
from onestep_jax.texts.files import read_source

DESIGN = Design(length=8, channels=0)  # with channels it would be smaller, and a little worse
RECIPE = Recipe(updates=2000, batch=64, lr=3e-3, growth=0.15, reading=0.15)
MORE_CORRECTIONS = 4
SECOND = Recipe(updates=800, batch=64, lr=1e-3, growth=0.0, reading=0.0, first_order=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, metavar="SOURCE", help="as of onestep fit; whole books")
    parser.add_argument("--work", type=Path, default=Path("runs/encoder"), help="saved states (default: runs/encoder)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--save-every", type=float, default=300, metavar="SECONDS", help="default: 300")
    args = parser.parse_args()
    texts, model = read_source(args.texts), load_model("default")
    more = dataclasses.replace(DESIGN, corrections=DESIGN.corrections + MORE_CORRECTIONS)
    encoder = None
    for name, design, recipe in (("first", DESIGN, RECIPE), ("second", more, SECOND)):
        with training_bar() as progress:
            train_encoder(
                model,
                texts,
                args.work / name,
                design=design,
                recipe=recipe,
                start=encoder,
                data=Path(args.texts).name,
                save_every=args.save_every,
                dtype="bfloat16",
                progress=progress,
            )
        encoder = load_encoder(args.work / name, model)
    save_encoder(encoder, args.out, "bfloat16")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

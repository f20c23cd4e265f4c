"""`onestep encoder`: train an encoder, and measure one on held-out texts."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from onestep_jax import errors
from onestep_jax.cli.options import add_model_options, add_number, add_texts_options, load, local_option, numbers
from onestep_jax.cli.options.scheme import prefix_of
from onestep_jax.cli.terminal import console, say, training_bar
from onestep_jax.encoder.design import CHANNELS, CORRECTIONS, POOLINGS, READERS, STEPS, Design
from onestep_jax.encoder.recipe import SHARE, Recipe
from onestep_jax.errors import UserError
from onestep_jax.store.records import json_text

SUMMARY = "Train an encoder, text → (e, m) without optimisation; or measure one."


def add_options(parser: argparse.ArgumentParser) -> None:
    found = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, text, add in (
        ("train", "Train an encoder; run it again to go on where it stopped.", _train_options),
        ("eval", "Measure an encoder on texts, at several lengths and after several corrections.", _eval_options),
    ):
        sub = found.add_parser(name, help=text, description=text, allow_abbrev=False)
        add(sub)


def _train_options(sub: argparse.ArgumentParser) -> None:
    add_model_options(sub, default="default", default_text="default, the packaged one")
    add_texts_options(sub)
    sub.add_argument(
        "--validation", metavar="SOURCE", help="texts to measure on (default: one of twenty of --texts is left out)"
    )
    sub.add_argument(
        "--out", type=local_option, required=True, metavar="DIR", help="folder of the encoder, created or gone on with"
    )
    how, design, recipe = sub.add_argument_group("how long"), Design(), Recipe()
    add_number(how, "--updates", errors.STEPS, metavar="U", help=f"of the weights (default: {recipe.updates})")
    add_number(how, "--hours", errors.DURATION, metavar="H", help="instead: as many as take so long")
    add_number(how, "--save-every", errors.PAUSE, default=300, metavar="SECONDS", help="default: 300")
    add_number(
        how,
        "--validate-every",
        errors.STEPS,
        default=200,
        metavar="U",
        help="updates between figures on held-out windows (default: 200)",
    )
    parts = sub.add_argument_group("the encoder")
    parts.add_argument(
        "--start",
        metavar="ENCODER",
        help="a folder, or default: begin with its weights; its parts are the defaults here",
    )
    add_number(
        parts,
        "--length",
        errors.SIZE,
        metavar="N",
        help=f"tokens of the longest texts (default: {design.length}, or as in --start)",
    )
    parts.add_argument("--reader", metavar="WHAT", help=f"{', '.join(READERS)} (default: {design.reader})")
    add_number(parts, "--rank", errors.SIZE, metavar="R", help=f"of the adapters of lora (default: {design.rank})")
    parts.add_argument("--pooling", metavar="WHAT", help=f"{' or '.join(POOLINGS)} (default: {design.pooling})")
    add_number(
        parts,
        "--channels",
        CHANNELS,
        metavar="C",
        help=f"numbers taken from each state, 0 for the whole state (default: {design.channels})",
    )
    add_number(parts, "--corrections", CORRECTIONS, metavar="K", help=f"learned steps (default: {design.corrections})")
    parts.add_argument("--step", metavar="WHAT", help=f"{' or '.join(STEPS)} (default: {design.step})")
    add_number(
        parts,
        "--temperature",
        errors.RATE,
        metavar="T",
        help=f"of the loss, and of the gradients of corrections (default: {design.temperature:g})",
    )
    parts.add_argument("--arrangement", metavar="NAME", help=f"of Table 1 (default: {design.arrangement})")
    parts.add_argument("--prefix", metavar="WHAT", help="frozen tokens before the vectors, or @FILE, as of onestep fit")
    _recipe_options(sub.add_argument_group("the training"), recipe)


def _recipe_options(group: Any, recipe: Recipe) -> None:
    add_number(group, "--batch", errors.SIZE, metavar="B", help=f"windows of an update (default: {recipe.batch})")
    add_number(group, "--accumulate", errors.SIZE, metavar="A", help="parts of a batch, in turn (default: 1)")
    add_number(group, "--lr", errors.RATE, metavar="LR", help=f"peak of the learning rate (default: {recipe.lr:g})")
    add_number(group, "--warmup", errors.STEPS, metavar="U", help=f"updates to the peak (default: {recipe.warmup})")
    add_number(
        group,
        "--growth",
        SHARE,
        metavar="S",
        help=f"share of the updates in which texts grow from 4 tokens to N (default: {recipe.growth:g})",
    )
    add_number(
        group,
        "--reading",
        SHARE,
        metavar="S",
        help=f"share of the updates, the first, without corrections (default: {recipe.reading:g})",
    )
    group.add_argument("--first-order", action="store_true", help="no derivatives of gradients: half the time")
    group.add_argument("--remat", action="store_true", help="less memory: compute corrections again for the derivative")
    add_number(group, "--seed", errors.SEED, metavar="I", help="of first weights and windows (default: 0)")
    group.add_argument("--json", action="store_true", help="print the figures as JSON")


def _eval_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("encoder", nargs="?", default="default", metavar="DIR", help="default: the packaged one")
    add_model_options(sub, default="default", default_text="default, the packaged one")
    add_texts_options(sub, limit=False)
    add_number(sub, "--count", errors.COUNT, default=64, metavar="K", help="texts (default: 64)")
    sub.add_argument(
        "--lengths", type=numbers(errors.SIZE), metavar="N,…", help="tokens (default: 4, 8, … to the encoder's)"
    )
    add_number(sub, "--seed", errors.SEED, default=0, metavar="I", help="of texts that are drawn (default: 0)")
    sub.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    return _train(args) if args.what == "train" else _eval(args)


def _given(args: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The options that set fields of a dataclass."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def _train(args: argparse.Namespace) -> int:
    from onestep_jax.encoder.folder import load_encoder
    from onestep_jax.encoder.train import train_encoder
    from onestep_jax.texts.files import read_source

    if args.hours is not None and args.updates is not None:
        raise UserError("--hours and --updates: give one of them")
    prefix, args.prefix = prefix_of(args.prefix), None
    recipe, parts = Recipe(**_given(args, Recipe)), _given(args, Design)
    design = Design(**parts)

    def read(source: str) -> list[str]:
        return read_source(source, split=args.split, column=args.column, limit=args.limit)

    texts, held = read(args.texts), read(args.validation) if args.validation else None
    model = load(args.model, args.dtype, args.revision)
    start = load_encoder(args.start, model) if args.start else None
    if start is not None:
        design = dataclasses.replace(start.design, **parts)
    with training_bar() as progress:
        encoder = train_encoder(
            model,
            texts,
            Path(args.out),
            design=design,
            recipe=recipe,
            start=start,
            hours=args.hours,
            validation=held,
            prefix=prefix,
            data=Path(args.texts).name,
            save_every=args.save_every,
            validate_every=args.validate_every,
            progress=progress,
        )
    figures = encoder.trained["figures"]
    if args.json:
        print(json_text({"encoder": str(args.out), **encoder.trained}))
        return 0
    rows = [
        {"length": encoder.design.length, "corrections": k, "nats": nats, "accuracy": hits, "exact": exact}
        for k, (nats, hits, exact) in enumerate(
            zip(*(figures[name] for name in ("nats", "accuracy", "exact")), strict=True)
        )
    ]
    _print(rows, f"Held-out windows of {encoder.design.length} tokens")
    say(f"Encoder {args.out}: {encoder.parameters:,} weights, {encoder.trained['updates']:,} updates")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from onestep_jax.encoder.encoding import evaluate
    from onestep_jax.encoder.folder import load_encoder
    from onestep_jax.texts.corpora import load_tokens

    model = load(args.model, args.dtype, args.revision)
    encoder = load_encoder(args.encoder, model)
    lengths = args.lengths or encoder.design.lengths
    tokens = load_tokens(
        model, args.texts, count=args.count, length=max(lengths), seed=args.seed, column=args.column, split=args.split
    )
    rows = [row for length in lengths for row in evaluate(model, encoder, [ids[:length] for ids in tokens])]
    if args.json:
        print(json_text({"rows": rows}))
    else:
        _print(rows, f"{len(tokens)} texts of {args.texts}")
    return 0


def _print(rows: list[dict[str, Any]], title: str) -> None:
    from rich.table import Table

    table = Table("tokens", "corrections", "nats per token", "tokens exact", "texts exact", title=title)
    for row in rows:
        shares = (f"{row[name]:.1%}" for name in ("accuracy", "exact"))
        table.add_row(str(row["length"]), str(row["corrections"]), f"{row['nats']:.3f}", *shares)
    console().print(table)

"""`onestep encode`: proto-tokens of many texts by an encoder, into a run directory."""

from __future__ import annotations

import argparse
import time

from onestep_jax import errors
from onestep_jax.cli.options import (
    add_model_options,
    add_number,
    add_texts_options,
    count_of,
    load,
    run_option,
    tell_results,
)
from onestep_jax.cli.terminal import counting_bar
from onestep_jax.encoder.design import CORRECTIONS

SUMMARY = "Proto-tokens of many texts by an encoder, without optimisation; run it again to go on."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, default="default", default_text="default, the packaged one")
    parser.add_argument("--encoder", default="default", metavar="DIR", help="default: the packaged one")
    add_texts_options(parser)
    add_number(
        parser, "--length", errors.SIZE, required=True, metavar="N", help="tokens of each text to keep, its first ones"
    )
    add_number(
        parser, "--refine", CORRECTIONS, metavar="K", help="most learned corrections of a text (default: all it has)"
    )
    parser.add_argument(
        "--run", type=run_option, required=True, metavar="DIR", help="run directory, created or gone on with"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    from onestep_jax.encoder.encode import encode
    from onestep_jax.encoder.folder import load_encoder
    from onestep_jax.texts.corpora import is_named, load_tokens
    from onestep_jax.texts.files import read_source

    named = is_named(args.texts)
    count = count_of(args) if named else 0
    texts = None if named else read_source(args.texts, split=args.split, column=args.column, limit=args.limit)
    model = load(args.model, args.dtype, args.revision)
    encoder = load_encoder(args.encoder, model)
    if texts is None:
        how = {"column": args.column, "split": args.split}
        texts = load_tokens(model, args.texts, count=count, length=args.length, **how)
    began = time.perf_counter()
    with counting_bar("encoding") as progress:
        results = encode(model, encoder, texts, length=args.length, refine=args.refine, run=args.run, progress=progress)
    tell_results(args.run, results, time.perf_counter() - began, as_json=args.json)
    return 0

"""`onestep export`: the vectors of a run as one file."""

from __future__ import annotations

import argparse

from onestep_jax.cli.options import add_model_of_run, add_run, file_option, load_of_run
from onestep_jax.cli.terminal import say
from onestep_jax.prototokens.assembly import input_rows
from onestep_jax.store.export import FORMS, write_vectors
from onestep_jax.store.reading import read_config, read_results
from onestep_jax.store.records import json_text

SUMMARY = "Write the vectors of a run as one file: safetensors, npz or Parquet."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=file_option, required=True, metavar="FILE")
    parser.add_argument(
        "--format", choices=FORMS, help="(default: what FILE ends with, else safetensors)", metavar="|".join(FORMS)
    )
    parser.add_argument(
        "--inputs-embeds",
        action="store_true",
        help="write what enters the model as well: the rows of prefix, e, m, … of each text",
    )
    add_model_of_run(parser, "; read with --inputs-embeds alone")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    results = read_results(args.run)
    model = load_of_run(args, read_config(args.run)) if args.inputs_embeds else None
    inputs = None if model is None else input_rows(model, results)
    write_vectors(results, args.out, args.format, inputs)
    summary = {"out": str(args.out), "texts": len(results)}
    say(json_text(summary) if args.json else f"{len(results)} texts written to {args.out}")
    return 0

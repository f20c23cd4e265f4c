"""`onestep export`: the vectors of a run as one file."""

from __future__ import annotations

import argparse

from onestep_jax.cli.options import add_run, file_option
from onestep_jax.cli.terminal import say
from onestep_jax.store.export import write_safetensors
from onestep_jax.store.reading import read_results
from onestep_jax.store.records import json_text

SUMMARY = "Write the vectors of a run as one safetensors file."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=file_option, required=True, metavar="FILE.safetensors")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    results = read_results(args.run)
    write_safetensors(results, args.out)
    summary = {"out": str(args.out), "texts": len(results)}
    say(json_text(summary) if args.json else f"{len(results)} texts written to {args.out}")
    return 0

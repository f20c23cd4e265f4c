"""`onestep verify`: whether a run still holds what was recorded."""

from __future__ import annotations

import argparse

from onestep_jax.cli.options import add_model_of_run, add_run, load_of_run
from onestep_jax.cli.terminal import console, counting_bar, say
from onestep_jax.prototokens.reconstruction import decoding_of
from onestep_jax.store.reading import read_config
from onestep_jax.store.records import json_text
from onestep_jax.store.verify import Verification, set_aside, verification_json, verify

SUMMARY = "Check a run: files, checksums, vectors decoded again; 1 if not clean."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_model_of_run(parser)
    parser.add_argument("--no-decode", action="store_true", help="check files and checksums only; needs no model")
    parser.add_argument(
        "--drop", action="store_true", help="move what is damaged to DIR/damaged, for the same fit to make it again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    found = _verify(args)
    dropping = args.drop and any(problem.damage for problem in found.problems)
    kept = set_aside(args.run, found) if dropping else None
    if args.json:
        print(json_text(verification_json(found) | {"kept": kept}))
    else:
        _print(found, kept)
    return int(any(not (dropping and problem.damage) for problem in found.problems))


def _verify(args: argparse.Namespace) -> Verification:
    """Check the run, with its vectors decoded again on its model unless --no-decode is given."""
    config = read_config(args.run)
    model = None if args.no_decode else load_of_run(args, config)
    with counting_bar("verifying") as progress:
        return verify(args.run, None if model is None else decoding_of(model), progress)


def _print(found: Verification, kept: int | None) -> None:
    """Print what was found; `kept` is how many whole texts of damaged parts were saved, None if nothing was moved."""
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("parts, saved states", f"{found.parts:,}, {found.states:,}")
    table.add_row("texts", f"{found.recorded:,} of {found.texts:,} recorded and whole")
    table.add_row("decoded again", f"{found.decoded:,}")
    if found.twice:
        table.add_row("recorded twice, alike", f"{found.twice:,}; the next onestep fit on the run clears that")
    if found.foreign:
        table.add_row("foreign files", f"{len(found.foreign):,}, left where they are")
    table.add_row("problems", f"{len(found.problems):,}")
    console().print(table)
    for problem in found.problems:
        say(str(problem))
    for path in found.foreign:
        say(f"{path}: no file of a run")
    if kept is not None:
        print(
            f"damaged parts and states moved to damaged/, {kept} whole texts of them kept; fit again makes the others"
        )
    elif any(problem.damage for problem in found.problems):
        print("onestep verify --drop moves what is damaged to damaged/, so that the same onestep fit makes it again")

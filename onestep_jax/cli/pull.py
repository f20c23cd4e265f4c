"""`onestep pull`: a run directory from a data set of the hub."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from onestep_jax.cli.options import local_option, option
from onestep_jax.cli.terminal import say
from onestep_jax.errors import UserError
from onestep_jax.store.records import json_text
from onestep_jax.store.sharing.hub import download, repository
from onestep_jax.store.sharing.packing import unpack
from onestep_jax.store.storage import check_writable

SUMMARY = "Make a run directory of a data set of the Hugging Face hub that onestep push has made."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=option(repository), metavar="hf:OWNER/NAME", help="the data set")
    parser.add_argument("run", type=local_option, metavar="DIR", help="run directory to make; not there yet, or empty")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    target = Path(os.path.abspath(args.run))
    _check_free(args.run, target)
    texts = unpack(download(args.name, args.revision), target)
    if args.json:
        print(json_text({"run": str(args.run), "texts": texts}))
        return 0
    say(f"{texts} texts of hf:{args.name}, each as it was recorded; run directory {args.run}")
    return 0


def _check_free(named: Path, target: Path) -> None:
    """Refuse a place that is taken or cannot be written, before anything is fetched."""
    check_writable(target)
    try:
        taken = os.path.lexists(target) and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise UserError(f"{named}: cannot be read ({error.strerror}); give another folder") from error
    if taken:
        raise UserError(f"{named}: is there already and not empty; give a folder that is new")

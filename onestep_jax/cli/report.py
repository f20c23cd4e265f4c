"""`onestep report`: runs and experiments on one page."""

from __future__ import annotations

import argparse

from onestep_jax.cli.options import local_folder, local_option, run_option
from onestep_jax.cli.terminal import say

SUMMARY = "Write a report of runs and experiments: one HTML page, CSV, PNG."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        type=run_option,
        nargs="+",
        metavar="DIR",
        help="run directory, folder of a growth, or folder of an experiment",
    )
    parser.add_argument(
        "--out", type=local_option, metavar="DIR", help="folder of the report (default: report/ in the first)"
    )


def run(args: argparse.Namespace) -> int:
    from onestep_jax.report import write_report

    written = write_report(args.folders, args.out or local_folder(str(args.folders[0])) / "report")
    for path in (written.page, written.table, *written.figures):
        if path is not None:
            say(str(path))
    return 0

"""`onestep status`: how far a run is."""

from __future__ import annotations

import argparse

from onestep_jax.cli.options import add_run
from onestep_jax.cli.terminal import console, say
from onestep_jax.store.records import json_text
from onestep_jax.store.status import Status, read_status, status_json

SUMMARY = "Show how far a run is, and what a resume would do; changes nothing."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    found = read_status(args.run)
    if args.json:
        print(json_text(status_json(found)))
    else:
        _print(found)
    return 0


def _print(status: Status) -> None:
    from rich.table import Table

    table = Table(show_header=False)
    ends = ", ".join(f"{count} {name}" for name, count in status.ends.items())
    table.add_row("texts", f"{len(status.recorded):,} of {status.texts:,} recorded: {ends}")
    steps = [flight.steps for flight in status.in_flight]
    reach = f", saved at {min(steps):,} to {max(steps):,} steps" if steps else ""
    table.add_row("in flight", f"{len(steps):,}{reach}")
    table.add_row("rate", "none yet" if status.an_hour is None else f"{status.an_hour:,.4g} texts an hour")
    if status.session:
        session = status.session
        table.add_row("session", f"{session.number}, processes: {session.processes}, begun {session.since}")
    table.add_row("now", f"going on: {status.owner}" if status.owner else "not going on")
    table.add_row("still" if status.owner else "a resume", status.outlook)
    console().print(table)
    for row in status.failures:
        say(f"failed: [{row['index']}] {row['text_id']} after {row['steps']} steps")

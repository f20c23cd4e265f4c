"""The command `onestep`: the table of commands, dispatch, exit statuses."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from onestep_jax.cli.terminal import drop_output, plain_warnings, say_line, write_any_character
from onestep_jax.errors import Interrupted, Stranded, UserError, nearest
from onestep_jax.store.storage import is_full

# In the order of `onestep --help`. The command NAME is the module onestep_jax.cli.NAME, which has SUMMARY (a line),
# add_options(parser) and run(args) → exit status.
COMMANDS = (
    "demo",
    "fit",
    "encode",
    "encoder",
    "decode",
    "verify",
    "status",
    "export",
    "push",
    "pull",
    "report",
    "experiment",
    "bench",
    "info",
)

BAD_INPUT = 2
RESUME = 75  # EX_TEMPFAIL: stopped by a signal with everything saved; run the same command again


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line.

    Parsed options have two more attributes: `parser`, that of the command or benchmark, and `open_ended`, whether the
    command reads options that the parser does not know.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.set_defaults(parser=self, open_ended=False)

    @property
    def known_options(self) -> list[str]:
        """Its options as they are written, such as "--json"."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def refuse(self, word: str) -> NoReturn:
        """Refuse a word that no command knows, naming the nearest option."""
        raise UserError(f"unknown argument {word!r}{nearest(word, self.known_options)}; see {self.prog} --help")


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="onestep", allow_abbrev=False, description="Exact texts from a frozen LLM in one forward pass."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"onestep_jax.cli.{name}")
        sub = subparsers.add_parser(name, help=command.SUMMARY, description=command.SUMMARY, allow_abbrev=False)
        sub.set_defaults(function=command.run)
        command.add_options(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      argv: the words after `onestep`; by default those of the process.

    Returns:
      The exit status: 0, 1 where `onestep verify` finds a problem, 2 for bad input, 75 when a signal stopped a fit and
      everything is saved.
    """
    write_any_character()
    try:
        with plain_warnings():
            return _run_and_flush(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        say_line(f"onestep: error: {error}")
        if isinstance(error, Stranded):
            os._exit(BAD_INPUT)  # JAX then ends the others, where an ordinary exit would wait for them
        return BAD_INPUT
    except Interrupted as stopped:
        say_line(f"onestep: {stopped}")
        return RESUME
    except BrokenPipeError:
        drop_output()
        return 0
    except OSError as error:
        if not is_full(error):
            raise
        drop_output()
        say_line("onestep: error: standard output: cannot write (the disk is full); free some space")
        return BAD_INPUT


def _run_and_flush(argv: list[str]) -> int:
    """Have standard output take all that was printed: a refusal at the interpreter's end could not be told."""
    try:
        status = _run(argv)
    except SystemExit:  # of argparse, after --help
        status = 0
    print(end="", flush=True)
    return status


def _run(argv: list[str]) -> int:
    _check_working_folder()
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if args.version:
        print(importlib.metadata.version("onestep_jax"))
        return 0
    if args.command is None:
        parser.print_help()
        return BAD_INPUT
    # argparse keeps the marker "--" or drops it, depending on its place; what stands after it counts either way.
    rest = [word for word in rest if word != "--"]
    if rest and not args.open_ended:
        args.parser.refuse(rest[0])
    args.argv, args.rest = argv, rest
    return args.function(args)


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working folder cannot be found ({error.strerror}); go to another one with cd") from error

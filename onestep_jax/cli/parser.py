"""The command `onestep`: parse and dispatch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from onestep_jax.cli import bench as benchmarks
from onestep_jax.cli import commands
from onestep_jax.errors import Interrupted, Stranded, UserError, nearest
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.prototokens.schemes import ARRANGEMENTS
from onestep_jax.store.storage import local_folder, locate

RESUME = 75  # EX_TEMPFAIL: stopped by a signal with everything saved; run the same command again


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="onestep", allow_abbrev=False, description="Exact texts from a frozen LLM in one forward pass."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, function: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub

    demo = command("demo", commands.demo, "Fit eight short texts on the packaged model and decode each in one pass.")
    demo.add_argument("--run", type=_local, metavar="DIR", help="run directory (default: a new one under runs/)")
    demo.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")

    fit = command("fit", commands.fit, "Find proto-tokens for many texts; run it again to go on where it stopped.")
    _add_fit_options(fit)

    decode = command("decode", commands.decode, "Reconstruct the texts of a run in one forward pass a batch.")
    decode.add_argument("run", type=_run, metavar="DIR", help="run directory or its address, such as gs://bucket/run")
    _add_model_options(decode, default=None, default_text="the run's")
    decode.add_argument("--batch", type=int, default=16, metavar="B", help="texts at a time (default: 16)")
    decode.add_argument(
        "--generate", action="store_true", help="of a cramming run: generate greedily from its vectors alone"
    )
    decode.add_argument("--json", action="store_true", help="print JSON")

    verify = command("verify", commands.verify, "Check a run: files, checksums, vectors decoded again; 1 if not clean.")
    verify.add_argument("run", type=_run, metavar="DIR", help="run directory or its address, such as gs://bucket/run")
    _add_model_options(verify, default=None, default_text="the run's")
    verify.add_argument("--no-decode", action="store_true", help="check files and checksums only; needs no model")
    verify.add_argument(
        "--drop", action="store_true", help="move what is damaged to DIR/damaged, for the same fit to make it again"
    )
    verify.add_argument("--json", action="store_true", help="print JSON")

    status = command("status", commands.status, "Show how far a run is, and what a resume would do; changes nothing.")
    status.add_argument("run", type=_run, metavar="DIR", help="run directory or its address, such as gs://bucket/run")
    status.add_argument("--json", action="store_true", help="print JSON")

    export = command("export", commands.export, "Write the vectors of a run as one safetensors file.")
    export.add_argument("run", type=_run, metavar="DIR", help="run directory or its address, such as gs://bucket/run")
    export.add_argument("--out", type=_local, required=True, metavar="FILE.safetensors")
    export.add_argument("--json", action="store_true", help="print JSON")

    report = command("report", commands.report, "Write a report of runs and experiments: one HTML page, CSV, PNG.")
    report.add_argument("folders", type=_run, nargs="+", metavar="DIR", help="run directory or folder of an experiment")
    report.add_argument(
        "--out", type=_local, metavar="DIR", help="folder of the report (default: report/ in the first)"
    )

    cards = command("experiment", commands.experiment, "Run a recipe card of experiments/: a table or figure, or all.")
    cards.add_argument("name", nargs="?", metavar="NAME", help="card, or all; without it the cards are listed")
    _add_model_options(cards, default=None, default_text="the card's")
    cards.add_argument("--smoke", action="store_true", help="the smallest size, seconds on the packaged model")
    cards.add_argument("--packaged", action="store_true", help="the size for the packaged model on a small machine")
    cards.add_argument("--card", action="store_true", help="print the card and its settings, and run nothing")
    cards.add_argument("--out", type=_local, metavar="DIR", help="parent folder (default: runs/experiments)")
    cards.epilog = "Any other option is a setting of the card: --count 20 --lengths 4,8,16. See --card."

    bench = command("bench", benchmarks.bench, "Measure speed side by side: step, scale, sweep, host, decode, load.")
    benchmarks.add_benchmarks(bench)

    info = command("info", commands.info, "Describe a model: architecture, sizes, memory and work of a fit.")
    info.add_argument("model", nargs="?", default="default", metavar="MODEL", help="default, a folder or a hub id")
    info.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    info.add_argument("--dtype", metavar="DTYPE", help="float32 or bfloat16 (default: float32 on a CPU, else bfloat16)")
    info.add_argument("--slots", type=int, default=8, metavar="S", help="texts at a time on one device (default: 8)")
    info.add_argument("--length", type=int, default=32, metavar="N", help="tokens of a text (default: 32)")
    info.add_argument("--preset", default="fast", metavar="NAME", help="optimiser of the fit (default: fast)")
    info.add_argument("--weights", action="store_true", help="read the weights too: fingerprint, scale of the inputs")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.epilog = (
        "Only config.json is read (and fetched, for a hub id) unless --weights is given. Memory is XLA's own account "
        "of the step, compiled for this machine's device and not run; on a CPU, bfloat16 includes float32 copies of "
        "the weights that accelerators do not make."
    )
    return parser


def _add_model_options(parser: argparse.ArgumentParser, default: str | None, default_text: str) -> None:
    parser.add_argument("--model", default=default, help=f"default, a folder or a hub id (default: {default_text})")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--dtype", metavar="DTYPE", help="float32 or bfloat16 (default: float32 on a CPU, else bfloat16)"
    )


def _add_fit_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Any other option is an argument of the optimizer, by optax's name for it: --b1 0.9 --weight-decay 0.01. "
        "Without --optimizer they change the preset's optimizer; with it they add to optax's defaults."
    )
    _add_model_options(parser, default="default", default_text="default, the packaged one")
    data = parser.add_argument_group("texts")
    data.add_argument(
        "--texts", required=True, metavar="SOURCE", help=".txt, .jsonl, .csv, .parquet or hf:NAME[:SPLIT[:COLUMN]]"
    )
    data.add_argument("--split", default="file", metavar="HOW", help="a .txt is one text (file) or one a line (lines)")
    data.add_argument("--column", default="text", help="column of a table (default: text)")
    data.add_argument("--limit", type=int, metavar="K", help="use only the first K texts")
    data.add_argument(
        "--length", type=int, required=True, metavar="N", help="tokens of each text to keep, its first ones"
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--run",
        type=_run,
        required=True,
        metavar="DIR",
        help="run directory, created or gone on with; or an address such as gs://bucket/run",
    )
    run.add_argument("--slots", default="auto", metavar="S", help="texts optimised at a time (default: auto)")
    run.add_argument(
        "--remat",
        default="auto",
        metavar="HOW",
        help="activations again instead of kept: on, off or auto, where not one text fits (default: auto)",
    )
    run.add_argument(
        "--attention",
        default="plain",
        metavar="HOW",
        help="plain, or one fused kernel: cudnn on a GPU in bfloat16, splash on a TPU (default: plain)",
    )
    run.add_argument(
        "--placement",
        default="auto",
        metavar="HOW",
        help="pmap: weights on every device; mesh: weights and large groups split; auto: pmap where it will do",
    )
    run.add_argument(
        "--model-axis", type=int, metavar="K", help="devices a model is split over (default: as few as hold it)"
    )
    run.add_argument("--chunk", type=int, default=10, metavar="C", help="steps between looks of the host (default: 10)")
    run.add_argument(
        "--save-every", type=float, default=60, metavar="SECONDS", help="save the texts in flight (default: 60)"
    )
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    job = parser.add_argument_group("several processes", "the same command in each, with a run directory all share")
    job.add_argument("--distributed", action="store_true", help="join a job; Cloud TPU, GKE and Slurm say what it is")
    job.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: of process 0")
    job.add_argument("--processes", type=int, metavar="P", help="elsewhere: how many")
    job.add_argument("--process", type=int, metavar="I", help="elsewhere: which one this is, from 0")
    how = parser.add_argument_group("optimisation")
    how.add_argument("--preset", default="fast", metavar="NAME", help=f"{', '.join(PRESETS)} (default: fast)")
    how.add_argument("--optimizer", metavar="NAME", help="cautious_lbfgs, or of optax or optax.contrib: adamw, lion, …")
    how.add_argument("--lr", type=float, metavar="LR", help="learning rate, the peak of a schedule")
    how.add_argument(
        "--schedule",
        metavar="NAME[:K=V,…]",
        help="optax schedule in units of --lr, such as cosine_decay:decay_steps=400",
    )
    how.add_argument("--arrangement", default="one-step", metavar="NAME", help=f"{', '.join(ARRANGEMENTS)} or cramming")
    how.add_argument("--share", metavar="LEAF", help="vector that the texts of a group share: e or m")
    how.add_argument("--group", default="1", metavar="G", help="texts of a group, or all (default: 1)")
    how.add_argument("--vectors", type=int, metavar="K", help="mem vectors of --arrangement cramming (default: 1)")
    how.add_argument("--steps", type=int, metavar="K", help="budget of a text and seed (default: the preset's)")
    how.add_argument("--seed", type=int, default=0, metavar="I", help="first seed (default: 0)")
    how.add_argument("--seeds", type=int, default=1, metavar="K", help="seeds a text may use until solved (default: 1)")
    how.add_argument(
        "--copies", type=int, default=1, metavar="R", help="fit each text R times, every time recorded (default: 1)"
    )
    how.add_argument("--record", action="store_true", help="keep the vectors after each chunk (trajectories)")


def _checked(convert: Callable[[str], Path]) -> Callable[[str], Path]:
    """An option's type whose own words are told where it refuses a value."""

    def checked(value: str) -> Path:
        try:
            return convert(value)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


_run, _local = _checked(locate), _checked(local_folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 75 when stopped with everything saved."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(argv)
        if args.version:
            import importlib.metadata

            print(importlib.metadata.version("onestep_jax"))
            return 0
        if args.command is None:
            parser.print_help()
            return 2
        names = [name for name in (args.command, getattr(args, "benchmark", None)) if name]
        # argparse keeps the marker "--" or drops it, depending on its place; what stands after it counts either way.
        rest = [word for word in rest if word != "--"]
        args.argv, args.rest, args.options = argv, rest, _options(parser, names)
        if rest and not (args.command == "fit" or (args.command == "experiment" and args.name)):
            hint = nearest(rest[0], args.options)
            raise UserError(f"unknown argument {rest[0]!r}{hint}; see onestep {' '.join(names)} --help")
        return args.function(args)
    except UserError as error:
        print(f"onestep: error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, Stranded):
            os._exit(2)  # JAX then ends the others, where an ordinary exit would wait for them
        return 2
    except Interrupted as stopped:
        print(f"onestep: {stopped}", file=sys.stderr)
        return RESUME
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _options(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[str]:
    """Long options of a command, or of one of its own."""
    for name in names:
        actions: Any = parser._subparsers
        parser = actions._group_actions[0].choices[name]
    return [option for action in parser._actions for option in action.option_strings]

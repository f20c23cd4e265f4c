"""The command `onestep`: parse, call, print."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from onestep_jax.config import Interrupted, UserError, check_known, nearest

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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, function: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub

    demo = command("demo", _demo, "Fit eight short texts on the packaged model and show them decoded in one pass.")
    demo.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: a new one under runs/)")
    demo.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")

    fit = command("fit", _fit, "Find proto-tokens for many texts; run it again to go on where it stopped.")
    _add_fit_options(fit)

    decode = command("decode", _decode, "Reconstruct the texts of a run in one forward pass a batch.")
    decode.add_argument("run", type=Path, metavar="DIR", help="run directory")
    _add_model_options(decode, default=None, default_text="the run's")
    decode.add_argument("--batch", type=int, default=16, metavar="B", help="texts at a time (default: 16)")
    decode.add_argument("--json", action="store_true", help="print JSON")

    export = command("export", _export, "Write the vectors of a run as one safetensors file.")
    export.add_argument("run", type=Path, metavar="DIR", help="run directory")
    export.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    export.add_argument("--json", action="store_true", help="print JSON")

    info = command("info", _info, "Describe a model: architecture, sizes, work a step.")
    info.add_argument("model", nargs="?", default="default", metavar="MODEL", help="default, a folder or a hub id")
    info.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    info.add_argument("--length", type=int, default=32, metavar="N", help="tokens of a text, for the work a step")
    info.add_argument("--json", action="store_true", help="print JSON")
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
    run.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory, created or gone on with")
    run.add_argument("--slots", default="auto", metavar="S", help="texts optimised at a time (default: auto)")
    run.add_argument("--chunk", type=int, default=10, metavar="C", help="steps between looks of the host (default: 10)")
    run.add_argument(
        "--save-every", type=float, default=60, metavar="SECONDS", help="save the texts in flight (default: 60)"
    )
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    how = parser.add_argument_group("optimisation")
    how.add_argument("--preset", default="fast", metavar="NAME", help="fast (default) or paper")
    how.add_argument("--optimizer", metavar="NAME", help="of optax or optax.contrib, such as adamw, lion, prodigy")
    how.add_argument("--lr", type=float, metavar="LR", help="learning rate, the peak of a schedule")
    how.add_argument(
        "--schedule",
        metavar="NAME[:K=V,…]",
        help="optax schedule in units of --lr, such as cosine_decay:decay_steps=400",
    )
    how.add_argument("--steps", type=int, metavar="K", help="budget of a text and seed (default: the preset's)")
    how.add_argument("--seed", type=int, default=0, metavar="I", help="first seed (default: 0)")
    how.add_argument("--seeds", type=int, default=1, metavar="K", help="seeds a text may use until solved (default: 1)")


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
        if args.command == "fit":
            return _fit(args, rest)
        if rest:
            hint = nearest(rest[0], _options(parser, args.command))
            raise UserError(f"unknown argument {rest[0]!r}{hint}; see onestep {args.command} --help")
        return args.function(args)
    except UserError as error:
        print(f"onestep: error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"onestep: {stopped}", file=sys.stderr)
        return RESUME
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _options(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """Long options of a command."""
    actions: Any = parser._subparsers
    chosen = actions._group_actions[0].choices[command]
    return [option for action in chosen._actions for option in action.option_strings]


# --- commands ---


def _demo(args: argparse.Namespace) -> int:
    from onestep_jax.demo import run_demo

    run = args.run or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    with _progress_bar() as progress:
        demo = run_demo(run, progress)
    if args.json:
        rows = [
            {
                "text_id": text.text_id,
                "text": text.expected,
                "reconstruction": text.text,
                "accuracy": text.accuracy,
                "steps": result.steps,
            }
            for text, result in zip(demo.decoded, demo.results, strict=True)
        ]
        print(json.dumps({"texts": rows, "seconds": demo.seconds}))
        return 0
    from rich.table import Table

    table = Table(
        "kind", "original (32 tokens)", "one forward pass of [e, m, …, m]", "accuracy", "steps", show_lines=True
    )
    for kind, text, result in zip(demo.kinds, demo.decoded, demo.results, strict=True):
        table.add_row(kind, text.expected, text.text, f"{text.accuracy:.0%}", str(result.steps))
    console = _console()
    console.print(table)
    exact = sum(text.accuracy == 1 for text in demo.decoded)
    console.print(f"{exact} of {len(demo.decoded)} texts exact in {demo.seconds:.0f} s.")
    console.print(f"Run directory {demo.run}, figure {demo.figure}")
    return 0


def _fit(args: argparse.Namespace, rest: list[str]) -> int:
    from onestep_jax.optimizers import PRESETS

    check_known("preset", [args.preset], PRESETS)
    optimizer = _optimizer(args, rest, PRESETS[args.preset].optimizer)
    optimizer.build()
    slots = int(args.slots) if args.slots.lstrip("-").isdigit() else args.slots
    from onestep_jax.texts import read_source

    texts = read_source(args.texts, split=args.split, column=args.column, limit=args.limit)
    from onestep_jax.checkpoint import load_model
    from onestep_jax.sweep import fit, prepare

    model = load_model(args.model, dtype=args.dtype, revision=args.revision)
    tokens = prepare(model, texts, args.length)
    short = sum(len(ids) < args.length for ids in tokens)
    if short:
        print(
            f"onestep: warning: {short} of {len(tokens)} texts have fewer than {args.length} tokens; kept whole",
            file=sys.stderr,
        )
    options = {
        key: getattr(args, key) for key in ("length", "run", "preset", "steps", "seed", "seeds", "chunk", "save_every")
    }
    began = time.perf_counter()
    with _progress_bar() as progress:
        results = fit(
            model, [ids.tolist() for ids in tokens], optimizer=optimizer, slots=slots, progress=progress, **options
        )
    seconds = time.perf_counter() - began
    summary = {
        "run": str(args.run),
        "texts": len(results),
        "solved": results.solved,
        "accuracy": float(results.accuracy.mean()),
        "steps": float(results.steps.mean()),
        "seconds": seconds,
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{len(results)} texts: {results.solved} solved, mean accuracy {summary['accuracy']:.4f}, "
            f"mean steps {summary['steps']:.0f}, {seconds:.0f} s; run directory {args.run}"
        )
    return 0


def _optimizer(args: argparse.Namespace, rest: list[str], preset: Any) -> Any:
    """The optimiser that the options describe; `rest` are options of the optimiser itself."""
    from onestep_jax.optimizers import Optimizer, Schedule, optimizer_names

    base = preset if args.optimizer is None else Optimizer(args.optimizer)
    arguments = dict(base.arguments) | _optimizer_arguments(args, rest, base.name, optimizer_names())
    if args.lr is not None:
        arguments["learning_rate"] = args.lr
    schedule = base.schedule
    if args.schedule is not None:
        name, _, given = args.schedule.partition(":")
        pairs = [pair.partition("=") for pair in given.split(",") if pair]
        schedule = (
            None
            if name == "constant" and not pairs
            else Schedule(name, {key.strip(): _value(value) for key, _, value in pairs})
        )
    return Optimizer(base.name, arguments, schedule)


def _optimizer_arguments(args: argparse.Namespace, rest: list[str], name: str, factories: Any) -> dict[str, Any]:
    import inspect

    check_known("optimizer", [name], factories)
    known = set(inspect.signature(factories[name]).parameters)
    arguments: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not word.startswith("--") or key not in known:
            options = [f"--{option.replace('_', '-')}" for option in known] + _options(build_parser(), "fit")
            raise UserError(
                f"unknown option {word!r}{nearest(word, options)}; neither onestep fit nor optimizer {name} has it"
            )
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise UserError(f"option {word} needs a value")
        arguments[key] = _value(value)
    return arguments


def _value(text: str) -> Any:
    """A number, true, false, none, a tuple, or the text itself."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _decode(args: argparse.Namespace) -> int:
    from onestep_jax.store import read_config, read_results

    settings, identity = read_config(args.run)["settings"], read_config(args.run)["identity"]
    results = read_results(args.run)
    from onestep_jax.checkpoint import load_model
    from onestep_jax.decode import decode

    model = load_model(args.model or settings["model"], dtype=args.dtype or identity["dtype"], revision=args.revision)
    decoded = decode(model, results, batch=args.batch)

    def name(token: int) -> Any:
        return token if model.tokenizer is None else model.tokenizer.decode([token])

    if args.json:
        rows = [
            dataclasses.asdict(text) | {"tokens": text.tokens.tolist(), "index": r.index}
            for text, r in zip(decoded, results, strict=True)
        ]
        print(json.dumps({"texts": rows}))
        return 0
    for text, result in zip(decoded, results, strict=True):
        print(f"[{result.index}] {text.text_id}  accuracy {text.accuracy:.4f}")
        print(text.text if text.text is not None else text.tokens.tolist())
        for wrong in text.wrong:
            tokens = f"expected {name(wrong.expected)!r} ({wrong.expected}), got {name(wrong.got)!r} ({wrong.got})"
            print(f"    position {wrong.position}: {tokens}")
    exact = sum(text.accuracy == 1 for text in decoded)
    print(f"{exact} of {len(decoded)} texts exact")
    return 0


def _export(args: argparse.Namespace) -> int:
    from onestep_jax.export import export
    from onestep_jax.store import read_results

    results = read_results(args.run)
    export(results, args.out)
    summary = {"out": str(args.out), "texts": len(results)}
    print(json.dumps(summary) if args.json else f"{len(results)} texts written to {args.out}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from onestep_jax.checkpoint import load_model
    from onestep_jax.model import input_scale, parameter_counts

    model = load_model(args.model, dtype="float32", revision=args.revision, tokenizer=False)
    counts = parameter_counts(model)
    facts = {
        "model": args.model,
        "fingerprint": model.fingerprint,
        "architecture": dataclasses.asdict(model.config),
        "input width": model.embed_width,
        "input scale": input_scale(model),
        "parameters": counts["total"],
        "parameters touched by a step": counts["touched"],
        "bytes in float32": 4 * counts["total"],
        "bytes in bfloat16": 2 * counts["total"],
        f"FLOPs of a text-step at {args.length} tokens": 4 * counts["touched"] * args.length,
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for inner, detail in value.items():
                print(f"    {inner}: {detail}")
        else:
            print(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")
    return 0


# --- looks ---


def _console(**options: Any) -> Any:
    from rich.console import Console

    return Console(**options)


@contextmanager
def _progress_bar() -> Iterator[Callable[[Any], None]]:
    """A bar on standard error; yields the callback that `fit` calls."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None)

        def show(state: Any) -> None:
            left = "?" if state.seconds_left is None else f"{state.seconds_left:.0f} s"
            counts = f"solved {state.solved} running {state.running} waiting {state.waiting}"
            words = f"{counts}, {state.steps_per_second:.0f} steps/s, left {left}"
            bar.update(task, description=words, completed=state.finished, total=state.texts)

        yield show


if __name__ == "__main__":
    sys.exit(main())

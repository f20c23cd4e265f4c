"""`onestep bench`: its options, what it prints and what it writes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onestep_jax.bench import WAYS
from onestep_jax.bench.shapes import PREFIX, SHAPES
from onestep_jax.cli import terminal as looks
from onestep_jax.errors import UserError

BENCHMARKS = {
    "step": "milliseconds a text-step, share of the matrix-product ceiling, memory; beside PyTorch",
    "scale": "milliseconds a text-step against slots, length and vocabulary; with a plot",
    "sweep": "solved texts per hour of a whole sweep, four ways; start-up included",
    "host": "milliseconds that the host costs a chunk of steps, over 1, 2, 4, … devices; with a plot",
    "decode": "one forward pass against token by token with a KV cache, tokens per second (Figure 4)",
    "load": "reading a checkpoint, beside plain safetensors",
}


def add_benchmarks(parser: argparse.ArgumentParser) -> None:
    """The sub-commands and their options."""
    found = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, text in BENCHMARKS.items():
        sub = found.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        sub.add_argument("--model", default="default", help="default, a folder or a hub id (default: default)")
        if name not in ("sweep", "host", "load"):
            shapes = ", ".join(PREFIX + shape for shape in SHAPES)
            sub.epilog = f"--model also takes random weights of a published shape: {shapes}."
            sub.add_argument("--limit", type=float, metavar="SECONDS", help="begin nothing new after that")
        sub.add_argument("--dtype", metavar="DTYPE", help="float32 or bfloat16 (default: float32 on a CPU)")
        sub.add_argument("--repeats", type=int, metavar="K", help="timed rounds (default: the benchmark's)")
        sub.add_argument("--out", type=Path, metavar="FILE.json", help="record (default: a new one under runs/bench/)")
        sub.add_argument("--json", action="store_true", help="print the record and nothing else on standard output")
        _OPTIONS[name](sub)


def _step_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--length", type=int, default=32, metavar="N", help="tokens of a text (default: 32)")
    sub.add_argument("--slots", default="8", metavar="S", help="texts at a time, or auto (default: 8)")
    sub.add_argument("--chunk", type=int, default=10, metavar="C", help="steps of a round (default: 10)")
    sub.add_argument("--no-torch", action="store_true", help="without PyTorch")
    sub.add_argument("--compiled", action="store_true", help="PyTorch through torch.compile as well")
    sub.add_argument("--fused", action="store_true", help="ours with the device's fused attention as well")


def _scale_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--slots", type=_numbers, metavar="S,…", help="at the shortest length (default: 1,2,4,…,64)")
    sub.add_argument("--lengths", type=_numbers, metavar="N,…", help="tokens (default: 16,32,64,…,512)")
    sub.add_argument("--vocabularies", type=_numbers, metavar="V,…", help="default: 4096,16384,65536,131072")
    sub.add_argument("--budget", type=int, default=2048, metavar="K", help="slots × length held at (default: 2048)")


def _sweep_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--texts", default=["gen"], nargs="+", metavar="SOURCE", help="as of onestep fit, in turn (default: gen)"
    )
    sub.add_argument("--count", type=int, default=64, metavar="K", help="texts (default: 64)")
    sub.add_argument("--length", type=int, default=32, metavar="N", help="tokens of a text (default: 32)")
    sub.add_argument("--steps", type=int, default=5000, metavar="K", help="budget of a text (default: 5000)")
    sub.add_argument("--slots", default="auto", metavar="S", help="texts at a time (default: auto)")
    sub.add_argument("--preset", default="fast", metavar="NAME", help="of all ways but PyTorch (default: fast)")
    sub.add_argument("--reference-texts", type=int, default=4, metavar="K", help="texts that PyTorch gets (default: 4)")
    sub.add_argument("--seed", type=int, default=0, metavar="I", help="of the texts (default: 0)")
    sub.add_argument("--ways", type=lambda text: text.split(","), metavar="WAY,…", help=f"default: {','.join(WAYS)}")


def _host_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--devices", type=_numbers, metavar="K,…", help="how many of them (default: 1,2,4,8)")
    sub.add_argument("--slots", default="1", metavar="S", help="texts on each (default: 1)")
    sub.add_argument("--length", type=int, default=32, metavar="N", help="tokens of a text (default: 32)")
    sub.add_argument("--steps", type=int, default=100, metavar="K", help="of every text (default: 100)")
    sub.add_argument("--chunk", type=int, default=10, metavar="C", help="steps of a chunk (default: 10)")


def _decode_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lengths", type=_numbers, metavar="N,…", help="tokens (default: 16,32,64,128,256)")
    sub.add_argument("--batches", type=_numbers, metavar="B,…", help="texts at a time (default: 1,16)")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers with commas between") from error


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "step": _step_options,
    "scale": _scale_options,
    "sweep": _sweep_options,
    "host": _host_options,
    "decode": _decode_options,
    "load": lambda sub: None,
}


def bench(args: argparse.Namespace) -> int:
    """Run one benchmark, print its table and ratios, write its record."""
    from onestep_jax.bench import timing as measuring

    # Only what is run is imported: a step is measured on machines that lack what reads texts.
    module = importlib.import_module(f"onestep_jax.bench.{args.benchmark}")
    common = ("command", "function", "benchmark", "out", "json", "model", "version", "argv", "rest", "options")
    options = {name: value for name, value in vars(args).items() if name not in common and value is not None}
    if "no_torch" in options:
        options["torch"] = not options.pop("no_torch")
    if str(options.get("slots", "auto")).isdigit():
        options["slots"] = int(options["slots"])
    _check(options)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the device
    out = args.out or Path("runs") / "bench" / f"{args.benchmark}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    run: Callable[..., dict[str, Any]] = getattr(module, f"bench_{args.benchmark}")
    found = run(args.model, **options, say=lambda line: print(line, file=sys.stderr, flush=True))
    found["command"] = shlex.join(["onestep", *args.argv])
    measuring.write(out, found)
    if args.json:
        print(json.dumps(found))
        return 0
    looks.print_rows(found["rows"], f"onestep bench {args.benchmark}: {args.model}, {found['machine']['device']}")
    for name, value in {**found.get("work", {}), **found.get("ratios", {})}.items():
        print(f"{name}: {'none solved' if value is None else format(value, '.4g')}")
    print(f"Record {out}")
    if draw := getattr(module, f"draw_{args.benchmark}", None):
        print(f"Figure {draw(found, out.with_suffix('.png'))}")
    return 0


def _check(options: dict[str, Any]) -> None:
    for name, value in options.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if name != "seed" and any(type(number) in (int, float) and number < 1 for number in numbers):
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least 1")

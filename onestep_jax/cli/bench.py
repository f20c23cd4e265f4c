"""`onestep bench`: its options, what it prints and what it writes."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onestep_jax.bench import PEERS, WAYS
from onestep_jax.bench.shapes import PREFIX, SHAPES
from onestep_jax.cli.options import add_number, file_option, numbers
from onestep_jax.cli.terminal import console, say
from onestep_jax.errors import COUNT, DURATION, SEED, SIZE, SLOTS, STEPS, redacted
from onestep_jax.store.records import json_text
from onestep_jax.store.storage import check_writable

SUMMARY = "Measure speed side by side: step, scale, sweep, compile, peers, host, decode, load, encoder."
BENCHMARKS = {
    "step": "milliseconds a text-step, share of the matrix-product ceiling, memory; beside PyTorch",
    "scale": "milliseconds a text-step against slots, length and vocabulary; with a plot",
    "sweep": "solved texts per hour of a whole sweep, four ways; start-up included",
    "compile": "seconds to compile a step against the number of layers, cold and from the disk; with a plot",
    "peers": "solved texts per hour beside the training loops of hidden_capacity and progressive_cramming",
    "host": "milliseconds that the host costs a chunk of steps, over 1, 2, 4, … devices; with a plot",
    "decode": "one forward pass against token by token with a KV cache, tokens per second (Figure 4)",
    "load": "reading a checkpoint, beside plain safetensors",
    "encoder": "training an encoder: milliseconds an update, tokens per second, share of the matrix-product ceiling",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The sub-commands and their options."""
    found = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, text in BENCHMARKS.items():
        sub = found.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        sub.add_argument(
            "--model", default="default", help="default, a folder, a GGUF file or a hub id (default: default)"
        )
        if name not in ("sweep", "peers", "host", "load", "encoder"):
            shapes = ", ".join(PREFIX + shape for shape in SHAPES)
            sub.epilog = f"--model also takes random weights of a published shape: {shapes}."
            add_number(sub, "--limit", DURATION, metavar="SECONDS", help="begin nothing new after that")
        sub.add_argument("--dtype", metavar="DTYPE", help="float32 or bfloat16 (default: float32 on a CPU)")
        add_number(sub, "--repeats", SIZE, metavar="K", help="timed rounds (default: the benchmark's)")
        sub.add_argument(
            "--out", type=file_option, metavar="FILE.json", help="record (default: a new one under runs/bench/)"
        )
        sub.add_argument("--json", action="store_true", help="print the record and nothing else on standard output")
        _OPTIONS[name](sub)


def _step_options(sub: argparse.ArgumentParser) -> None:
    add_number(sub, "--length", SIZE, default=32, metavar="N", help="tokens of a text (default: 32)")
    add_number(sub, "--slots", SLOTS, default="8", metavar="S", help="texts at a time, or auto (default: 8)")
    add_number(sub, "--chunk", STEPS, default=10, metavar="C", help="steps of a round (default: 10)")
    sub.add_argument("--no-torch", dest="torch", action="store_false", help="without PyTorch")
    sub.add_argument("--compiled", action="store_true", help="PyTorch through torch.compile as well")
    sub.add_argument("--fused", action="store_true", help="ours with the device's fused attention as well")
    sub.add_argument("--scan-layers", action="store_true", help="ours with a scan over its layers as well")


def _scale_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--slots", type=numbers(SIZE), metavar="S,…", help="at the shortest length (default: 1,2,4,…,64)")
    sub.add_argument("--lengths", type=numbers(SIZE), metavar="N,…", help="tokens (default: 16,32,64,…,512)")
    sub.add_argument("--vocabularies", type=numbers(SIZE), metavar="V,…", help="default: 4096,16384,65536,131072")
    add_number(sub, "--budget", COUNT, default=2048, metavar="K", help="slots × length held at (default: 2048)")


def _sweep_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--texts", default=["gen"], nargs="+", metavar="SOURCE", help="as of onestep fit, in turn (default: gen)"
    )
    add_number(sub, "--count", COUNT, default=64, metavar="K", help="texts (default: 64)")
    add_number(sub, "--length", SIZE, default=32, metavar="N", help="tokens of a text (default: 32)")
    add_number(sub, "--steps", STEPS, default=5000, metavar="K", help="budget of a text (default: 5000)")
    add_number(sub, "--slots", SLOTS, default="auto", metavar="S", help="texts at a time (default: auto)")
    sub.add_argument("--preset", default="fast", metavar="NAME", help="of all ways but PyTorch (default: fast)")
    add_number(sub, "--reference-texts", SIZE, default=4, metavar="K", help="texts that PyTorch gets (default: 4)")
    add_number(sub, "--seed", SEED, default=0, metavar="I", help="of the texts (default: 0)")
    sub.add_argument("--ways", type=lambda text: text.split(","), metavar="WAY,…", help=f"default: {','.join(WAYS)}")


def _compile_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--layers", type=numbers(SIZE), metavar="L,…", help="depths (default: 8,16,30,80)")
    add_number(sub, "--length", SIZE, default=32, metavar="N", help="tokens of a text (default: 32)")
    add_number(sub, "--slots", SIZE, default=8, metavar="S", help="texts at a time (default: 8)")
    sub.add_argument("--preset", default="fast", metavar="NAME", help="gives the optimiser (default: fast)")
    layouts = "by layer,stacked"
    sub.add_argument("--layouts", type=lambda text: text.split(","), metavar="HOW,…", help=f"default: {layouts}")


def _peers_options(sub: argparse.ArgumentParser) -> None:
    for name, (address, _) in PEERS.items():
        option = f"--{name.replace('_', '-')}"
        sub.add_argument(option, metavar="DIR", help=f"a clone of {address} (without it: left out)")
    sub.add_argument(
        "--texts", default=["gen"], nargs="+", metavar="SOURCE", help="as of onestep fit, in turn (default: gen)"
    )
    add_number(sub, "--count", SIZE, default=8, metavar="K", help="texts (default: 8)")
    add_number(sub, "--length", SIZE, default=16, metavar="N", help="tokens of a text (default: 16)")
    add_number(sub, "--steps", STEPS, default=1000, metavar="K", help="budget of a text (default: 1000)")
    add_number(sub, "--seed", SEED, default=0, metavar="I", help="of texts and start vectors (default: 0)")


def _host_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--devices", type=numbers(SIZE), metavar="K,…", help="how many of them (default: 1,2,4,8)")
    add_number(sub, "--slots", SLOTS, default="1", metavar="S", help="texts on each (default: 1)")
    add_number(sub, "--length", SIZE, default=32, metavar="N", help="tokens of a text (default: 32)")
    add_number(sub, "--steps", STEPS, default=100, metavar="K", help="of every text (default: 100)")
    add_number(sub, "--chunk", STEPS, default=10, metavar="C", help="steps of a chunk (default: 10)")


def _decode_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lengths", type=numbers(SIZE), metavar="N,…", help="tokens (default: 16,32,64,128,256)")
    sub.add_argument("--batches", type=numbers(SIZE), metavar="B,…", help="texts at a time (default: 1,16)")


def _encoder_options(sub: argparse.ArgumentParser) -> None:
    add_number(sub, "--length", SIZE, default=16, metavar="N", help="tokens of a window (default: 16)")
    add_number(sub, "--batch", SIZE, default=64, metavar="B", help="windows of an update (default: 64)")
    add_number(sub, "--corrections", SIZE, default=4, metavar="K", help="learned steps (default: 4)")


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "step": _step_options,
    "scale": _scale_options,
    "sweep": _sweep_options,
    "compile": _compile_options,
    "peers": _peers_options,
    "host": _host_options,
    "decode": _decode_options,
    "load": lambda sub: None,
    "encoder": _encoder_options,
}


def run(args: argparse.Namespace) -> int:
    """Run one benchmark, print its table and ratios, write its record."""
    from onestep_jax.bench import timing

    # Only what is run is imported: a step is measured on machines that lack what reads texts.
    module = importlib.import_module(f"onestep_jax.bench.{args.benchmark}")
    measure: Callable[..., dict[str, Any]] = getattr(module, f"bench_{args.benchmark}")
    options = _given(args, measure)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the device
    out = args.out or Path("runs") / "bench" / f"{args.benchmark}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    check_writable(out)
    found = measure(args.model, **options, say=lambda line: say(line, sys.stderr))
    found["command"] = redacted(shlex.join(["onestep", *args.argv]))
    timing.write(out, found)
    if args.json:
        print(json_text(found))
        return 0
    _print_rows(found["rows"], f"onestep bench {args.benchmark}: {args.model}, {found['machine']['device']}")
    for name, value in {**found.get("work", {}), **found.get("ratios", {})}.items():
        print(f"{name}: {'none solved' if value is None else format(value, '.4g')}")
    say(f"Record {out}")
    if draw := getattr(module, f"draw_{args.benchmark}", None):
        say(f"Figure {draw(found, out.with_suffix('.png'))}")
    return 0


def _given(args: argparse.Namespace, measure: Callable[..., Any]) -> dict[str, Any]:
    """The options that a benchmark's function takes, without those for which its own defaults hold."""
    options = {name: getattr(args, name, None) for name in inspect.signature(measure).parameters}
    return {name: value for name, value in options.items() if value is not None}


def _print_rows(rows: list[dict[str, Any]], title: str) -> None:
    """A table of rows with the same keys; median, least and most of a thing share a column, lists are left out."""
    from rich.table import Table

    ranges = [name.removesuffix(" median") for name in rows[0] if name.endswith(" median")]
    hidden = {f"{name} {which}" for name in ranges for which in ("least", "most")}
    names = [name for name, value in rows[0].items() if not isinstance(value, list) and name not in hidden]
    table = Table(*(name.removesuffix(" median") for name in names), title=title, title_justify="left")
    for row in rows:
        cells = []
        for name in names:
            shown = _shown(row[name])
            if name.endswith(" median"):
                least, most = (_shown(row[name.replace(" median", end)]) for end in (" least", " most"))
                shown += f" ({least} to {most})"
            cells.append(shown)
        table.add_row(*cells)
    console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

"""`onestep demo`: eight short texts of many kinds, fitted and decoded, on the packaged model unless told otherwise."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from onestep_jax.cli.options import add_model_options, load, local_option
from onestep_jax.cli.terminal import console, fitting_bar
from onestep_jax.fitting.fitting import fit
from onestep_jax.fitting.progress import Progress
from onestep_jax.model.decoder import Model
from onestep_jax.model.hub import DEFAULT
from onestep_jax.prototokens.reconstruction import Decoded, decode
from onestep_jax.store.records import json_text
from onestep_jax.store.results import Results

SUMMARY = "Fit eight short texts, on the packaged model or yours, and decode each in one pass."
TEXTS = Path(__file__).parents[1] / "data" / "demo.jsonl"
LENGTH = 32  # tokens


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", type=local_option, metavar="DIR", help="run directory (default: a new one under runs/)"
    )
    add_model_options(parser, default=DEFAULT, default_text="default, the packaged one")
    parser.add_argument(
        "--encode",
        nargs="?",
        const=DEFAULT,
        metavar="ENCODER",
        help="vectors by an encoder, as many tokens as it was trained for; then the few steps that mend what is wrong "
        "(default: the packaged one)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")


def run(args: argparse.Namespace) -> int:
    folder = args.run or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    began = time.perf_counter()
    model = load(args.model, args.dtype, args.revision)
    if args.encode is not None:
        return _encode(args, model, folder)
    with fitting_bar() as progress:
        demo = run_demo(model, folder, began, progress)
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
        print(json_text({"texts": rows, "seconds": demo.seconds}))
    else:
        _print(demo)
    return 0


class Demo(NamedTuple):
    """What a demo made.

    Attributes:
      kinds: a word for each text.
      results: of the fit.
      decoded: reconstructions from one forward pass.
      seconds: from loading the model to the last reconstruction.
      run: the run directory.
      figure: path of a plot of loss and accuracy against steps.
    """

    kinds: list[str]
    results: Results
    decoded: list[Decoded]
    seconds: float
    run: Path
    figure: Path


def run_demo(model: Model, run: Path, began: float, progress: Callable[[Progress], None] | None = None) -> Demo:
    """Fit the packaged texts, `LENGTH` tokens each, decode them and draw the curves into the run directory."""
    from onestep_jax.report import plot_curves

    texts = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    results = fit(model, [text["text"] for text in texts], length=LENGTH, run=run, progress=progress)
    decoded = decode(model, results)
    seconds = time.perf_counter() - began
    kinds, figure = [text["kind"] for text in texts], run / "curves.png"
    plot_curves(results, figure, kinds)
    return Demo(kinds=kinds, results=results, decoded=decoded, seconds=seconds, run=run, figure=figure)


def _encode(args: argparse.Namespace, model: Model, folder: Path) -> int:
    """Encode the packaged texts, show what comes out, then fit them from there."""
    from onestep_jax.encoder.encode import encode
    from onestep_jax.encoder.folder import load_encoder

    encoder = load_encoder(args.encode, model)
    length = encoder.design.length
    texts = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    strings, kinds = [text["text"] for text in texts], [text["kind"] for text in texts]
    read, mended = (encode(model, encoder, strings, length=length, refine=most) for most in (0, None))
    with fitting_bar() as progress:
        fitted = fit(model, strings, length=length, start=mended, run=folder, progress=progress)
    shown = [decode(model, results) for results in (read, mended)]
    rows = [
        {
            "text_id": result.text_id,
            "kind": kind,
            "text": one.expected,
            "encoded": one.text,
            "corrected": two.text,
            "corrections": start.steps,
            "accuracy": [one.accuracy, two.accuracy, result.accuracy],
            "steps": result.steps,
        }
        for kind, start, one, two, result in zip(kinds, mended, *shown, fitted, strict=True)
    ]
    if args.json:
        print(json_text({"texts": rows}))
    else:
        _print_encoded(rows, length, folder)
    return 0


def _print_encoded(rows: list[dict[str, Any]], length: int, folder: Path) -> None:
    from rich.table import Table

    heads = ("kind", f"original ({length} tokens)", "encoded, one pass", "after learned corrections")
    table = Table(*heads, "steps of fit to exact", show_lines=True)
    for row in rows:
        ways = zip(("encoded", "corrected"), row["accuracy"], strict=False)
        cells = [f"{row[name]}\n{share:.0%}" for name, share in ways]
        cells[-1] += f" after {row['corrections']}"
        table.add_row(row["kind"], row["text"], *cells, str(row["steps"]))
    console().print(table)
    exact = sum(row["accuracy"][-1] == 1 for row in rows)
    console().print(f"{exact} of {len(rows)} texts exact at the end. Run directory {folder}")


def _print(demo: Demo) -> None:
    from rich.table import Table

    inputs = "[BOS, e, m, …, m]" if demo.results.scheme.get("prefix") else "[e, m, …, m]"
    table = Table("kind", "original (32 tokens)", f"one forward pass of {inputs}", "accuracy", "steps", show_lines=True)
    for kind, text, result in zip(demo.kinds, demo.decoded, demo.results, strict=True):
        table.add_row(kind, text.expected, text.text, f"{text.accuracy:.0%}", str(result.steps))
    screen = console()
    screen.print(table)
    exact = sum(text.accuracy == 1 for text in demo.decoded)
    screen.print(f"{exact} of {len(demo.decoded)} texts exact in {demo.seconds:.0f} s.")
    screen.print(f"Run directory {demo.run}, figure {demo.figure}")

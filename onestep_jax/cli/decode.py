"""`onestep decode`: the texts of a run, reconstructed from its vectors."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from onestep_jax.cli.options import add_model_of_run, add_number, add_run, load_of_run
from onestep_jax.cli.terminal import say
from onestep_jax.errors import MOST_TEXTS
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens import reconstruction
from onestep_jax.prototokens.reconstruction import Decoded
from onestep_jax.store.reading import read_config, read_results
from onestep_jax.store.records import json_text
from onestep_jax.store.results import Results

SUMMARY = "Reconstruct the texts of a run in one forward pass a batch."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_model_of_run(parser)
    add_number(parser, "--batch", MOST_TEXTS, default=16, metavar="B", help="texts at a time (default: 16)")
    parser.add_argument(
        "--generate", action="store_true", help="of a cramming run: generate greedily from its vectors alone"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    config, results = read_config(args.run), read_results(args.run)
    model = load_of_run(args, config)
    decode = reconstruction.regenerate if args.generate else reconstruction.decode
    decoded = decode(model, results, batch=args.batch)
    if args.json:
        rows = [
            {key: value for key, value in dataclasses.asdict(text).items() if key != "margin"}
            | {"tokens": text.tokens.tolist(), "index": result.index}
            for text, result in zip(decoded, results, strict=True)
        ]
        print(json_text({"texts": rows}))
    else:
        _print(model, results, decoded)
    return 0


def _print(model: Model, results: Results, decoded: Sequence[Decoded]) -> None:
    """Each text, and below it the tokens that came out wrong."""

    def shown(token: int) -> str:
        return f"{token if model.tokenizer is None else model.tokenizer.decode([token])!r} ({token})"

    for text, result in zip(decoded, results, strict=True):
        say(f"[{result.index}] {text.text_id}  accuracy {text.accuracy:.4f}")
        say(text.text if text.text is not None else str(text.tokens.tolist()))
        for wrong in text.wrong:
            say(f"    position {wrong.position}: expected {shown(wrong.expected)}, got {shown(wrong.got)}")
    exact = sum(text.accuracy == 1 for text in decoded)
    print(f"{exact} of {len(decoded)} texts exact")

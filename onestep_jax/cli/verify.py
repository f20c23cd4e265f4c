"""`onestep verify`: whether a run still holds what was recorded, and what of it comes out elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onestep_jax.analysis.robustness import SHARE, Elsewhere, Portability, check_way, noise_radii, portability
from onestep_jax.cli.options import add_model_of_run, add_number, add_run, load_of_run
from onestep_jax.cli.terminal import console, counting_bar, say
from onestep_jax.errors import MOST_TEXTS, UserError, check_known
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.reconstruction import BATCH, decoding_of
from onestep_jax.store.reading import read_config, read_results
from onestep_jax.store.records import json_text
from onestep_jax.store.results import Results
from onestep_jax.store.verify import Verification, set_aside, verify

SUMMARY = "Check a run: files, checksums, vectors decoded again; 1 if not clean."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_model_of_run(parser)
    parser.add_argument("--no-decode", action="store_true", help="check files and checksums only; needs no model")
    parser.add_argument(
        "--drop", action="store_true", help="move what is damaged to DIR/damaged, for the same fit to make it again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    told = "with one of these, or another --dtype than the run's, count what comes out there; that is no damage"
    away = parser.add_argument_group("elsewhere", told)
    add_number(away, "--slots", MOST_TEXTS, metavar="B", help=f"texts decoded at a time (default: {BATCH})")
    away.add_argument(
        "--attention", metavar="HOW", help="plain, or a kernel as of onestep fit; with --backend torch: plain or sdpa"
    )
    away.add_argument("--backend", default="jax", metavar="NAME", help="jax, or torch for transformers' own model")
    parser.add_argument("--noise", action="store_true", help="measure the noise on its vectors that each text survives")


def run(args: argparse.Namespace) -> int:
    config = read_config(args.run)
    way = _elsewhere(args, config)
    if args.no_decode and (args.noise or way is not None):
        given = "--noise" if args.noise else "--slots, --attention, --backend and --dtype"
        raise UserError(f"--no-decode: it goes without {given}, which decode the vectors")
    if way is not None:
        check_way(way)
    model = None if args.no_decode else load_of_run(args, config)
    with counting_bar("verifying") as progress:
        found = verify(args.run, decoding_of(model) if model is not None and way is None else None, progress)
    damaged = any(problem.damage for problem in found.problems)
    there = noise = None
    if model is not None and not damaged and (args.noise or way is not None):
        results = read_results(args.run)
        there = _portability(model, results, way) if way is not None else None
        noise = _noise(model, results, BATCH if way is None else way.slots) if args.noise else None
    kept = set_aside(args.run, found) if args.drop and damaged else None
    if args.json:
        shown = {"portability": None if there is None else dataclasses.asdict(there), "noise": noise}
        print(json_text(verification_json(found) | {"kept": kept} | shown))
    else:
        _print(found, kept, there, noise)
    return int(any(not (args.drop and problem.damage) for problem in found.problems))


def _elsewhere(args: argparse.Namespace, config: Mapping[str, Any]) -> Elsewhere | None:
    """Where the options ask for the vectors to be decoded; None for as the run was fitted."""
    check_known("backend", [args.backend], ["jax", "torch"])
    own = config["identity"].get("dtype")
    dtype = args.dtype or own
    if (dtype, args.slots, args.attention, args.backend) == (own, None, None, "jax"):
        return None
    attention = args.attention or ("plain" if args.backend == "jax" else "own")
    return Elsewhere(dtype, BATCH if args.slots is None else args.slots, attention, args.backend)


def _portability(model: Model, results: Results, way: Elsewhere) -> Portability:
    with counting_bar("decoding elsewhere") as progress:
        return portability(model, results, way, progress=progress)


def _noise(model: Model, results: Results, batch: int) -> list[dict[str, Any]]:
    """Margin and noise radius of each text."""
    with counting_bar("noise") as progress:
        radii = noise_radii(model, results, batch=batch, progress=progress)
    return [
        {"index": text.index, "text_id": text.text_id, "margin": text.margin, "noise_radius": radius}
        for text, radius in zip(results, radii.tolist(), strict=True)
    ]


def _print(
    found: Verification, kept: int | None, there: Portability | None, noise: list[dict[str, Any]] | None
) -> None:
    """Print what was found; `kept` is how many whole texts of damaged parts were saved, None if nothing was moved."""
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("parts, saved states", f"{found.parts:,}, {found.states:,}")
    table.add_row("texts", f"{found.recorded:,} of {found.texts:,} recorded and whole")
    table.add_row("decoded again", f"{found.decoded:,}")
    if found.twice:
        table.add_row("recorded twice, alike", f"{found.twice:,}; the next onestep fit on the run clears that")
    if found.foreign:
        table.add_row("foreign files", f"{len(found.foreign):,}, left where they are")
    if found.apart:
        told = f"{len(found.otherwise):,} of them come out otherwise, which is no damage"
        table.add_row("fitted elsewhere", f"{told} ({found.apart})")
    if there is not None:
        texts, tokens = (
            f"{there.exact:,} of {there.texts:,} texts",
            f"{there.tokens_exact:,} of {there.tokens:,} tokens",
        )
        table.add_row(f"exact in {there.way}", f"{texts}, {tokens}; in the run {there.recorded:,} texts")
    if noise:
        radii = np.array([row["noise_radius"] for row in noise])
        table.add_row(f"noise that {SHARE:.0%} of the draws survive", _radii(radii))
    table.add_row("problems", f"{len(found.problems):,}")
    console().print(table)
    for problem in found.problems:
        say(str(problem))
    for path in found.foreign:
        say(f"{path}: no file of a run")
    if kept is not None:
        print(
            f"damaged parts and states moved to damaged/, {kept} whole texts of them kept; fit again makes the others"
        )
    elif any(problem.damage for problem in found.problems):
        print("onestep verify --drop moves what is damaged to damaged/, so that the same onestep fit makes it again")


def _radii(radii: np.ndarray) -> str:
    """Least and median of the texts that are exact without noise."""
    exact = radii[~np.isnan(radii)]
    if not len(exact):
        return "no text is exact without noise"
    return f"least {exact.min():.2g}, median {np.median(exact):.2g} of a vector's RMS, over {len(exact):,} exact texts"


def verification_json(found: Verification) -> dict[str, Any]:
    """What `onestep verify --json` prints."""
    plain = dataclasses.asdict(dataclasses.replace(found, damaged_parts={}))
    return plain | {"damaged_parts": list(found.damaged_parts)}

"""`onestep fit --start`: start vectors from an encoder, a run directory or an exported file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onestep_jax.errors import UserError, check_known
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.schemes import OneStep, Scheme
from onestep_jax.prototokens.starts import MISSING, Starts, read_vectors, scheme_of_start, start_vectors
from onestep_jax.store.reading import read_results
from onestep_jax.store.storage import run_path

ENCODER, RUN = "encoder:", "run:"


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """--start and --start-missing."""
    group = parser.add_argument_group("start vectors")
    group.add_argument(
        "--start",
        metavar="SOURCE",
        help="encoder:DIR (or encoder:default), run:DIR or FILE.safetensors (default: random ones)",
    )
    group.add_argument(
        "--start-missing",
        default="error",
        metavar="HOW",
        help=f"texts without vectors there: {' or '.join(MISSING)} (default: error)",
    )


def read_start(args: argparse.Namespace) -> Starts | None:
    """Start vectors by text that lie on a disk; None for none, and for those of an encoder, which needs the model.

    Raises:
      UserError: for options of another form, or a source that is not there or damaged.
    """
    from onestep_jax.encoder.folder import check_encoder

    check_known("value of start_missing", [args.start_missing], MISSING)
    source: str | None = args.start
    if source is None:
        return None
    if source.startswith(ENCODER):
        return check_encoder(source.removeprefix(ENCODER))
    if source.startswith(RUN):
        return read_results(run_path(source.removeprefix(RUN)))
    if not source.endswith(".safetensors"):
        raise UserError(f"--start {source}: expected encoder:DIR, run:DIR or FILE.safetensors")
    return read_vectors(Path(source))


def start_of(args: argparse.Namespace, read: Starts | None, model: Model, texts: Sequence[Any]) -> Starts | None:
    """Start vectors by text, of the texts of a fit: what `read_start` has read, or what an encoder makes of them."""
    source: str | None = args.start
    if source is None or not source.startswith(ENCODER):
        return read
    return _encoded(args, model, source.removeprefix(ENCODER), texts)


def started_scheme(args: argparse.Namespace, model: Model, scheme: Scheme, start: Starts | None) -> Scheme:
    """The scheme of the options; of an arrangement that they do not name, that of the start vectors."""
    if start is None or args.arrangement is not None or not isinstance(scheme, OneStep):
        return scheme
    theirs = scheme_of_start(start_vectors(start, model), None, prefixes=True)
    if theirs is None or scheme.share is not None:
        return scheme
    return theirs if scheme.prefix is None else dataclasses.replace(theirs, prefix=scheme.prefix)  # pyright: ignore[reportArgumentType]


def _encoded(args: argparse.Namespace, model: Model, source: str, texts: Sequence[Any]) -> Starts:
    from onestep_jax.encoder.encode import encode
    from onestep_jax.encoder.folder import load_encoder

    encoder = load_encoder(source, model)
    return encode(model, encoder, texts, length=args.length)

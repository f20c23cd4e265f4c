"""`onestep fit`: what is trained, and how it becomes the input of a text."""

from __future__ import annotations

import argparse
from pathlib import Path

from onestep_jax import errors
from onestep_jax.cli.options import Group, add_number
from onestep_jax.errors import UserError, one_line
from onestep_jax.fitting.optimizers import preset_of
from onestep_jax.prototokens.projection import FIXED, PROJECTIONS, SHARED
from onestep_jax.prototokens.schemes import ARRANGEMENTS, Cramming, ManyVectors, OneStep, Projected, Scheme

_COUNTS = {"e_vectors": "many", "m_vectors": "many", "guided": "many", "vectors": "cramming"}
"""Option → the arrangement that it goes with."""


def add_scheme_options(how: Group) -> None:
    """--arrangement and what goes with it, --share and --group, --dimensions and what goes with it."""
    how.add_argument(
        "--arrangement", metavar="NAME", help=f"{', '.join(ARRANGEMENTS)}, many or cramming (default: the preset's)"
    )
    how.add_argument("--share", metavar="LEAF", help="vector that the texts of a group share: e or m")
    add_number(how, "--group", errors.GROUP, default=1, metavar="G", help="texts of a group, or all (default: 1)")
    add_number(how, "--vectors", errors.SIZE, metavar="K", help="mem vectors of --arrangement cramming (default: 1)")
    add_number(how, "--e-vectors", errors.SIZE, metavar="K", help="of --arrangement many: e in front (default: 1)")
    add_number(how, "--m-vectors", errors.SIZE, metavar="K", help="of --arrangement many: m in turn (default: 1)")
    add_number(
        how,
        "--guided",
        errors.Whole(0),
        metavar="K",
        help="of --arrangement many: how many e, the last ones, predict a token (default: 1)",
    )
    add_number(
        how,
        "--dimensions",
        errors.SIZE,
        metavar="D",
        help="numbers of a vector, which a map takes to the model's width",
    )
    how.add_argument(
        "--projection",
        metavar="HOW",
        help=f"the map of --dimensions: {', '.join(PROJECTIONS)} by the texts of a group (default: {FIXED})",
    )
    how.add_argument(
        "--project", metavar="LEAF,…", help="vectors of --dimensions: e, m or both, or mem (default: e, mem)"
    )
    add_number(how, "--projection-seed", errors.SEED, metavar="I", help=f"of a {FIXED} map (default: 0)")


def scheme_of(args: argparse.Namespace, rows: int) -> Scheme:
    """The scheme that the options describe, for so many texts and copies."""
    for name, arrangement in _COUNTS.items():
        if getattr(args, name) is not None and args.arrangement != arrangement:
            raise UserError(f"--{name.replace('_', '-')} goes with --arrangement {arrangement}")
    shares_map = args.projection == SHARED
    if args.group != 1 and args.share is None and not shares_map and args.relational is None:
        raise UserError(f"--group {args.group} needs --share e or --share m, or --projection {SHARED}, or --relational")
    group = rows if args.group == "all" else args.group
    return _projected(args, _arranged(args, 1 if shares_map else group), group)


def _arranged(args: argparse.Namespace, group: int) -> OneStep | ManyVectors | Cramming:
    prefix = prefix_of(args.prefix)
    if args.arrangement == "cramming":
        if args.share or group != 1:
            raise UserError("--arrangement cramming has no vector to share; leave --share and --group away")
        return Cramming(vectors=1 if args.vectors is None else args.vectors, prefix=prefix)
    if args.arrangement == "many":
        given = {"e": args.e_vectors, "m": args.m_vectors, "guided": args.guided}
        counts = {name: count for name, count in given.items() if count is not None}
        return ManyVectors(**counts, share=args.share, group=group, prefix=prefix)
    arrangement = args.arrangement or preset_of(args.preset, args.run).arrangement
    return OneStep(arrangement=arrangement, share=args.share, group=group, prefix=prefix)


def _projected(args: argparse.Namespace, of: OneStep | ManyVectors | Cramming, group: int) -> Scheme:
    """The arrangement, with vectors of few dimensions if they are asked for."""
    if args.dimensions is None:
        for name in ("projection", "project", "projection_seed"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} goes with --dimensions")
        return of
    projection = FIXED if args.projection is None else args.projection
    if args.projection_seed is not None and projection != FIXED:
        raise UserError(f"--projection-seed goes with --projection {FIXED}")
    leaves = () if args.project is None else tuple(args.project.split(","))
    seed = args.projection_seed or 0
    return Projected(of, args.dimensions, projection, leaves=leaves, group=group, seed=seed)


def prefix_of(given: str | None) -> str | None:
    """The value of --prefix, with the content of the file that @FILE names.

    Raises:
      UserError: if there is no such file, or it is empty or not in UTF-8.
    """
    from onestep_jax.texts.local_files import decoded_lines

    if given is None or not given.startswith("@"):
        return given
    try:
        with open(given[1:], "rb") as file:
            text = "".join(decoded_lines(Path(given[1:]), file))
    except OSError as error:
        raise UserError(f"--prefix {given}: cannot be read ({one_line(error)}); give a text file in UTF-8") from error
    if not text:
        raise UserError(f"--prefix {given}: the file is empty; for no prefix say --prefix none")
    return text

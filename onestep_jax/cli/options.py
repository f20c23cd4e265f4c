"""Options of the command line that stand for values of the library: schemes, optimisers, settings of a card."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from typing import Any

from onestep_jax.errors import UserError, check_known, nearest

REMAT = {"auto": "auto", "on": True, "off": False}


def scheme_of(args: argparse.Namespace, rows: int) -> Any:
    """The scheme that the options describe, for so many texts and copies."""
    from onestep_jax.prototokens.schemes import Cramming, OneStep

    if args.arrangement == "cramming":
        if args.share or args.group != "1":
            raise UserError("--arrangement cramming has no vector to share; leave --share and --group away")
        return Cramming(1 if args.vectors is None else args.vectors)
    if args.vectors is not None:
        raise UserError("--vectors goes with --arrangement cramming")
    if args.group != "all" and not args.group.isdigit():
        raise UserError(f"--group {args.group}: expected a number of texts, or all")
    if args.group != "1" and args.share is None:
        raise UserError(f"--group {args.group} needs --share e or --share m")
    return OneStep(args.arrangement, args.share, rows if args.group == "all" else int(args.group))


def join(args: argparse.Namespace) -> None:
    """Join the job that the options describe, before anything else asks JAX for its devices."""
    given = {name: getattr(args, name) for name in ("coordinator", "processes", "process")}
    if args.distributed:
        from onestep_jax.fitting.distributed import join_job

        join_job(**given)
        return
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name} {value} goes with --distributed")


def placement_of(args: argparse.Namespace, scheme: Any, texts: int) -> Any:
    """The placement that the options ask for, from the model's config.json alone: its weights are not yet read."""
    import jax.numpy as jnp

    from onestep_jax.fitting.sizing import choose_placement
    from onestep_jax.model.checkpoint import DTYPES, default_dtype, describe
    from onestep_jax.model.decoder import parameter_counts
    from onestep_jax.model.hub import locate
    from onestep_jax.model.untrained import PREFIX

    dtype = args.dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    source = args.model.split(":", 3)[-1] if args.model.startswith(PREFIX) else args.model
    _, _, config = describe(locate(source, args.revision, weights=False))
    weights = parameter_counts(config)["total"] * jnp.dtype(DTYPES[dtype]).itemsize
    return choose_placement(args.placement, weights, scheme, texts, model_axis=args.model_axis)


def optimizer_of(args: argparse.Namespace, preset: Any) -> Any:
    """The optimiser that the options describe; `args.rest` are options of the optimiser itself."""
    from onestep_jax.fitting.optimizers import Optimizer, Schedule, optimizer_names

    base = preset if args.optimizer is None else Optimizer(args.optimizer)
    arguments = dict(base.arguments) | _optimizer_arguments(args, base.name, optimizer_names())
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


def _optimizer_arguments(args: argparse.Namespace, name: str, factories: Any) -> dict[str, Any]:
    import inspect

    check_known("optimizer", [name], factories)
    known = set(inspect.signature(factories[name]).parameters)
    arguments: dict[str, Any] = {}
    for word, key, value in _words(args.rest):
        if key not in known:
            options = [f"--{option.replace('_', '-')}" for option in known] + args.options
            hint = nearest(word, options)
            raise UserError(f"unknown option {word!r}{hint}; neither onestep fit nor optimizer {name} has it")
        arguments[key] = _value(_stated(word, value))
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


def given_settings(rest: Sequence[str]) -> dict[str, str]:
    """Settings of a card given as "--name value" or "--name=value"."""
    settings = {}
    for word, key, value in _words(rest):
        if not key:
            raise UserError(f"unknown argument {word!r}; a setting is --name value")
        settings[key] = _stated(word, value)
    return settings


def _words(rest: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """(word, name, value) of options that argparse does not know; a dash within a name is an underscore.

    The name of a word that is no option is empty.
    """
    waiting = list(rest)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        given = value if equals else None
        if not equals and waiting and not waiting[0].startswith("--"):
            given = waiting.pop(0)
        yield word, name.replace("-", "_") if word.startswith("--") else "", given


def _stated(word: str, value: str | None) -> str:
    if value is None:
        raise UserError(f"option {word} needs a value")
    return value

"""The optimiser that options of `onestep fit` describe; any option that the command does not know is its argument."""

from __future__ import annotations

import argparse
import ast
import inspect
from typing import Any

from onestep_jax.cli.options import stated, unknown_options
from onestep_jax.errors import UserError, check_known, nearest
from onestep_jax.fitting.optimizers import Optimizer, Schedule, optimizer_names


def optimizer_of(args: argparse.Namespace, preset: Optimizer) -> Optimizer:
    """The optimiser that the options describe; `args.rest` are options of the optimiser itself."""
    base = preset if args.optimizer is None else Optimizer(args.optimizer)
    arguments = {**base.arguments, **_optimizer_arguments(args, base.name)}
    if args.lr is not None:
        arguments["learning_rate"] = args.lr
    schedule = base.schedule if args.schedule is None else _schedule(args.schedule)
    return Optimizer(name=base.name, arguments=arguments, schedule=schedule)


def _schedule(text: str) -> Schedule | None:
    """ "NAME:KEY=VALUE,…" as a schedule, "constant" as none."""
    name, _, given = text.partition(":")
    pairs = [pair.partition("=") for pair in given.split(",") if pair]
    if name == "constant" and not pairs:
        return None
    return Schedule(name=name, arguments={key.strip(): _value(value) for key, _, value in pairs})


def _optimizer_arguments(args: argparse.Namespace, name: str) -> dict[str, Any]:
    factories = optimizer_names()
    check_known("optimizer", [name], factories)
    known = set(inspect.signature(factories[name]).parameters)
    arguments: dict[str, Any] = {}
    for word, key, value in unknown_options(args.rest):
        if key not in known:
            options = [f"--{option.replace('_', '-')}" for option in known] + args.parser.known_options
            hint = nearest(word, options)
            raise UserError(f"unknown option {word!r}{hint}; neither onestep fit nor optimizer {name} has it")
        arguments[key] = _value(stated(word, value))
    return arguments


def _value(text: str) -> Any:
    """A number, true, false, none, a tuple, or the text itself."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text

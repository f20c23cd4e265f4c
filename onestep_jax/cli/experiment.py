"""`onestep experiment`: list, show and run the recipe cards of `experiments/`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

from onestep_jax.cli.options import add_model_options, load, local_option, stated, unknown_options
from onestep_jax.cli.terminal import fitting_bar, say
from onestep_jax.errors import UserError, redacted
from onestep_jax.model.decoder import Model

SUMMARY = "Run a recipe card of experiments/: a table or figure, or all."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="card, or all; without it the cards are listed")
    add_model_options(parser, default=None, default_text="the card's")
    parser.add_argument("--smoke", action="store_true", help="the smallest size, seconds on the packaged model")
    parser.add_argument("--packaged", action="store_true", help="the size for the packaged model on a small machine")
    parser.add_argument("--card", action="store_true", help="print the card and its settings, and run nothing")
    parser.add_argument("--out", type=local_option, metavar="DIR", help="parent folder (default: runs/experiments)")
    parser.epilog = "Any other option is a setting of the card: --count 20 --lengths 4,8,16. See --card."
    parser.set_defaults(open_ended=True)


def run(args: argparse.Namespace) -> int:
    from onestep_jax.experiment import cards

    if args.name is None:
        if args.rest:
            args.parser.refuse(args.rest[0])
        for name, title in cards.titles().items():
            say(f"{name:22} {title}")
        return 0
    if args.smoke and args.packaged:
        raise UserError("--smoke and --packaged exclude each other")
    size = "smoke" if args.smoke else "packaged" if args.packaged else "paper"
    names = list(cards.cards()) if args.name == "all" else [args.name]
    loaded = {name: cards.load_card(name) for name in names}
    changes = _given_settings(args)
    settings = {name: cards.settings_of(card, size, changes) for name, card in loaded.items()}
    if args.card:
        for name, card in loaded.items():
            say(f"{card.__doc__}\n{_lines(settings[name])}")
    else:
        _run_cards(args, loaded, settings)
    return 0


def _given_settings(args: argparse.Namespace) -> dict[str, str]:
    """Setting → value, as text, of the words that argparse does not know."""
    settings = {}
    for word, name, value in unknown_options(args.rest):
        if not name:
            args.parser.refuse(word)
        settings[name] = stated(word, value)
    return settings


def _lines(settings: Any) -> str:
    fields = dataclasses.asdict(settings)
    return "\n".join(f"  --{name.replace('_', '-'):20} {value}" for name, value in fields.items())


def _run_cards(args: argparse.Namespace, loaded: dict[str, ModuleType], chosen: dict[str, Any]) -> None:
    """Run cards one after the other; a model stays loaded while the next card asks for the same."""
    from onestep_jax.experiment import cards
    from onestep_jax.experiment.study import Study

    models: dict[str, Model] = {}
    for name, settings in chosen.items():
        source = args.model or settings.model
        if source not in models:
            models.clear()  # before the next one is read: two may not fit into memory
            models[source] = load(source, args.dtype, args.revision)
        say(f"{name}: {cards.title(loaded[name])}")
        command = redacted(shlex.join(["onestep", *(name if word == args.name else word for word in args.argv)]))
        with fitting_bar() as progress:
            study = Study((args.out or Path("runs/experiments")) / name, models[source], progress)
            record = cards.run_card(name, dataclasses.replace(settings, model=source), study, command)
        print(f"{name}: {record['seconds']:.0f} s")

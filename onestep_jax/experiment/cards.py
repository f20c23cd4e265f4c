"""Recipe cards: finding, setting and running the experiments of `experiments/cards/`.

A card is a file of that folder with these parts:

    docstring           the item of the paper, the hours it takes, the paper's numbers
    Config              a frozen dataclass of settings
    config(smoke)       the settings of the paper's size, or of a size that takes seconds
    packaged()          the settings for the packaged model on a small machine
    run(config, study)  the experiment

No card imports another. What a card makes goes to a folder of its own:

    runs/experiments/NAME/config.json   settings, versions, commit, the command
    runs/experiments/NAME/*.csv, *.png  tables and figures
    runs/experiments/NAME/runs/         ordinary run directories
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from onestep_jax.errors import SEED, STEPS, Real, UserError, Whole, check_known
from onestep_jax.experiment.study import Study
from onestep_jax.fitting.optimizers import protocol
from onestep_jax.store.reading import read_config
from onestep_jax.store.records import json_text, read_json
from onestep_jax.store.sessions import versions
from onestep_jax.store.storage import replace, writing

CLONE = Path(__file__).parents[2]
CARDS = Path("experiments") / "cards"
_FUNCTIONS = ("config", "packaged", "run")


def cards_folder() -> Path:
    """The folder `experiments/cards/` of the current folder, or else of the clone that the package is installed from.

    Raises:
      UserError: if there is none.
    """
    for folder in (Path.cwd() / CARDS, CLONE / CARDS):
        if folder.is_dir() and any(_is_card(path) for path in folder.glob("*.py")):
            return folder
    raise UserError("no experiments/cards/ here: run this in a clone of the onestep_jax repository")


def cards() -> dict[str, Path]:
    """Name → file of every card, sorted by name."""
    return {path.stem: path for path in sorted(cards_folder().glob("*.py")) if _is_card(path)}


def _parsed(path: Path) -> ast.Module:
    """The syntax of a file; of one that is no Python, that of an empty file."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


@functools.cache
def _is_card(path: Path) -> bool:
    tree = _parsed(path)
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} >= set(_FUNCTIONS)


def load_card(name: str) -> ModuleType:
    """Import a card from its file.

    Raises:
      UserError: if there is no such card.
    """
    found = cards()
    check_known("experiment", [name], [*found, "all"])
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", found[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


def settings_of(card: ModuleType, size: str, changes: Mapping[str, str]) -> Any:
    """The card's settings of one size, with changes.

    Args:
      card: its module.
      size: "paper", "packaged" or "smoke".
      changes: setting → value as text, such as {"lengths": "4,8,16"}.

    Raises:
      UserError: for a setting that the card does not have, or a value that does not fit it.
    """
    base = card.packaged() if size == "packaged" else card.config(size == "smoke")
    check_known(f"setting of {card.__name__.removeprefix('experiments.')}", changes, _fields(base))
    return dataclasses.replace(base, **{key: _parse(key, text, _fields(base)[key]) for key, text in changes.items()})


def _fields(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _parse(name: str, text: str, like: Any) -> Any:
    """Text as a value of the type of `like`; the values of a tuple are separated by commas."""
    if isinstance(like, tuple):
        if not any(text.split(",")):
            raise UserError(f"--{name} {text!r}: expected values with commas between, like {','.join(map(str, like))}")
        return tuple(_parse(name, part, like[0] if like else "") for part in text.split(",") if part)
    if isinstance(like, bool):
        check_known(f"value of --{name}", [text.lower()], ["true", "false"])
        return text.lower() == "true"
    if isinstance(like, str):
        return text
    bounds = Real(0) if isinstance(like, float) else SEED if name == "seed" else Whole(min(like, 1), STEPS.most)
    try:
        return bounds.parse(text)
    except UserError as error:
        raise UserError(f"--{name.replace('_', '-')} {error}") from error


def run_card(name: str, settings: Any, study: Study, command: str) -> dict[str, Any]:
    """Run one card into its folder.

    Args:
      name: of the card.
      settings: see `settings_of`.
      study: the folder and the model.
      command: the command line, for the record.

    Returns:
      What the folder's config.json holds afterwards.

    Raises:
      UserError: if the folder holds the experiment with other settings.
    """
    card = load_card(name)
    identity = {
        "experiment": name,
        "settings": _plain(dataclasses.asdict(settings)),
        "model": study.model.fingerprint,
    }
    path = study.folder / "config.json"
    spent = seconds_of(_check_same(path, identity, _defaults(settings)))
    record = identity | {"title": title(card), "command": command, **versions(), "seconds": spent}
    _write(path, record)
    began = time.perf_counter()
    try:
        card.run(settings, study)
        record["files"] = sorted({file.name for file in study.written})
        record["protocols"] = _protocols(study.folder)
    finally:
        record["seconds"] = round(spent + time.perf_counter() - began, 1)
        _write(path, record)
    return record


def seconds_of(record: Mapping[str, Any]) -> float:
    """Seconds of all calls of an experiment but those that were killed; an older record has those of its last call."""
    seconds = record.get("seconds", record.get("seconds of the last call"))
    return seconds if isinstance(seconds, float) else 0.0


def _protocols(folder: Path) -> list[str]:
    """How the vectors of the card's runs were optimised, a line for each different way."""
    lines = []
    for path in sorted(folder.glob("runs/**/config.json")):
        config = read_config(path.parent)
        if "optimizer" in config["identity"]:
            lines.append(_protocol(config["identity"], config["settings"]))
    return list(dict.fromkeys(lines))


def _protocol(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    told = [protocol(identity, settings), f"start {identity['start']}", f"temperature {identity['temperature']}"]
    told += [f"{identity['steps']} evaluations", f"seeds {identity['seeds']}"]
    told += [f"patience {identity['patience']}"] if identity["patience"] else []
    more = ("patience per token", "patience growth", "progress", "margin")
    told += [f"{name} {identity[name]}" for name in more if name in identity]
    prefix = identity["scheme"].get("prefix", ())
    return ", ".join([*told, f"frozen prefix of {len(prefix)}"] if prefix else told)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    return json.loads(json.dumps(settings))


def _defaults(settings: Any) -> dict[str, Any]:
    """Setting → its default, of those that have one."""
    fields = dataclasses.fields(settings)
    return _plain({field.name: field.default for field in fields if field.default is not dataclasses.MISSING})


def _check_same(path: Path, identity: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse the folder of an experiment with other settings or on another model, once it holds something of it.

    Returns its record, empty where there is none, or one of nothing.

    A setting that a record does not name was added to the card later, and its default is what was done before.
    """
    try:
        there = read_json(
            path, dict[str, Any], "description", "delete it, and the same onestep experiment writes it again"
        )
    except FileNotFoundError:
        return {}
    kept = ("*.csv", "*.png", "runs/**/results/*.parquet", "runs/**/state/*.json")
    made = any(next(path.parent.glob(pattern), None) for pattern in kept)
    if not made and there.get("experiment") == identity["experiment"]:
        return {}
    if isinstance(there.get("settings"), dict):
        there["settings"] = {**defaults, **there["settings"]}
    for key, value in identity.items():
        if there.get(key) != value:
            values = f"{key}: {there.get(key)!r} there, {value!r} here"
            raise UserError(f"{path.parent}: holds this experiment with other settings ({values}); give another --out")
    return there


def _write(path: Path, record: Mapping[str, Any]) -> None:
    with writing(path):
        replace(path, (json_text(record, indent=2) + "\n").encode())


def title(card: ModuleType) -> str:
    """The first line of the card's docstring."""
    return _first_line(card.__doc__ or card.__name__)


def titles() -> dict[str, str]:
    """Name → title of every card. No card is imported, since that runs what is in its file."""
    return {name: _first_line(ast.get_docstring(_parsed(path)) or name) for name, path in cards().items()}


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]

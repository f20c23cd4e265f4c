"""Words for the settings of a run: the paper's notation, numbers for people, the command that resumes a run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep_jax.fitting.optimizers import Preset, recorded_preset
from onestep_jax.prototokens.projection import MAP
from onestep_jax.prototokens.schemes import from_description
from onestep_jax.report.markup import visible


def notation(description: Mapping[str, Any]) -> str:
    """An arrangement in the notation of Table 1, with the common prefix (p) and the leaf that is shared (Table 2)."""
    scheme = from_description(description)
    count = len(description.get("prefix", ()))
    words = f"[p]×{count} {scheme.notation}" if count > 1 else f"[p] {scheme.notation}" if count else scheme.notation
    if scheme.shared:
        words += f", {' and '.join(sorted(scheme.shared))} shared by {scheme.group} texts"
    elif scheme.extra and not scheme.teacher_forced:
        words += ", first output ignored" if scheme.extra == 1 else f", first {scheme.extra} outputs ignored"
    return words


def model_name(settings: Mapping[str, Any]) -> str:
    """Where a run's model came from, with its revision if one was asked for."""
    revision = settings.get("revision")
    return str(settings.get("model")) if revision is None else f"{settings.get('model')} at revision {revision}"


def model_options(settings: Mapping[str, Any]) -> list[str]:
    """--model and --revision of a run."""
    revision = settings.get("revision")
    return ["--model", str(settings.get("model")), *([] if revision is None else ["--revision", str(revision)])]


def number(value: float | None, places: int = 0) -> str:
    """A number with thousands separators and `places` decimals; "–" if it is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{places}f}"


def accuracy(value: float) -> str:
    """An accuracy with four decimals; "1" only if it is exactly 1."""
    return "1" if value == 1 else f"{min(value, 0.9999):.4f}"


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """A size in bytes, KiB, MiB or GiB; exact below ten thousand bytes."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= max(unit, 10_000):
            return f"{count / unit:,.1f} {name}"
    return f"{count:,} bytes"


def asked(identity: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run asked of its vectors beside exact tokens, as pairs of a word and a sentence."""
    told = [("Margin", f"{identity['margin']:g} logits before a text is solved")] if identity.get("margin") else []
    losses = []
    for name, loss in (identity.get("losses") or {}).items():
        more = f", λ = {loss['weight']:g}" if "weight" in loss else ""
        more += f", teacher {loss['teacher']}" if loss.get("teacher") else ""
        losses.append(visible(f"{name}{more}"))
    return [*told, ("Beside the loss", "; ".join(losses))] if losses else told


def fit_command(folder: Path, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The `onestep fit` command that resumes a run, with SOURCE for the source of the texts, which no run records.

    Returns:
      None if the command line has no such options: for a run of an encoder, given start vectors, an optimiser given
      as an object, a preset that is not the package's, prefixes or losses from Python, or texts without a common
      length.
    """
    if "encoder" in identity:
        return None
    optimizer, name, length = identity.get("optimizer") or {}, settings.get("preset"), identity.get("length")
    preset = recorded_preset(identity, settings)
    if optimizer.get("object") or preset is None or length is None or identity.get("start vectors"):
        return None
    if optimizer.get("schedule") == {"name": "constant", "arguments": {}}:  # on the command line this means no schedule
        return None
    prefix, losses = _prefix_options(identity, settings, preset.prefix), _loss_options(identity)
    if prefix is None or losses is None:
        return None
    words = ["onestep", "fit", "--texts", "SOURCE", *model_options(settings), "--length", str(length)]
    words += _scheme_options(identity["scheme"], preset.arrangement) + prefix
    words += ["--preset", str(name), *_optimizer_options(optimizer, preset)]
    for name in ("steps", "seed", "seeds", "margin", "dtype"):
        words += [f"--{name}", str(identity[name])] if name in identity else []
    words += losses
    if settings.get("copies", 1) != 1:
        words += ["--copies", str(settings["copies"])]
    words += ["--record"] if identity.get("record") else []
    return shlex.join([*words, "--run", str(folder)])


_FLAGS = {"e": "e-vectors", "m": "m-vectors", "leaves": "project", "seed": "projection-seed"}
"""Key of the description of a scheme → its option, where that has another name."""


def _scheme_options(scheme: Mapping[str, Any], arrangement: str) -> list[str]:
    """Options for a scheme that differs from the preset's arrangement."""
    if scheme.get("arrangement") == "projected":
        scheme = {**scheme, **scheme["of"], "leaves": ",".join(scheme["leaves"])}
        scheme = {name: scheme[name] for name in scheme if name != "of" and (name, scheme[name]) != ("share", MAP)}
    usual = {"arrangement": arrangement, "share": None, "group": 1}
    differ = [name for name in scheme if name != "prefix" and scheme[name] != usual.get(name)]
    return [word for name in differ for word in (f"--{_FLAGS.get(name, name)}", str(scheme[name]))]


def _prefix_options(identity: Mapping[str, Any], settings: Mapping[str, Any], usual: str) -> list[str] | None:
    """Options for a prefix that differs from the preset's; None if there are none for it."""
    given = settings.get("prefix")
    if "prefixes" in identity or (identity["scheme"].get("prefix") and given is None):
        return None
    given = given or "none"
    return [] if given == usual else ["--prefix", str(given)]


def _loss_options(identity: Mapping[str, Any]) -> list[str] | None:
    """Options for the losses beside Eq. 1; None if there are none for them."""
    losses = identity.get("losses") or {}
    if not all(name in ("anchor", "relational") and loss.get("teacher") for name, loss in losses.items()):
        return None
    return [word for name, loss in losses.items() for word in (f"--{name}", f"{loss['teacher']}:{loss['weight']}")]


def _optimizer_options(optimizer: Mapping[str, Any], preset: Preset) -> list[str]:
    """Options for an optimiser that differs from the preset's."""
    if optimizer == preset.optimizer.describe():
        return []
    arguments = dict(optimizer.get("arguments") or {})
    words = ["--optimizer", str(optimizer["name"])]
    if (rate := arguments.pop("learning_rate", None)) is not None:
        words += ["--lr", str(rate)]
    if schedule := optimizer.get("schedule"):
        given = ",".join(f"{key}={value}" for key, value in (schedule.get("arguments") or {}).items())
        words += ["--schedule", f"{schedule['name']}:{given}" if given else schedule["name"]]
    return words + [word for key, value in arguments.items() for word in (f"--{key.replace('_', '-')}", str(value))]

"""Names in a run directory: which files are a run's own, and of what.

Parts and states are named SSSSSS-PPPP-NNNNNN (session, process, counter). A name is parsed whole: a copy, what a
synchroniser makes of a conflict, or anything else that lies beside a run's own files is never read and never deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from onestep_jax.store.listing import listing
from onestep_jax.store.storage import entries, remove


def _number(digits: int) -> str:
    return rf"(?:[0-9]{{{digits}}}|[1-9][0-9]{{{digits},}})"


_NAME = "-".join(map(_number, (6, 4, 6)))
_TABLE = rf"(?P<name>{_NAME})\.parquet(?P<temporary>\.tmp)?"
_ARRAYS = rf"(?P<name>{_NAME})(?P<temporary>\.orbax-checkpoint-tmp(?:-[0-9]+)?)?"  # Orbax renames from there
_OURS = {
    "results": [_TABLE],
    "traces": [_TABLE],
    "embeddings": [_ARRAYS],
    "state": [rf"(?P<name>{_NAME})\.json(?P<temporary>\.tmp)?", _ARRAYS],
    "claims": [rf"(?P<name>{_number(6)}-(?:{_number(6)}|left-{_number(4)}))(?P<temporary>)"],
    "lock": [rf"(?P<name>{_number(6)})(?P<temporary>)"],
}
_COMMITS = {"results": ".parquet", "state": ".json"}
FOLDERS = ("results", "traces", "embeddings", "state", "claims")


class Ours(NamedTuple):
    """A file or folder of a run: of which part, state, claim or lease, and whether it is still being written."""

    name: str
    temporary: bool


def parse(path: Path) -> Ours | None:
    """What a file or folder is, by its own name and that of the folder it lies in; None for what is not a run's."""
    for pattern in _OURS[path.parent.name]:
        if found := re.fullmatch(pattern, path.name):
            return Ours(found["name"], bool(found["temporary"]))
    return None


def part_name(session: int, process: int, counter: int) -> str:
    """Name of a part or state."""
    return f"{session:06d}-{process:04d}-{counter:06d}"


def claim_name(session: int, block: int) -> str:
    """Name of the claim on a block of texts."""
    return f"{session:06d}-{block:06d}"


def left_name(session: int, process: int) -> str:
    """Name of what a process leaves behind when it has closed the run."""
    return f"{session:06d}-left-{process:04d}"


def age(name: str) -> tuple[int, ...]:
    """What parts and states are ordered by, oldest first: session, process, counter."""
    return tuple(map(int, name.split("-")))


def committed(folder: Path, kind: str) -> list[str]:
    """Names of the committed parts ("results") or states ("state") of a run directory, oldest first."""
    found = {path.name: parse(path) for path in listing(folder / kind)}
    names = [ours.name for file, ours in found.items() if ours is not None and file == ours.name + _COMMITS[kind]]
    return sorted(names, key=age)


def remove_all(folder: Path, kinds: Iterable[str], name: str) -> None:
    """Delete what there is of a part or state, folder by folder, and in each first what commits it."""
    for kind in kinds:
        ours = [path for path in entries(folder / kind) if (found := parse(path)) is not None and found.name == name]
        for path in sorted(ours, key=lambda path: path.name != name + _COMMITS.get(kind, "")):
            remove(path)


def foreign_files(folder: Path) -> list[str]:
    """What lies beside the files of a run directory and is none of them, as paths within it."""
    return [f"{kind}/{path.name}" for kind in FOLDERS for path in listing(folder / kind) if parse(path) is None]


def listed(foreign: list[str]) -> str:
    """Files by name, at most three of them."""
    return ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")

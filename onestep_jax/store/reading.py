"""Reading a run directory, also while a run is going; nothing here writes or locks. The layout is that of `run`."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onestep_jax.errors import Damaged, UserError
from onestep_jax.store.listing import NOTHING, each_of, listing, no_folder
from onestep_jax.store.names import FOLDERS, committed
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parts import part_files, read_part, read_part_table, read_run
from onestep_jax.store.records import checked, plain_json, read_content, read_table
from onestep_jax.store.records.kinds import ConfigKind, SummaryRow, TextRow
from onestep_jax.store.results import Results, TextResult
from onestep_jax.store.saved_states import read_state, run_digest, state_names
from onestep_jax.store.storage import run_path
from onestep_jax.tokens import texts_digest

FORMAT = 3
RESTORE = "put it back from a copy; or move it away, and the same onestep fit writes it again"
_WHAT = "description"
TEXTS_CURE = "the same onestep fit writes it again"
_T = TypeVar("_T")


def check_identity(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
      UserError: naming each key that differs, with both values.
    """
    theirs = json.loads(json.dumps(theirs))
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if keys:
        differences = "; ".join(f"{key}: {ours.get(key)!r} there, {theirs.get(key)!r} here" for key in keys)
        raise UserError(f"{folder}: holds another run; {differences}. Give --run another folder, or the same settings")


def must_describe(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether config.json is to be written for a run of this identity: it is missing, or it is wrong.

    Parts and states say of which run they are. What all of them say goes before what config.json says.

    Raises:
      UserError: if the folder holds another run, or parts that are not known to be of this one.
    """
    described = find_config(folder)
    plain = json.loads(json.dumps(identity))
    if described is not None and described["identity"] == plain:
        return False
    parts, ours = part_names(folder), run_digest(identity)
    if described is None:
        _check_parts(folder, parts, ours)
    elif (parts or state_names(folder)) and part_runs(folder) | _state_runs(folder) != {ours}:
        check_identity(folder, described["identity"], identity)
    elif parts or state_names(folder):
        told = "its identity is not that of the recorded parts and saved states, which is the one given; written anew"
        warnings.warn(f"{folder / 'config.json'}: {told}", stacklevel=2)
    return True


def _check_parts(folder: Path, parts: Sequence[str], run: str) -> None:
    """Refuse to describe anew a folder with results, unless they say that they are of this run.

    Raises:
      UserError: naming what to do.
    """
    others = [name for name in parts if read_run(folder, name) != run]
    if others:
        told = (
            f"config.json is missing, and the recorded part {others[0]} is not known to be of a run with these settings"
        )
        raise UserError(
            f"{folder}: {told}; put config.json back, give the settings of that run, or --run another folder"
        )


def part_runs(folder: Path) -> set[str]:
    """Digests of the identities that parts say they are of; "" for one that does not say so, none for a damaged one."""
    said = each_of(lambda: part_names(folder), lambda name: read_run(folder, name), lambda *_: None)
    return {run for run in said.values() if run is not None}


def _state_runs(folder: Path) -> set[str]:
    """The same of saved states."""
    said = each_of(lambda: state_names(folder), lambda name: read_state(folder, name).run, lambda *_: None)
    return {run for run in said.values() if run is not None}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run directory.

    Raises:
      UserError: if there is none, or one that this version cannot read.
    """
    described = find_config(folder)
    if described is None:
        reason = no_folder(folder) or "no config.json"
        raise UserError(f"{folder}: no run directory ({reason}); give the folder that onestep fit --run made")
    return described


def find_config(folder: Path) -> dict[str, Any] | None:
    """config.json of a run directory, None where there is none yet.

    Raises:
      UserError: if there is one that this version cannot read, or no folder can be there.
    """
    reason = no_folder(folder)
    if reason and reason != NOTHING:
        raise UserError(f"{folder}: no run directory ({reason}); give another path")
    described = read_description(folder / "config.json", ConfigKind, kind="run", version=FORMAT, cure=RESTORE)
    if described is not None:
        _check_folders(folder)
    return described


def _check_folders(folder: Path) -> None:
    """Refuse a run whose results are out of the way: what is not committed counts as never made, and is swept away."""
    for kind in FOLDERS:
        reason = no_folder(folder / kind)
        if reason not in ("", NOTHING):
            raise Damaged(f"{folder / kind}: damaged run: expected a folder ({reason}); move away what is in the way")
    if no_folder(folder / "results") and listing(folder / "embeddings"):
        told = "it is missing, and embeddings/ has vectors of recorded texts"
        raise Damaged(
            f"{folder / 'results'}: damaged run: {told}; put it back, or delete embeddings/ as well to fit again"
        )


def read_description(path: Path, shape: Any, *, kind: str, version: int, cure: str) -> dict[str, Any] | None:
    """A JSON object that describes a folder, None if there is no such file.

    Args:
      path: of the file in that folder.
      shape: the declared type of the object.
      kind: what it describes, for messages.
      version: the number under "format" that this version reads.
      cure: where it is damaged, for messages.

    Raises:
      UserError: if the file is damaged or has another format.
    """
    try:
        content = read_content(path, _WHAT, cure, limit=2**24)
    except OSError:  # it is not there, or cannot be: a refusal of the storage is an `Unreadable`
        return None
    described = plain_json(content, path, _WHAT, cure)
    found = described.get("format") if isinstance(described, dict) else None
    if found != version:
        raise UserError(f"{path.parent}: {kind} format {found!r}; this version reads {version}")
    checked(described, shape, path, _WHAT, cure)
    return described


def shared_leaf(config: Mapping[str, Any]) -> str | None:
    """Name of the leaf that the texts of a group share, if the run's scheme has one."""
    return config["identity"]["scheme"].get("share")


def read_texts(folder: Path, identity: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """(text_id, token ids int32) of a run's texts in source order, finished or not.

    Raises:
      UserError: if the table is damaged or missing, or has other texts than the identity of the run.
    """
    path = folder / "texts.parquet"
    texts = [(row.text_id, np.asarray(row.tokens, np.int32)) for row in _text_rows(path)]
    found = texts_digest(text_id for text_id, _ in texts)
    if "texts" in identity and found != identity["texts"]:
        told = f"{len(texts)} texts of digest {found}, expected those of {identity['texts']}"
        raise Damaged(f"{path}: not the texts of this run ({told}); {TEXTS_CURE}")
    return texts


def holds_texts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the table of texts is whole and has these rows, see `TextRow`.

    Raises:
      Unreadable: if the storage refuses it.
    """
    try:
        found = _text_rows(folder / "texts.parquet")
    except Damaged:
        return False
    return len(found) == len(rows) and all(
        row.text_id == given["text_id"]
        and np.array_equal(row.tokens, given["tokens"])
        and np.array_equal(row.prefix or (), given.get("prefix", ()))
        for row, given in zip(found, rows, strict=True)
    )


def _text_rows(path: Path) -> list[TextRow]:
    return read_table(path, TextRow, "table of texts", TEXTS_CURE)


def read_prefixes(folder: Path, identity: Mapping[str, Any]) -> Callable[[str], np.ndarray]:
    """What gives the frozen tokens before the vectors, (P,) int32, often none, for a text_id of the run.

    Raises:
      UserError: as `read_texts`.
    """
    if "prefixes" in identity:
        path = folder / "texts.parquet"
        found = {row.text_id: row.prefix for row in _text_rows(path)}
        if None in found.values():
            raise Damaged(f"{path}: damaged table of texts: field prefix: expected the ids of each text; {TEXTS_CURE}")
        return {text_id: np.asarray(prefix, np.int32) for text_id, prefix in found.items()}.__getitem__
    common = np.asarray(identity["scheme"].get("prefix", ()), np.int32)
    return lambda _: common


def with_prefixes(texts: Iterable[TextResult], prefix: Callable[[str], np.ndarray]) -> tuple[TextResult, ...]:
    """Results in source order, with their prefixes, which are kept with the texts and not with each part."""
    ordered = sorted(texts, key=lambda text: text.index)
    return tuple(dataclasses.replace(text, prefix=prefix(text.text_id)) for text in ordered)


def part_names(folder: Path) -> list[str]:
    """Names of the committed parts, oldest first."""
    return committed(folder, "results")


def read_results(folder: str | Path, arrays: Arrays | None = None) -> Results:
    """All recorded results of a run directory in source order; works while the run is going.

    Args:
      folder: the run directory.
      arrays: how arrays are loaded, by default in this process.

    Raises:
      UserError: if the folder is no run directory or a part of it is damaged.
    """
    folder, arrays = run_path(folder), arrays or Arrays()
    config = read_config(folder)
    identity = config["identity"]
    tokens = dict(read_texts(folder, identity))
    parts = each_part(folder, lambda name: read_part(folder, name, tokens, shared_leaf(config), arrays))
    found: dict[str, TextResult] = {text.text_id: text for part in parts for text in part}
    ordered = with_prefixes(found.values(), read_prefixes(folder, identity))
    source, revision = (config["settings"].get(key) for key in ("model", "revision"))
    return Results(ordered, identity["scheme"], identity["model"], source or "", revision)


def read_summary(folder: Path) -> dict[str, dict[str, Any]]:
    """text_id → index, accuracy, steps and status of each recorded text, in source order, without its vectors.

    Raises:
      UserError: if a results table is damaged.
    """
    parts = each_part(folder, lambda name: read_part_table(part_files(folder, name)["results"], SummaryRow))
    found = {row["text_id"]: row for part in parts for row in part}
    return dict(sorted(found.items(), key=lambda item: item[1]["index"]))


def each_part(folder: Path, read: Callable[[str], _T]) -> list[_T]:
    """What `read` makes of each part by its name, oldest first, however often parts are merged meanwhile."""
    return list(each_of(lambda: part_names(folder), read).values())

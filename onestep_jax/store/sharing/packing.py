"""A run directory as the files of a data set, and back."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import Damaged, UserError, redacted
from onestep_jax.store.names import part_name
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parquet import write_rows
from onestep_jax.store.parts import write_part
from onestep_jax.store.reading import FORMAT, read_config, read_description, read_prefixes, read_texts, shared_leaf
from onestep_jax.store.records import read_table
from onestep_jax.store.records.kinds import ConfigKind, TextRow
from onestep_jax.store.results import Results, TextResult
from onestep_jax.store.run import describe
from onestep_jax.store.saved_states import run_digest
from onestep_jax.store.sharing.layout import CARD, CONFIG, CURE, TEXTS
from onestep_jax.store.sharing.tables import read_tables, write_tables
from onestep_jax.store.status import read_status
from onestep_jax.store.storage import make_folder, replace, writing
from onestep_jax.store.verify import verify
from onestep_jax.tokens import texts_digest

_LOCAL = re.compile(r"(^|:)/(?:.*/)?([^/]+)/*$")  # a folder or file of this machine, also behind "untrained:KIND:SEED:"


def check_finished(run: Path) -> int:
    """Refuse a run that nobody could use, or that is still being written; how many of its texts have no result.

    Raises:
      UserError: saying what to do.
    """
    status = read_status(run)
    if status.owner is not None:
        raise UserError(f"{run}: still going on ({status.owner}); wait for it or stop it, then push")
    if not status.recorded:
        raise UserError(f"{run}: no recorded text yet; let onestep fit finish some, then push")
    return status.left


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as others get it: no secrets, and of a model on this machine only its name, as ./NAME."""
    settings = json.loads(redacted(json.dumps(config["settings"])))
    settings["model"] = _LOCAL.sub(r"\1./\2", settings["model"])
    return {"format": FORMAT, "identity": config["identity"], "settings": settings}


def pack(run: Path, results: Results, strings: Sequence[str | None], card: str, folder: Path) -> list[str]:
    """Write the files of a run as a data set.

    Args:
      run: the run directory.
      results: all that it has recorded.
      strings: of the texts, None where there is no tokenizer.
      card: content of the README.
      folder: an empty folder.

    Returns:
      Their paths within the folder.

    Raises:
      UserError: if the run is damaged, or the folder cannot be written.
    """
    config = read_config(run)
    identity = config["identity"]
    rows = [{"index": i, "text_id": name, "tokens": ids} for i, (name, ids) in enumerate(read_texts(run, identity))]
    if "prefixes" in identity:
        prefix = read_prefixes(run, identity)
        rows = [{**row, "prefix": prefix(row["text_id"])} for row in rows]
    with writing(folder):
        replace(folder / CARD, card.encode())
        replace(folder / CONFIG, (json.dumps(public_config(config), indent=2) + "\n").encode())
        write_rows(folder / TEXTS, rows)
        return [CARD, CONFIG, TEXTS, *write_tables(folder, results.texts, strings)]


def unpack(folder: Path, target: Path) -> int:
    """Make a run directory of the files of a data set, whole or not at all; the number of its recorded texts.

    Nothing in the files is trusted: they are parsed against declared types, every text is held against its checksum,
    and the run directory is verified before it gets its name.

    Args:
      folder: the files of the data set.
      target: the run directory, which is not there, or empty.

    Raises:
      UserError: if a file is missing or damaged, or the target cannot be written.
    """
    config = read_description(folder / CONFIG, ConfigKind, kind="run", version=FORMAT, cure=CURE)
    if config is None:
        raise Damaged(f"{folder / CONFIG}: no such file; {CURE}")
    identity = config["identity"]
    rows = read_table(folder / TEXTS, TextRow, "table of texts", CURE)
    order = [(row.text_id, np.asarray(row.tokens, np.int32)) for row in rows]
    if identity.get("texts", "") not in ("", texts_digest(text_id for text_id, _ in order)):
        raise Damaged(f"{folder / TEXTS}: not the texts of the run that {CONFIG} describes; {CURE}")
    prefixes = [np.asarray(row.prefix or (), np.int32) for row in rows] if "prefixes" in identity else []
    with writing(target):
        make_folder(target.parent)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            write_run(made, identity, config["settings"], order, prefixes, read_tables(folder, dict(order)))
            found = verify(made)
            if found.problems:
                raise Damaged(f"{folder}: damaged data set: {found.problems[0]}; {CURE}")
            made.rename(target)
    return found.recorded


def write_run(
    folder: Path,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    texts: Sequence[tuple[str, np.ndarray]],
    prefixes: Sequence[np.ndarray],
    results: Iterable[Sequence[TextResult]],
) -> None:
    """Write a run directory of results that there are already. No session has begun on it, and it has no lock file.

    Args:
      folder: an empty folder, or none yet.
      identity, settings, texts, prefixes: as of `run.open_run`.
      results: some of each part.

    Raises:
      OSError, ValueError: if the storage refuses.
    """
    describe(folder, identity, settings, texts, prefixes)
    about = {"new": "0", "elapsed": "0.0", "run": run_digest(identity)}
    for number, part in enumerate(results):
        write_part(folder, part_name(1, 0, number), part, shared_leaf({"identity": identity}), Arrays(), about=about)

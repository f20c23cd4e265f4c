"""A table of fits, texts × prefix lengths, from which capacities (Table 3) are read, and its folder.

table.json       kind, lengths and settings of the table
texts.parquet    index, text_id and tokens of the texts, cut to the longest length
round-000/ …     run directories of `fit`; a grid has one, a search one for each round, a growth one for each stage
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from onestep_jax.analysis.metrics import THRESHOLD
from onestep_jax.analysis.text_capacity import Capacity, capacity
from onestep_jax.errors import UserError
from onestep_jax.store.parquet import write_rows
from onestep_jax.store.reading import check_identity, read_description, read_results
from onestep_jax.store.records import read_table
from onestep_jax.store.records.kinds import Positive, SchemeKind, TextRow
from onestep_jax.store.results import TextResult
from onestep_jax.store.storage import entries, make_folder, replace, run_path, writing
from onestep_jax.tokens import text_ids, texts_digest

FORMAT = 1
_CURE = "put it back from a copy, or give another folder"


class TableIdentity(Struct, frozen=True):
    """What must not change between the calls that fill a table, as far as it is read back."""

    lengths: list[Positive]
    texts: str
    scheme: SchemeKind
    kind: str = ""
    threshold: float = THRESHOLD


class TableKind(Struct, frozen=True):
    """table.json."""

    format: int
    identity: TableIdentity


@dataclasses.dataclass(frozen=True)
class PrefixTable:
    """The prefixes of texts that are to be fitted, and the results of those that are.

    Attributes:
      texts: (tokens,) int32 ids of each text, cut to the longest length.
      lengths: in tokens, ascending; those longer than a text are not tried on it.
      scheme: description of the arrangement, see `schemes.from_description`.
      found: text_id of a prefix → its result. Texts that begin with the same tokens share it, unless they are fitted in
        groups.
      ids: for each text, length → text_id of that prefix.
    """

    texts: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
    lengths: tuple[int, ...]
    scheme: Mapping[str, Any]
    found: Mapping[str, TextResult] = dataclasses.field(default_factory=dict, repr=False)
    ids: tuple[Mapping[int, str], ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _prefix_ids(self.texts, self.lengths, self.scheme.get("group", 1)))

    def tried(self, text: int) -> list[int]:
        """Lengths up to that of a text, ascending."""
        return list(self.ids[text])

    def row(self, text: int) -> dict[int, TextResult]:
        """Length → result of a text, for the lengths that are fitted."""
        return {length: self.found[name] for length, name in self.ids[text].items() if name in self.found}

    def adding(self, results: Iterable[TextResult]) -> PrefixTable:
        """A copy of the table with more results."""
        return dataclasses.replace(self, found={**self.found, **{result.text_id: result for result in results}})

    def capacities(self, *, threshold: float = THRESHOLD, nested: bool = True) -> list[Capacity]:
        """Capacity of each text.

        Args:
          threshold: accuracy from which a prefix counts as reconstructed.
          nested: let the fit of a longer prefix count for shorter ones, see `text_capacity.capacity`. The table of a
            search needs it; with False a grid is read as in the paper.

        Raises:
          UserError: if a text has no fit, or the arrangement's solutions do not nest.
        """
        if nested:
            check_nesting(self.scheme)
        return [
            capacity(self.row(i).values(), lengths=self.tried(i), threshold=threshold, nested=nested)
            for i in range(len(self.texts))
        ]

    @property
    def evaluations(self) -> int:
        """Gradient evaluations of all fits."""
        return sum(result.steps for result in self.found.values())

    @property
    def token_positions(self) -> int:
        """Gradient evaluations of all fits, each times the length of its prefix."""
        return sum(result.steps * len(result.tokens) for result in self.found.values())


def _prefix_ids(texts: Sequence[np.ndarray], lengths: Sequence[int], group: int) -> tuple[dict[int, str], ...]:
    """For each text, length → text_id of the prefix; in groups, equal prefixes are numbered as `fit` does."""
    rows = [(i, length) for length in lengths for i, text in enumerate(texts) if length <= len(text)]
    prefixes = [texts[i][:length] for i, length in rows]
    names = text_ids(prefixes) if group > 1 else [text_ids([prefix])[0] for prefix in prefixes]
    ids: tuple[dict[int, str], ...] = tuple({} for _ in texts)
    for (i, length), name in zip(rows, names, strict=True):
        ids[i][length] = name
    return ids


def check_nesting(scheme: Mapping[str, Any]) -> None:
    """Refuse an arrangement in which a solution of N tokens is no solution of its shorter prefixes.

    Raises:
      UserError: for "halves", whose `m` begins later in a longer text.
    """
    arranged = scheme["of"] if scheme.get("arrangement") == "projected" else scheme
    if arranged.get("arrangement") == "halves":
        reason = "its inputs depend on the length, so that a fit does not count for shorter prefixes"
        raise UserError(f"arrangement 'halves': {reason}; use grid, and capacities(nested=False)")


# --- the folder ---


def create_folder(folder: Path, table: PrefixTable, settings: Mapping[str, Any]) -> None:
    """Write a table's description into its folder, or check that the folder already has the same.

    Args:
      folder: made if it is not there.
      table: its texts, lengths and scheme are recorded.
      settings: further values that must be the same when the table is resumed.

    Raises:
      UserError: if the folder holds another table or other files, or cannot be written.
    """
    names = text_ids(table.texts)
    identity = {**settings, "lengths": list(table.lengths), "texts": texts_digest(names), "scheme": dict(table.scheme)}
    described = _described(folder)
    if described is not None:
        check_identity(folder, described["identity"], identity)
        return
    if {path.name.removesuffix(".tmp") for path in entries(folder)} - {"texts.parquet"}:
        reason = "not empty, and no grid, search or growth of capacities (no table.json)"
        raise UserError(f"{folder}: {reason}; give another folder")
    with writing(folder):
        make_folder(folder)
        rows = [{"index": i, "text_id": name, "tokens": table.texts[i]} for i, name in enumerate(names)]
        write_rows(folder / "texts.parquet", rows)
        replace(folder / "table.json", (json.dumps({"format": FORMAT, "identity": identity}, indent=2) + "\n").encode())


def round_folder(folder: Path | None, number: int) -> Path | None:
    """Run directory of a round, counted from 0; None without a folder."""
    return None if folder is None else folder / f"round-{number:03d}"


def read_prefix_table(folder: str | Path) -> PrefixTable:
    """Read the table of a grid, search or growth from its folder, finished or not.

    Raises:
      UserError: if the folder holds none of them, or a part of it is damaged.
    """
    folder = run_path(folder)
    described = _described(folder)
    if described is None:
        raise UserError(
            f"{folder}: no grid, search or growth of capacities (no table.json); give the folder that it was made in"
        )
    identity = described["identity"]
    rows = read_table(folder / "texts.parquet", TextRow, "table of texts", _CURE)
    texts = tuple(np.asarray(row.tokens, np.int32) for row in rows)
    table = PrefixTable(texts=texts, lengths=tuple(identity["lengths"]), scheme=identity["scheme"])
    for run in entries(folder):
        if run.name.startswith("round-") and (run / "config.json").exists():
            table = table.adding(read_results(run))
    return table


def table_settings(folder: Path) -> dict[str, Any] | None:
    """What the table of a folder was made with: "kind", such as "growth", "lengths", "scheme" and more.

    Returns:
      None for a folder without a table.

    Raises:
      UserError: if its description is damaged.
    """
    described = _described(folder)
    return None if described is None else described["identity"]


def _described(folder: Path) -> dict[str, Any] | None:
    return read_description(folder / "table.json", TableKind, kind="table", version=FORMAT, cure=_CURE)

"""What opening a run directory clears away: leftovers of killed processes, and what newer parts and states replace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

from onestep_jax.store.listing import each_of, listing
from onestep_jax.store.names import FOLDERS, age, foreign_files, listed, parse
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parts import part_files, read_part_table, remove_part
from onestep_jax.store.reading import part_names
from onestep_jax.store.records.kinds import IdRow
from onestep_jax.store.saved_states import Origin, own_states, reached, remove_state, state_names, warn_of_others
from onestep_jax.store.storage import remove


def sweep_away(folder: Path) -> None:
    """Delete what killed processes left half-written, and the claims of earlier sessions.

    A process of an earlier session that still lives may be about to rename a commit record into place. Its neighbour
    file goes first, then the committed names are read: the rename came before that and counts, or it fails.
    """
    for kind in FOLDERS:
        for path in listing(folder / kind):
            if (ours := parse(path)) is not None and ours.temporary:
                remove(path)
    parts, states = set(part_names(folder)), set(state_names(folder))
    for kind in FOLDERS:
        kept = {"state": states, "claims": set()}.get(kind, parts)
        for path in listing(folder / kind):
            if (ours := parse(path)) is not None and ours.name not in kept:
                remove(path)


def warn_of_foreign(folder: Path) -> None:
    """Name what lies among the files of a run and is none of them."""
    if foreign := foreign_files(folder):
        told = "no files of a run, not read and left where they are"
        warnings.warn(f"{folder}: {told}: {listed(foreign)}", stacklevel=2)


def delete_superseded(folder: Path, of: Origin, arrays: Arrays, is_whole: Callable[[str], bool]) -> None:
    """Delete parts whose texts are all in newer whole ones, and states that nothing needs any more.

    A state is needed while one of its tasks is neither recorded nor in a newer state that is as far. One that is
    damaged or does not come from this run is left aside, with a warning.
    """

    def read(name: str) -> set[str]:
        return {row["text_id"] for row in read_part_table(part_files(folder, name)["results"], IdRow)}

    ids = each_of(lambda: part_names(folder), read)
    held: dict[str, Mapping[Hashable, float]] = {name: dict.fromkeys(texts, 0.0) for name, texts in ids.items()}
    # A record without its arrays, such as a copy of another one, holds nothing that could stand in for a part.
    broken: set[str] = set()
    while gone := superseded({name: texts for name, texts in held.items() if name not in broken}):
        found = {name for name in held if name not in broken and name not in gone and not is_whole(name)}
        if not found:
            break
        broken |= found
    for name in gone:
        remove_part(folder, name)
    states, others = own_states(folder, of, arrays)
    recorded, unfinished = set().union(*ids.values()), {}
    for name, state in states:
        tasks = reached(state.record).items()
        unfinished[name] = {task: far for task, far in tasks if not {of.texts[i][0] for i in task[0]} <= recorded}
    for name in superseded(unfinished):
        remove_state(folder, name)
    warn_of_others(folder, others)


def superseded(holdings: Mapping[str, Mapping[Hashable, float]]) -> list[str]:
    """Names of which newer ones hold everything, at least as far."""
    seen: dict[Hashable, float] = {}
    gone = []
    for name in sorted(holdings, key=age, reverse=True):
        if all(seen.get(key, -1) >= far for key, far in holdings[name].items()):
            gone.append(name)
        seen |= {key: max(far, seen.get(key, -1)) for key, far in holdings[name].items()}
    return gone

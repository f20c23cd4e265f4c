"""Whether a run directory still holds what was recorded: files, checksums, rows against arrays, vectors decoded."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from onestep_jax.errors import Unreadable, UserError
from onestep_jax.store.listing import each_of
from onestep_jax.store.locks import locked
from onestep_jax.store.names import age, foreign_files
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.parts import Scan, checksum, part_files, scan_part
from onestep_jax.store.reading import (
    TEXTS_CURE,
    part_names,
    part_runs,
    read_config,
    read_prefixes,
    read_texts,
    shared_leaf,
    with_prefixes,
)
from onestep_jax.store.results import Results, TextResult
from onestep_jax.store.run import Run
from onestep_jax.store.saved_states import Origin, doubt, read_arrays, read_state, run_digest, state_files, state_names
from onestep_jax.store.sessions import begin_session, read_session
from onestep_jax.store.storage import make_folder, move, writing
from onestep_jax.tokens import text_ids

Report = Callable[[int, int], None]
ARITHMETIC = ("dtype", "device", "matmul precision")  # what rounding depends on, as the records of a run name it


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      where: file, part or state.
      text_id: None if it is about no single text.
      what: is wrong.
      damage: whether `set_aside` takes it away.
    """

    where: str
    text_id: str | None
    what: str
    damage: bool = False

    def __str__(self) -> str:
        return f"{self.where}: " + (f"text {self.text_id}: " if self.text_id else "") + self.what


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was looked at, and what is wrong.

    Attributes:
      texts: of the run.
      recorded: that have a result, whole ones only.
      twice: recorded more than once, alike; a kill while parts are merged leaves that to the next onestep fit.
      decoded: of which the vectors were decoded.
      parts, states: how many there are.
      problems: nothing is wrong if there are none.
      damaged_parts: name of a damaged part → what is whole of it.
      damaged_states: names.
      foreign: what lies among the files of the run and is none of them; no problem of the run's.
      apart: what differs between the arithmetic of the run and that of the decoding, "" for nothing.
      otherwise: text_id of each text that then comes out otherwise than recorded; no problem of the run's either.
    """

    texts: int
    recorded: int
    twice: int
    decoded: int
    parts: int
    states: int
    problems: list[Finding]
    damaged_parts: dict[str, list[TextResult]] = dataclasses.field(repr=False)
    damaged_states: list[str]
    foreign: list[str]
    apart: str
    otherwise: list[str]


class Decoding(NamedTuple):
    """How vectors of a run are decoded again.

    Attributes:
      decode: (results, progress=…) → for each text something with the token ids (N,) that came out, as `tokens`.
      computed: the present value of each of `ARITHMETIC`; what is left out is taken to be as it was.
    """

    decode: Callable[..., Sequence[Any]]
    computed: Mapping[str, Any]

    def apart(self, config: Mapping[str, Any]) -> str:
        """What differs from the arithmetic of a run, which is that of its first session."""
        there = {key: value for key, value in {**config["settings"], **config["identity"]}.items() if key in ARITHMETIC}
        pairs = {key: (there[key], self.computed.get(key, there[key])) for key in ARITHMETIC if key in there}
        return "; ".join(f"{key}: {old} there, {new} here" for key, (old, new) in pairs.items() if old != new)


def verify(folder: Path, decoding: Decoding | None = None, progress: Report | None = None) -> Verification:
    """Check a run directory, also while the run is going on.

    Args:
      folder: the run directory.
      decoding: by the model that the vectors were fitted on, to decode them again; None to leave that out.
      progress: called with what is done and what there is to do: parts, then texts.

    Raises:
      UserError: if it is no run directory, its table of texts cannot be read, or the model is another one.
    """
    config = read_config(folder)
    identity = config["identity"]
    order = read_texts(folder, identity)
    problems = _check_session(folder) + _check_texts(order)
    scans = _scan_parts(folder, dict(order), shared_leaf(config), progress)
    for name, scan in scans.items():
        for text_id, what in scan.problems.items():
            problems.append(Finding(f"part {name}", text_id or None, what, scan.readable))
    of, against = _origin(folder, identity, order)
    problems += against
    states = _scan_states(folder, of)
    problems += [problem for problem in states.values() if problem is not None]
    found, twice, others = _unique(scans)
    problems += others
    wrong = [problem for name, text in found.values() for problem in _check_row(name, text)]
    apart, otherwise = decoding.apart(config) if decoding else "", []
    if decoding is not None and found:
        ordered = with_prefixes((text for _, text in found.values()), read_prefixes(folder, identity))
        results = Results(ordered, identity["scheme"], identity["model"])
        other = _check_decoding(decoding, results, found, progress)
        wrong += [] if apart else other
        otherwise = [str(problem.text_id) for problem in other if apart]
    problems += wrong
    group, refuted = identity["scheme"].get("group", 1), {problem.text_id for problem in wrong if problem.damage}
    damaged = _whole(scans, found, refuted, group, len(order))
    damaged_states = [name for name, problem in states.items() if problem is not None and problem.damage]
    counts = (len(order), len(found), twice, len(found) if decoding else 0, len(scans), len(states))
    return Verification(*counts, problems, damaged, damaged_states, foreign_files(folder), apart, otherwise)


def _origin(
    folder: Path, identity: Mapping[str, Any], order: Sequence[tuple[str, np.ndarray]]
) -> tuple[Origin, list[Finding]]:
    """The run that parts must be of, by what all of them say, else by config.json; and where the two differ."""
    said, run = part_runs(folder), run_digest(identity)
    if len(said) != 1 or said in ({run}, {""}):
        return Origin(run, order), []
    told = "its identity is not that of the recorded parts; the same onestep fit as before writes it anew"
    return Origin(said.pop(), order), [Finding("config.json", None, told)]


def _check_session(folder: Path) -> list[Finding]:
    try:
        read_session(folder)
    except UserError as error:
        return [Finding("session.json", None, str(error))]
    return []


def _check_texts(order: list[tuple[str, np.ndarray]]) -> list[Finding]:
    """Token ids against the identities made from them."""
    made = text_ids([tokens for _, tokens in order])
    wrong = [text_id for (text_id, _), other in zip(order, made, strict=True) if text_id != other]
    told = f"its token ids are not those that it is named after; {TEXTS_CURE}"
    return [Finding("texts.parquet", text_id, told) for text_id in wrong]


def _scan_parts(
    folder: Path, tokens: Mapping[str, np.ndarray], shared: str | None, progress: Report | None
) -> dict[str, Scan]:
    """Scans of all parts; a part that cannot be read has no text."""
    known, done = part_names(folder), itertools.count(1)

    def scan(name: str) -> Scan:
        try:
            return scan_part(folder, name, tokens, shared, Arrays())
        finally:
            if progress is not None:
                number = next(done)
                progress(number, max(number, len(known)))

    def failed(_: str, error: UserError) -> Scan:
        return Scan([], {"": str(error)}, not isinstance(error, Unreadable))

    return each_of(lambda: part_names(folder), scan, failed)


def _scan_states(folder: Path, of: Origin) -> dict[str, Finding | None]:
    """What is wrong with each state."""

    def scan(name: str) -> Finding | None:
        read_arrays(folder, name, Arrays())
        against = doubt(folder, name, read_state(folder, name), of, Arrays())
        return Finding(f"state {name}", None, against, True) if against else None

    def failed(name: str, error: UserError) -> Finding:
        return Finding(f"state {name}", None, str(error), not isinstance(error, Unreadable))

    return each_of(lambda: state_names(folder), scan, failed)


_Found: TypeAlias = dict[str, tuple[str, TextResult]]


def _unique(scans: Mapping[str, Scan]) -> tuple[_Found, int, list[Finding]]:
    """text_id → part and text, the newest of each; how many were there more than once and alike; the others."""
    found: _Found = {}
    twice, problems = 0, []
    for name in sorted(scans, key=age, reverse=True):
        for text in scans[name].texts:
            newer, other = found.setdefault(text.text_id, (name, text))
            if other is not text and checksum(other) == checksum(text):
                twice += 1
            elif other is not text:
                problems.append(Finding(f"part {name}", text.text_id, f"recorded otherwise in part {newer}", True))
    return found, twice, problems


def _whole(
    scans: Mapping[str, Scan], found: _Found, wrong: Collection[str | None], group: int, count: int
) -> dict[str, list[TextResult]]:
    """Damaged part → its texts without those that are wrong, and those that a newer part has otherwise.

    Nor is a text kept of whose group another is missing: a fit makes the whole group again.
    """
    newest = {text_id: checksum(text) for text_id, (_, text) in found.items() if text_id not in wrong}
    intact = {text.index for text_id, (_, text) in found.items() if text_id in newest}
    members = (range(first, min(first + group, count)) for first in range(0, count, group))
    complete = {i for some in members if intact.issuperset(some) for i in some}
    damaged = {}
    for name, scan in scans.items():
        own = [text for text in scan.texts if newest.get(text.text_id) == checksum(text)]
        if scan.readable and (scan.problems or len(own) < len(scan.texts)):
            damaged[name] = [text for text in own if text.index in complete]
    return damaged


def _check_row(name: str, text: TextResult) -> list[Finding]:
    """What a row says of itself."""
    right = int((text.predicted == text.tokens).sum()) if len(text.predicted) == len(text.tokens) else -1
    if (text.c_tokens, text.accuracy) == (right, right / len(text.tokens)):
        return []
    said = f"accuracy {text.accuracy} and {text.c_tokens} exact tokens"
    return [Finding(f"part {name}", text.text_id, f"its row says {said}, its predicted ids say {right}", True)]


def _check_decoding(decoding: Decoding, results: Results, found: _Found, progress: Report | None) -> list[Finding]:
    """Vectors, decoded again, against the predicted ids of the rows.

    In another batch the rounding of bfloat16 may decide a close call otherwise, so one token of a text may differ. With
    another arithmetic than the run's more may, so that this is no damage.
    """
    dtype = decoding.computed["dtype"]
    allowed, problems = 0 if dtype == "float32" else 1, []
    for text, decoded in zip(results, decoding.decode(results, progress=progress), strict=True):
        other = int((decoded.tokens != text.predicted).sum())
        if other > allowed:
            what = f"its vectors decode to {other} other tokens than recorded, of {len(text.tokens)}"
            told = f"{what}; {allowed} may differ in {dtype}"
            problems.append(Finding(f"part {found[text.text_id][0]}", text.text_id, told, True))
    return problems


def set_aside(folder: Path, found: Verification) -> int:
    """Move damaged parts and states into `damaged/`, so that a resume makes their texts again.

    What is whole of a damaged part is recorded anew first; returns how many texts that are.

    Raises:
      UserError: if the run is going on, or the folder cannot be written.
    """
    with writing(folder), locked(folder) as number:
        session = begin_session(folder, number, 1, 1)
        with Run(folder, session, 0) as run:
            for texts in found.damaged_parts.values():
                run.append(texts)
        make_folder(folder / "damaged")
        for name in found.damaged_parts:
            _move(folder, name, part_files(folder, name))
        for name in found.damaged_states:
            _move(folder, name, state_files(folder, name))
    return sum(map(len, found.damaged_parts.values()))


def _move(folder: Path, name: str, files: Mapping[str, Path]) -> None:
    for kind, path in files.items():
        with contextlib.suppress(FileNotFoundError):
            move(path, folder / "damaged" / f"{name}-{kind}{path.suffix}")

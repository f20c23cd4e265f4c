"""What a fit will do, settled and checked before it runs: texts, protocol, devices, sizes, identity of the run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from onestep_jax.devices.arithmetic import computed_with, pinned
from onestep_jax.devices.compile_cache import use_cache
from onestep_jax.devices.placement import Placement
from onestep_jax.errors import (
    MARGIN,
    PAUSE,
    SEED,
    SEEDS,
    SIZE,
    SLOTS,
    STEPS,
    UserError,
    check_kind,
    check_known,
    check_list,
)
from onestep_jax.fitting.memory import PastShape
from onestep_jax.fitting.optimizers import Optimizer, Preset, preset_of
from onestep_jax.fitting.sizing import check_attention, choose_placement, size_fit
from onestep_jax.fitting.slot_ladder import rungs
from onestep_jax.fitting.slots import FitProblem, make_problem, start_unit
from onestep_jax.fitting.work_queue import Group
from onestep_jax.model.decoder import Model, weights_bytes
from onestep_jax.model.likelihood import first_term
from onestep_jax.prototokens.auxiliary import AuxiliaryLoss, check_losses, describe_losses
from onestep_jax.prototokens.prefixes import prefix_of
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.prototokens.starts import MISSING, Starts
from onestep_jax.prototokens.targets import Rows, settle_rows
from onestep_jax.store.sessions import versions
from onestep_jax.store.storage import run_path
from onestep_jax.tokens import texts_digest


@dataclasses.dataclass(frozen=True, eq=False)
class FitPlan:
    """A fit with everything settled and checked; `fitting.run_plan` carries it out.

    Attributes:
      model: with the attention, and the `remat`, that it runs with.
      tokens: (N,) int32 of each text; with copies, those of a text follow each other.
      ids: identity of each of these rows.
      copies: rows of a text.
      scheme: the arrangement, with start vectors if they were given; its prefix is token ids.
      prefixes: (P,) int32 before each of these rows where each has its own, or empty.
      context: name → a row for each of these rows, of what the losses beside Eq. 1 know.
      problem: what compiled programs are made of.
      placement: the devices, and what is split over them.
      ladder: numbers of slots that it may run with over all devices, widest first, see `slot_ladder.rungs`.
      chunk: steps between looks of the host.
      first_seed: number of the first seed.
      seeds: how many a group may use; None for as many as its budget lasts for.
      steps: budget of a group and seed, or of a group where `seeds` is None, in gradient evaluations.
      save_every: seconds between saves of the slots in flight.
      folder: the run directory, or None for results in memory.
      identity: what must not change between the sessions of a run, as plain values.
      settings: what may change between them; a run directory keeps those of its first session.
      room: tokens of the longest text of later calls, see `fitting.fit`; 0 for this call alone.
    """

    model: Model
    tokens: tuple[np.ndarray, ...]
    ids: tuple[str, ...]
    copies: int
    scheme: Scheme
    prefixes: tuple[np.ndarray, ...]
    context: Mapping[str, np.ndarray]
    problem: FitProblem
    placement: Placement
    ladder: tuple[int, ...]
    chunk: int
    first_seed: int
    seeds: int | None
    steps: int
    save_every: float
    folder: Path | None
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    room: int

    @property
    def groups(self) -> list[Group]:
        """Indices of the rows of each group; the last group may have fewer rows."""
        size, count = self.scheme.group, len(self.ids)
        return [tuple(range(first, min(first + size, count))) for first in range(0, count, size)]

    def prefix(self, row: int) -> np.ndarray:
        """(P,) int32, what stands before a row, whether common to all or its own."""
        return self.prefixes[row] if self.prefixes else prefix_of(self.scheme)


_OPTIMIZERS = (optax.GradientTransformation, Optimizer, type(None))


@pinned
def resolve(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]] | Sequence[np.ndarray],
    *,
    length: int | None = None,
    run: str | Path | None = None,
    preset: str | Preset = "fast",
    optimizer: optax.GradientTransformation | Optimizer | None = None,
    optimizer_name: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    seeds: int | str | None = None,
    slots: int | str = "auto",
    remat: bool | str = "auto",
    attention: str = "plain",
    scheme: Scheme | None = None,
    prefixes: Sequence[str] | Sequence[Sequence[int]] | None = None,
    start: Starts | None = None,
    start_missing: str = "error",
    chunk: int = 10,
    save_every: float = 60.0,
    copies: int = 1,
    record: bool = False,
    room: int | None = None,
    placement: Placement | str = "auto",
    margin: float = 0.0,
    losses: Mapping[str, AuxiliaryLoss] | None = None,
    context: Mapping[str, Any] | None = None,
) -> FitPlan:
    """Settle and check a fit; arguments of `fitting.fit`, texts also as int32 arrays. Nothing is fitted or written yet.

    On an accelerator an automatic number of slots compiles and times parts of the model, see `sizing.size_fit`.

    Raises:
      UserError: for input that cannot be fitted.
    """
    use_cache()
    check_kind("what load_model returns", Model, model=model)
    texts = check_list("strings, or lists of token ids", "texts", texts)
    check_kind("a preset or the name of one", (str, Preset), preset=preset)
    check_kind("an optax optimiser, or onestep_jax.Optimizer", _OPTIMIZERS, optimizer=optimizer)
    check_kind("a scheme, such as OneStep()", (Scheme, type(None)), scheme=scheme)
    check_kind("a placement, or auto, pmap or mesh", (str, Placement), placement=placement)
    check_kind("True or False", bool, record=record)
    SIZE.check("room", 1 if room is None else room)
    check_known("value of start_missing", [start_missing], MISSING)
    chosen = preset_of(preset, run)
    seeds = chosen.seeds if seeds is None else seeds
    steps = chosen.steps if steps is None else steps
    _check_numbers(steps, seed, seeds, slots, chunk, copies, save_every)
    MARGIN.check("margin", margin)
    if run is None and jax.process_count() > 1:
        raise UserError("a job of several processes records what it finds: give run=…, a folder that all share")
    rows = settle_rows(
        model,
        texts,
        length,
        scheme,
        arrangement=chosen.arrangement,
        prefix=chosen.prefix,
        prefixes=prefixes,
        start=start,
        start_missing=start_missing,
        seed=seed,
        scale=1.0 if start is None else chosen.scale * start_unit(chosen, model),
        copies=copies,
    )
    scheme = rows.scheme
    transformation, described = _optimizer(optimizer or chosen.optimizer, optimizer_name, needs_name=run is not None)
    protocol = {**chosen.describe(), "optimizer": described, "steps": steps, "seed": seed, "seeds": seeds}
    identity = _identity(model, rows, length) | protocol | {"record": record}
    identity |= {"margin": float(margin)} if margin else {}
    beside, known = check_losses(losses or {}, context, scheme, model.embed_width, len(texts))
    known = {name: each.repeat(copies, axis=0) for name, each in known.items()}
    identity |= {"losses": describe_losses(beside), "context": _digest(known)} if beside else {}
    model, placement, slots = _settle_devices(model, rows, chosen, transformation, placement, attention, slots, remat)
    settings = {
        "model": model.source,
        "revision": model.revision,
        "preset": preset if isinstance(preset, str) else "given",
        "preset values": chosen.values(),
        "prefix": rows.word,
        "copies": copies,
        "slots": slots,
        "remat": model.remat,
        "attention": attention,
        "chunk": chunk,
        "save_every": save_every,
        "h_lm of the first token": first_term(model, rows.most_before),
        **computed_with(placement.devices),
        **versions(),
    }
    return FitPlan(
        model=model,
        tokens=rows.tokens,
        ids=rows.ids,
        copies=copies,
        scheme=scheme,
        prefixes=rows.prefixes,
        context=known,
        problem=make_problem(model, scheme, chosen, transformation, record=record, margin=float(margin), losses=beside),
        placement=placement,
        ladder=tuple(rungs(slots, placement.rows)),
        chunk=chunk,
        first_seed=seed,
        seeds=None if isinstance(seeds, str) else seeds,
        steps=steps,
        save_every=save_every,
        folder=None if run is None else run_path(run),
        identity=identity,
        settings=settings,
        room=room or 0,
    )


def _check_numbers(
    steps: int, seed: int, seeds: int | str, slots: int | str, chunk: int, copies: int, save_every: float
) -> None:
    STEPS.check("steps", steps)
    SEED.check("seed", seed)
    SEEDS.check("seeds", seeds)
    SEED.check("seed + seeds", seed + (steps if isinstance(seeds, str) else seeds))
    SLOTS.check("slots", slots)
    STEPS.check("chunk", chunk)
    SIZE.check("copies", copies)
    PAUSE.check("save_every", save_every)


def _settle_devices(
    model: Model,
    rows: Rows,
    preset: Preset,
    optimizer: optax.GradientTransformation,
    placement: Placement | str,
    attention: str,
    slots: int | str,
    remat: bool | str,
) -> tuple[Model, Placement, int]:
    """The model as it runs, the devices, and the most slots on all of them."""
    longest = max(map(len, rows.tokens))
    if isinstance(placement, str):
        placement = choose_placement(placement, weights_bytes(model), rows.scheme, len(rows.tokens))
    model = dataclasses.replace(model, attention=attention)
    if attention != "plain" and rows.most_before:
        raise UserError(f"attention {attention} cannot stand behind a prefix; use plain, or no prefix (--prefix none)")
    check_attention(model.network, model.dtype, longest + rows.scheme.extra, placement.devices[0])
    past = PastShape(rows.most_before, own=bool(rows.prefixes))
    asked = {"slots": slots, "remat": remat, "past": past}
    sized = size_fit(model, rows.tokens, rows.scheme, placement, preset, optimizer=optimizer, **asked)
    return dataclasses.replace(model, remat=sized.remat), placement, sized.slots


def _optimizer(
    given: optax.GradientTransformation | Optimizer, name: str | None, *, needs_name: bool
) -> tuple[optax.GradientTransformation, dict[str, Any]]:
    """The transformation and its description for the identity of a run."""
    if isinstance(given, Optimizer):
        return given.build(), given.describe()
    if needs_name and not name:
        raise UserError("an optimizer given as an object needs optimizer_name=…, by which a resumed run knows it")
    return given, {"name": name, "object": True}


def _identity(model: Model, rows: Rows, length: int | None) -> dict[str, Any]:
    """What a run is about; with the protocol, all that must not change between its sessions."""
    scheme, before = rows.scheme, rows.prefixes
    own = {"prefixes": _digest({str(i): ids for i, ids in enumerate(before)}, np.int32)} if before else {}
    return own | {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "texts": texts_digest(rows.ids),
        "length": length,
        "scheme": scheme.describe(),
        "start vectors": _digest(scheme.start) if scheme.start else None,
    }


def _digest(arrays: Mapping[str, np.ndarray], dtype: Any = np.float32) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name], dtype).tobytes())
    return digest.hexdigest()[:16]

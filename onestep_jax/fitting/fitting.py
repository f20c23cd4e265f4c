"""`fit`: proto-tokens for many texts, in memory or into a run directory that survives being killed."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from onestep_jax.devices.compile_cache import use_cache
from onestep_jax.devices.placement import Placement
from onestep_jax.errors import UserError, check_known
from onestep_jax.fitting.distributed import meet, open_in_turn, wait_for_others
from onestep_jax.fitting.optimizers import PRESETS, Optimizer, Preset
from onestep_jax.fitting.progress import Progress
from onestep_jax.fitting.sizing import check_attention, choose_placement, size_fit
from onestep_jax.fitting.slot_ladder import rungs
from onestep_jax.fitting.slots import Problem
from onestep_jax.fitting.sweep import Sweep
from onestep_jax.fitting.work_blocks import block_size
from onestep_jax.model.decoder import Model, input_scale, weights_bytes
from onestep_jax.model.likelihood import beginning
from onestep_jax.prototokens.schemes import OneStep, Scheme, without_start
from onestep_jax.store.provenance import versions
from onestep_jax.store.results import Results
from onestep_jax.store.run import join_run, open_run
from onestep_jax.store.storage import locate
from onestep_jax.tokens import check_tokens, text_ids, tokenise


def fit(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    length: int | None = None,
    run: str | Path | None = None,
    preset: str | Preset = "fast",
    optimizer: optax.GradientTransformation | Optimizer | None = None,
    optimizer_name: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    slots: int | str = "auto",
    remat: bool | str = "auto",
    attention: str = "plain",
    scheme: Scheme | None = None,
    chunk: int = 10,
    save_every: float = 60.0,
    copies: int = 1,
    record: bool = False,
    placement: Placement | str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Find proto-tokens with which the frozen model emits each text in one forward pass.

    Args:
      model: see `load_model`.
      texts: strings, or lists of token ids.
      length: tokens of each text to keep (its first ones), at most the model's context; None for all.
      run: run directory to record in, or an address (gs://bucket/run); one that is there already is gone on with.
      preset: "fast", "paper" (see `optimizers.PRESETS`) or a `Preset`; gives what the next ones leave open.
      optimizer: any optax optimiser, or `Optimizer` for one by name.
      optimizer_name: what a run directory shall call an optimiser given as an object.
      steps: budget of a text and seed, in gradient evaluations.
      seed: number of the first seed.
      seeds: how many seeds a text may use, one after the other until it is solved; the best is kept.
      slots: texts optimised at a time over all devices, or "auto".
      remat: whether activations are computed again instead of kept, see `Network.remat`; "auto" for where one text's
        would not fit into an accelerator's memory.
      attention: "plain", or the name of a fused kernel, see `Network.attention`.
      scheme: the arrangement, `OneStep()` by default.
      chunk: steps between looks of the host.
      save_every: seconds between saves of the slots in flight.
      copies: how often each text is fitted, from start vectors of its own each time; every copy is a row of the
        results, copies of a text following each other. In a sharing scheme the copies are texts of the group.
      record: whether the vectors after each chunk are kept, see `Trial.path`.
      placement: the devices and what is split over them, or "auto", "pmap" or "mesh", see `sizing.choose_placement`.
      progress: called after each chunk.

    Returns:
      One result a text (and copy), in source order.

    Raises:
      UserError: for input that cannot be fitted, or a run directory of another run.
      Interrupted: on SIGTERM or SIGINT with a run directory, after saving.
    """
    use_cache()
    scheme = scheme or OneStep()
    for name, value in (("steps", steps), ("seeds", seeds), ("chunk", chunk), ("copies", copies)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value}: expected at least 1")
    if seed < 0:
        raise UserError(f"seed = {seed}: expected at least 0")
    tokens = [ids for ids in prepare(model, texts, length, scheme) for _ in range(copies)]
    _check_start(scheme, model, len(tokens))
    if isinstance(preset, str):
        check_known("preset", [preset], PRESETS)
    chosen = PRESETS[preset] if isinstance(preset, str) else preset
    transformation, described = _optimizer(optimizer or chosen.optimizer, optimizer_name, needs_name=run is not None)
    steps = steps or chosen.steps
    if isinstance(placement, str):
        placement = choose_placement(placement, weights_bytes(model), scheme, len(tokens))
    ids = text_ids(tokens)
    protocol = {**chosen.describe(), "optimizer": described, "steps": steps, "seed": seed, "seeds": seeds}
    identity = _identity(model, ids, length, scheme) | protocol | {"record": record}
    model = dataclasses.replace(model, attention=attention)
    check_attention(model.network, model.dtype, max(map(len, tokens)) + scheme.extra, placement.devices[0])
    sized = size_fit(model, tokens, scheme, placement, chosen, slots=slots, remat=remat)
    model = dataclasses.replace(model, remat=sized.remat)
    settings = {"model": model.source, "preset": preset if isinstance(preset, str) else "given", "copies": copies}
    settings |= {**sized._asdict(), "attention": attention, "chunk": chunk, "save_every": save_every}
    settings["h_lm of the first token"] = "left out" if beginning(model) is None else "given BOS"
    settings |= {"devices": len(placement.devices), "device": placement.devices[0].device_kind, **versions()}
    sweep = Sweep(tokens, ids, scheme, seed, seeds, model, progress, save_every)
    problem = make_problem(model, scheme, chosen, transformation, steps, record)
    ladder = rungs(sized.slots, placement.rows)
    if run is None:
        if jax.process_count() > 1:
            raise UserError("a job of several processes records what it finds: give run=…, a folder that all share")
        sweep.optimise(problem, placement, ladder, chunk)
        return Results(tuple(sweep.results), scheme.describe(), model.fingerprint, model.source)
    folder, processes = locate(run), jax.process_count()
    how = {"processes": processes, "block": block_size(len(sweep.groups), sized.slots, processes)}
    listed = list(zip(ids, tokens, strict=True))
    opened = open_in_turn(
        lambda: open_run(folder, identity, settings, listed, apart=processes > 1, **how),
        lambda: join_run(folder, identity, jax.process_index(), apart=True),
    )
    with opened, _catch_signals(sweep):
        sweep.resume(opened, problem)
        if placement.lockstep:
            meet("resumed")  # before anybody writes, all have read the same
        sweep.optimise(problem, placement, ladder, chunk)
        if processes > 1:
            wait_for_others(opened, len(ids), lambda: sweep.stopping, sweep.show_recorded)
        return opened.results()


def make_problem(
    model: Model,
    scheme: Scheme,
    preset: Preset,
    optimizer: optax.GradientTransformation,
    steps: int,
    record: bool = False,
) -> Problem:
    """What slots need to know of a fit by a preset, which gives all but the optimiser and the budget.

    Raises:
      UserError: for a scheme or an optimiser that compiled programs cannot be kept by.
    """
    unit = 1.0 if preset.start == "normal" else input_scale(model)
    how = {"temperature": preset.temperature, "patience": preset.patience, "record": record}
    problem = Problem(model.network, without_start(scheme), optimizer, preset.scale * unit, steps, **how)
    try:
        hash(problem)
    except TypeError as error:
        cure = "make it a frozen dataclass of plain values"
        raise UserError(f"scheme or optimizer: {error}; programs are kept by what they are made of: {cure}") from error
    return problem


def prepare(
    model: Model, texts: Sequence[str] | Sequence[Sequence[int]], length: int | None, scheme: Scheme
) -> list[np.ndarray]:
    """Token ids of texts given as strings or ids, cut to `length` and checked against the model and the scheme."""
    context = model.config.context - scheme.extra
    if length is not None and length < 1:
        raise UserError(f"length = {length}: expected at least 1")
    if length is not None and length > context:
        room = f" less {scheme.extra} of {scheme.notation}" if scheme.extra else ""
        raise UserError(f"length {length} is beyond the model's context of {model.config.context} positions{room}")
    if len(texts) == 0:
        raise UserError("no texts: expected at least one")
    if isinstance(texts[0], str):
        if model.tokenizer is None:
            raise UserError(f"model {model.source!r} has no tokenizer: give lists of token ids instead of strings")
        tokens = tokenise(model.tokenizer, [str(text) for text in texts], length)
    else:
        tokens = [np.asarray(ids, np.int32)[:length] for ids in texts]
    return check_tokens(tokens, model.config.vocab_size, context)


def _identity(model: Model, ids: Sequence[str], length: int | None, scheme: Scheme) -> dict[str, Any]:
    """What a run is about; with the protocol, all that must not change between its sessions."""
    return {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "texts": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
        "length": length,
        "scheme": scheme.describe(),
        "start vectors": _digest(scheme.start) if scheme.start else None,
    }


def _optimizer(
    given: optax.GradientTransformation | Optimizer, name: str | None, *, needs_name: bool
) -> tuple[optax.GradientTransformation, dict[str, Any]]:
    """The transformation and its description for the identity of a run."""
    if isinstance(given, Optimizer):
        return given.build(), given.describe()
    if needs_name and not name:
        raise UserError("an optimizer given as an object needs optimizer_name=…, by which a resumed run knows it")
    return given, {"name": name, "object": True}


def _check_start(scheme: Scheme, model: Model, rows: int) -> None:
    for name, shape in scheme.leaf_shapes(model.embed_width).items():
        given = None if scheme.start is None else np.shape(scheme.start[name])
        if given not in (None, (rows, *shape)):
            raise UserError(f"start vectors of {name!r} have shape {given}; expected {(rows, *shape)}, a row a text")


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name], np.float32).tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _catch_signals(sweep: Sweep) -> Iterator[None]:
    """SIGTERM and SIGINT ask the sweep to save and stop; a second one acts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _frame: Any) -> None:
        sweep.stopping = True
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""`fit`: proto-tokens for many texts, in memory or into a run directory that survives being killed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from onestep_jax.devices.arithmetic import matmul_precision, pinned
from onestep_jax.devices.placement import Placement
from onestep_jax.devices.stop_signals import signals_caught
from onestep_jax.errors import Interrupted, check_kind
from onestep_jax.fitting.distributed import meet, open_in_turn, wait_for_others
from onestep_jax.fitting.optimizers import Optimizer, Preset
from onestep_jax.fitting.plan import FitPlan, resolve
from onestep_jax.fitting.progress import Progress
from onestep_jax.fitting.recorder import Recorder, RunRecorder
from onestep_jax.fitting.sweep import Sweep
from onestep_jax.fitting.work_queue import block_size
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.auxiliary import AuxiliaryLoss
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.prototokens.starts import Starts
from onestep_jax.store.results import Results
from onestep_jax.store.run import Run, join_run, open_run


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
    progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Find proto-tokens with which the frozen model emits each text in one forward pass.

    Args:
      model: see `load_model`.
      texts: strings, or lists of token ids.
      length: tokens of each text to keep (its first ones), at most the model's context; None for all.
      run: run directory to record in, or an address (gs://bucket/run); an existing one is resumed.
      preset: "fast", "paper" (see `optimizers.PRESETS`) or a `Preset`; gives what the next ones leave open.
      optimizer: any optax optimiser, or `Optimizer` for one by name.
      optimizer_name: what a run directory shall call an optimiser given as an object.
      steps: budget of a text and seed, in gradient evaluations; with "auto" seeds, of a text.
      seed: number of the first seed.
      seeds: how many seeds a text may use, one after the other until it is solved; the best is kept. With "auto" as
        many as its budget lasts for.
      slots: texts optimised at a time over all devices, or "auto".
      remat: whether activations are computed again instead of kept, see `Network.remat`; "auto" for where one text's
        would not fit into an accelerator's memory, which is not asked with a given number of slots.
      attention: "plain", or the name of a fused kernel, see `Network.attention`.
      scheme: the arrangement, by default the preset's; its `prefix` stands before the vectors of every text.
      prefixes: what stands before the vectors of each text, frozen, instead: strings or lists of token ids, see
        `prefixes.prefix_tokens`.
      start: vectors that the first seed of a text starts at, by text: `Results` of a fit or of `encode`, or text_id →
        leaf → vector. They belong to the identity of a run. Where `scheme` does not say otherwise, arrangement and
        prefix are those that results were made in.
      start_missing: what becomes of texts that it does not have: "error", or "draw" for random start vectors.
      chunk: steps between looks of the host.
      save_every: seconds between saves of the slots in flight.
      copies: how often each text is fitted, from start vectors of its own each time; every copy is a row of the
        results, copies of a text following each other. In a sharing scheme the copies are texts of the group.
      record: whether the vectors after each chunk are kept, see `Trial.path`.
      room: tokens of the longest text of later calls. With it, texts of one length are padded as those of several
        lengths are, so that calls with growing texts compile few programs; None for this call alone.
      placement: the devices and what is split over them, or "auto", "pmap" or "mesh", see `sizing.choose_placement`.
      margin: logits by which each target must lead the runner-up before a text is solved, see `token_scores`; 0 where
        the argmax will do. A text that is exact and does not reach it within its budget is "exhausted" at accuracy 1.
      losses: name → a loss beside Eq. 1, such as `Anchor` or `Relational`: any hashable, pure function of (leaves,
        context), see `auxiliary`. A run directory knows a dataclass by its fields, another function by its name.
      context: name → an array with a row for each text, which the losses read.
      progress: called after each chunk.

    Returns:
      One result a text (and copy), in source order.

    Raises:
      UserError: for input that cannot be fitted, or a run directory of another run.
      Interrupted: on SIGTERM or SIGINT with a run directory, after saving.
    """
    if progress is not None:
        check_kind("a function", Callable, progress=progress)
    plan = resolve(
        model,
        texts,
        length=length,
        run=run,
        preset=preset,
        optimizer=optimizer,
        optimizer_name=optimizer_name,
        steps=steps,
        seed=seed,
        seeds=seeds,
        slots=slots,
        remat=remat,
        attention=attention,
        scheme=scheme,
        prefixes=prefixes,
        start=start,
        start_missing=start_missing,
        chunk=chunk,
        save_every=save_every,
        copies=copies,
        record=record,
        room=room,
        placement=placement,
        margin=margin,
        losses=losses,
        context=context,
    )
    return run_plan(plan, progress)


@pinned
def run_plan(plan: FitPlan, progress: Callable[[Progress], None] | None = None) -> Results:
    """Carry out a plan of `plan.resolve`, in memory or into its run directory.

    Args:
      plan: what to fit.
      progress: called after each chunk.

    Returns:
      One result a text (and copy), in source order.

    Raises:
      UserError: for a run directory of another run, or devices without memory for one slot each.
      Interrupted: on SIGTERM or SIGINT with a run directory, after saving.
    """
    if plan.folder is not None:
        return _record(plan, plan.folder, progress)
    recorder = Recorder()
    Sweep(plan, recorder, progress).optimise()
    texts = sorted(recorder.results, key=lambda text: text.index)
    described, model = plan.scheme.describe(), plan.model
    return Results(tuple(texts), described, model.fingerprint, model.source, model.revision)


def _record(plan: FitPlan, folder: Path, progress: Callable[[Progress], None] | None) -> Results:
    """Carry out a plan into a run directory, together with the other processes of the job."""
    lockstep = plan.placement.lockstep
    with _open(plan, folder) as run, signals_caught() as stop:
        recorder = RunRecorder(run, lockstep=lockstep, save_every=plan.save_every, stop_is_asked=stop.is_set)
        sweep = Sweep(plan, recorder, progress)
        if lockstep:
            meet("resumed")  # before any process writes, all have read the same
        sweep.optimise()
        if run.processes > 1:
            wait_for_others(run, len(plan.ids), stop.is_set, sweep.meter.show_recorded)
        results = run.results()
    if stop.is_set():
        raise Interrupted(f"stopped; all texts of {folder} are recorded")
    if missing := len(plan.ids) - len(results):
        # What counted as recorded when this session began may be gone: in an object store, a process whose lease was
        # taken over takes back what it was just writing.
        raise Interrupted(f"{missing} texts of {folder} are recorded no longer; the same command fits them")
    return results


def _open(plan: FitPlan, folder: Path) -> Run:
    """Open the run directory in every process of the job."""
    processes = jax.process_count()

    def first() -> Run:
        block = block_size(len(plan.groups), plan.ladder[0], processes)
        texts = list(zip(plan.ids, plan.tokens, strict=True))
        apart = processes > 1
        return open_run(
            folder,
            plan.identity,
            plan.settings,
            texts,
            prefixes=plan.prefixes,
            processes=processes,
            block=block,
            apart=apart,
        )

    run = open_in_turn(first, lambda: join_run(folder, plan.identity, jax.process_index(), apart=True))
    _warn_of_other_precision(run)
    return run


def _warn_of_other_precision(run: Run) -> None:
    began, now = run.config["settings"].get("matmul precision", matmul_precision()), matmul_precision()
    if began != now:
        told = f"begun with jax_default_matmul_precision {began!r}, resumed with {now!r}: its vectors are of both"
        warnings.warn(f"{run.folder}: {told}", stacklevel=2)

"""`train_encoder`: an encoder from texts, in a folder from which a training that was stopped or killed goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.devices.compile_cache import use_cache
from onestep_jax.devices.machine import device_name
from onestep_jax.devices.placement import local_devices
from onestep_jax.devices.stop_signals import signals_caught
from onestep_jax.encoder.design import Design, Encoder
from onestep_jax.encoder.folder import DTYPES, make_encoder, rounded, save_encoder
from onestep_jax.encoder.growing import grown_design
from onestep_jax.encoder.objective import Figures
from onestep_jax.encoder.reading import check_room
from onestep_jax.encoder.recipe import Recipe
from onestep_jax.encoder.snapshots import Snapshots
from onestep_jax.encoder.training import Report, State, Trainer
from onestep_jax.encoder.windows import Pool, check_ids, divide, make_pool, tokenizer_digest
from onestep_jax.errors import DURATION, PAUSE, STEPS, Interrupted, UserError, check_kind, check_known, check_list
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.prefixes import resolve_prefix
from onestep_jax.tokens import check_text

_SAMPLE = 400  # updates of the recipe whose cost stands for all


def train_encoder(
    model: Model,
    texts: Sequence[str],
    folder: str | Path,
    *,
    design: Design | None = None,
    recipe: Recipe | None = None,
    start: Encoder | None = None,
    hours: float | None = None,
    validation: Sequence[str] | None = None,
    prefix: str | Sequence[int] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    optimizer_name: str | None = None,
    data: str = "texts",
    save_every: float = 300.0,
    validate_every: int = 200,
    dtype: str = "float32",
    progress: Callable[[Report], None] | None = None,
) -> Encoder:
    """Train an encoder through the frozen model; the same call goes on where one was stopped or killed.

    Args:
      model: the frozen decoder, see `load_model`.
      texts: whole texts, of which random windows are drawn.
      folder: of the encoder, created; saved states lie in it until the training is done and after.
      design: parts of the encoder.
      recipe: of the training.
      start: an encoder of the same model whose weights the training begins with; the design may be longer than its own,
        or have another number of corrections or temperature.
      hours: how long it may take, instead of the recipe's number of updates. Some updates are timed before the first
        one, and the number is settled then.
      validation: whole texts to measure on; by default one of twenty is left out.
      prefix: what stands before the vectors, instead of the design's: "none", "bos", a text or token ids; None for the
        BOS where the first position is an attention sink, as the preset `fast` has it.
      optimizer: instead of the recipe's AdamW; then `optimizer_name` is what a resume knows it by.
      data: what the texts are, for the model card.
      save_every: seconds between saves.
      validate_every: updates between figures on held-out windows.
      dtype: of the weights in the folder, see `save_encoder`.
      progress: called every ten updates.

    Returns:
      The encoder, as it is in the folder.

    Raises:
      UserError: for input that cannot be trained on, or a folder that holds another training or where one is going on.
      Interrupted: on SIGTERM or SIGINT, after saving.
    """
    use_cache()
    check_kind("what load_model returns", Model, model=model)
    if jax.process_count() > 1:
        raise UserError(
            "an encoder is trained by one process, over its local devices; call this where no job of several was joined"
        )
    check_kind("a Design", (Design, type(None)), design=design)
    check_kind("a Recipe", (Recipe, type(None)), recipe=recipe)
    PAUSE.check("save_every", save_every)
    STEPS.check("validate_every", validate_every)
    check_known("dtype of an encoder", [dtype], DTYPES)
    if hours is not None:
        DURATION.check("hours", hours)
    if optimizer is not None and not optimizer_name:
        raise UserError("an optimizer given as an object needs optimizer_name=…, by which a resumed training knows it")
    check_kind("what load_encoder returns", (Encoder, type(None)), start=start)
    folder, settled = Path(folder), recipe or Recipe()
    design = _design(model, design, start, prefix)
    check_room(model.config, design, design.length)
    train, held = _texts(texts, validation)
    identity = _identity(model, design, settled, start, hours, optimizer_name, train, held)
    snapshots = Snapshots(folder, identity)
    with snapshots.alone():
        pools = [
            _pool(model, snapshots, identity[name], some) for name, some in (("texts", train), ("validation", held))
        ]
        trainer = Trainer(model, design, settled, *pools, optimizer=optimizer, start=start)
        snapshots.claim()  # only now, as the settings of a training that cannot begin shall not bind the next one
        if hours is not None:
            updates = snapshots.settled_updates(lambda: _updates_for(hours, trainer))
            settled = dataclasses.replace(settled, updates=updates)
            trainer = Trainer(model, design, settled, *pools, optimizer=optimizer, start=start)
        state = _run(trainer, snapshots, save_every, validate_every, progress)
        state = state._replace(weights=rounded(state.weights, dtype))  # so that what is measured is what is kept
        trained = _trained(trainer, state, data, (len(train), len(held)), pools[0])
        if start is not None:
            before = {"design": start.design.describe(), "trained": dict(start.trained)}
            trained |= {"start": {"fingerprint": start.fingerprint, **before}}
        encoder = make_encoder(model, design, state.weights, trained)
        save_encoder(encoder, folder, dtype)
    return encoder


def _design(model: Model, design: Design | None, start: Encoder | None, prefix: str | Sequence[int] | None) -> Design:
    """The design that is asked for, with its prefix; that of a start grown to it.

    Raises:
      UserError: for a start of another model, or one that does not grow so.
    """
    if start is None:
        return _with_prefix(model, design or Design(), prefix)
    if start.model != model.fingerprint:
        raise UserError(f"start: belongs to model {start.model_source!r} ({start.model}), not to {model.source!r}")
    if prefix is None and (design is None or not design.prefix):
        prefix = start.design.prefix  # also where it is empty: what the weights were trained behind
    return grown_design(start, _with_prefix(model, design or start.design, prefix))


def _identity(
    model: Model,
    design: Design,
    recipe: Recipe,
    start: Encoder | None,
    hours: float | None,
    optimizer_name: str | None,
    train: Sequence[str],
    held: Sequence[str],
) -> dict[str, Any]:
    """What a training is known by: a folder goes on with one of the same identity alone."""
    return {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "design": {name: part for name, part in design.describe().items() if name != "temperature"},
        # The temperature was a part of the recipe when some trainings began, which shall go on.
        "recipe": recipe.describe()
        | {"temperature": design.temperature}
        | ({"updates": None} if hours is not None else {}),
        "start": None if start is None else start.fingerprint,
        "hours": hours,
        "optimizer": optimizer_name,
        "texts": _digest(train),
        "validation": _digest(held),
    }


def _with_prefix(model: Model, design: Design, prefix: str | Sequence[int] | None) -> Design:
    scheme = dataclasses.replace(design.scheme, prefix=design.prefix or None if prefix is None else prefix)
    found = resolve_prefix(scheme, model, "auto").prefix or ()
    return dataclasses.replace(design, prefix=tuple(int(i) for i in found))  # pyright: ignore[reportArgumentType]


def _texts(texts: Sequence[str], validation: Sequence[str] | None) -> tuple[list[str], list[str]]:
    found = [check_text("texts", i, text) for i, text in enumerate(check_list("strings", "texts", texts))]
    if not found:
        raise UserError("no texts: expected at least one")
    if validation is None:
        return divide(found)
    held = check_list("strings", "validation", validation)
    return found, [check_text("validation", i, text) for i, text in enumerate(held)]


def _pool(model: Model, snapshots: Snapshots, digest: str, texts: Sequence[str]) -> Pool:
    """The token ids of texts of a digest, by the tokenizer of a model."""
    pool = snapshots.pool(f"{digest}-{tokenizer_digest(model)}", lambda: make_pool(model, texts))
    check_ids(model, pool.tokens_M)
    return pool


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


@pinned
def _run(
    trainer: Trainer,
    snapshots: Snapshots,
    save_every: float,
    validate_every: int,
    progress: Callable[[Report], None] | None,
) -> State:
    """Make the updates that are left."""
    begun = trainer.begin()
    found = snapshots.newest(begun)
    state, last_save = begun if found is None else trainer.place(found), time.monotonic()
    snapshots.forget_rows_after(state.update)
    with signals_caught() as stop:

        def each(state: State, report: Report | None) -> bool:
            nonlocal last_save
            if report is not None:
                if not math.isfinite(report.nats):
                    told = f"the loss was {report.nats} at update {report.update}"
                    raise UserError(f"{told}: the training diverged; give --out another folder, and a smaller --lr")
                snapshots.log(_row(state, report))
                if progress is not None:
                    progress(report)
            if time.monotonic() - last_save >= save_every:
                snapshots.save(state)
                last_save = time.monotonic()
            return not stop.is_set()

        state = trainer.run(state, each=each, validate_every=validate_every)
        snapshots.save(state)
        if stop.is_set() and state.update < trainer.recipe.updates:
            told = f"stopped after {state.update} of {trainer.recipe.updates} updates"
            raise Interrupted(f"{told}; everything is saved in {snapshots.folder}, the same command goes on from there")
    return state


def _row(state: State, report: Report) -> dict[str, Any]:
    row: dict[str, Any] = {
        "update": report.update,
        "length": report.length,
        "corrections": report.corrections,
        "nats": report.nats,
        "accuracy": report.accuracy,
        "seconds": round(state.seconds, 2),
    }
    return row if report.validation is None else row | {"validation": _plain(report.validation[1])}


def _plain(figures: Figures) -> dict[str, list[float]]:
    """Figures for JSON, a number for each number of corrections."""
    named = zip(("nats", "accuracy", "exact"), figures, strict=True)
    return {name: [round(float(value), 6) for value in values] for name, values in named}


def _updates_for(hours: float, trainer: Trainer) -> int:
    """How many updates of a recipe take so long: of each kind one is timed, after one that compiles it."""
    recipe = dataclasses.replace(trainer.recipe, updates=_SAMPLE)
    kinds = [recipe.update(number, trainer.design) for number in range(_SAMPLE)]
    costs: dict[Any, float] = {}
    for kind in dict.fromkeys(kinds):
        state = trainer.begin()
        for _ in range(2):
            began = time.perf_counter()
            state, *_ = trainer.step(state, kind)
            costs[kind] = time.perf_counter() - began
    mean = sum(costs[kind] for kind in kinds) / len(kinds)
    return min(max(1, int(3600 * hours / mean)), STEPS.most)


def _trained(trainer: Trainer, state: State, data: str, texts: tuple[int, int], pool: Pool) -> dict[str, Any]:
    """What the model card says of a training."""
    return {
        "recipe": trainer.recipe.describe(),
        "updates": state.update,
        "data": data,
        "texts": texts[0],
        "held out": texts[1],
        "tokens": len(pool.tokens_M),
        "hours": round(state.seconds / 3600, 4),
        "device": f"{len(local_devices())} × {device_name()}",
        "figures": _plain(trainer.validate(state.weights)),
    }

"""What a step costs: milliseconds per text-step, share of the matrix-product ceiling, memory; ours and PyTorch's."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax.bench.models import import_torch, subject
from onestep_jax.bench.pytorch import Reference
from onestep_jax.bench.timing import Clock, interleaved, matmul, record, spread, within_context
from onestep_jax.devices.placement import Pmap
from onestep_jax.errors import UserError, one_line
from onestep_jax.fitting import make_problem, programs
from onestep_jax.fitting.memory import program_memory
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.fitting.sizing import check_attention, size_fit
from onestep_jax.fitting.slots import RUNNING, Frozen, Offer, idle
from onestep_jax.model.cost import step_flops
from onestep_jax.model.decoder import Model
from onestep_jax.model.fused_attention import KERNELS
from onestep_jax.model.stacked import by_layer, stack_layers
from onestep_jax.prototokens.schemes import OneStep

ENDLESS = 2**30  # steps
A_STEP = "ms a text-step"


class Stepper:
    """Slots of random texts on one device; a call makes a chunk of steps.

    Args:
      model: the frozen model.
      slots: texts at a time.
      length: tokens of each.
      chunk: steps of a call.
      preset: name of the optimiser's preset.
    """

    def __init__(self, model: Model, slots: int, length: int, chunk: int, preset: str = "fast"):
        chosen = PRESETS[preset]
        problem = make_problem(model, OneStep(), chosen, chosen.optimizer.build())
        placement = Pmap(jax.local_devices()[:1])
        self.frozen = Frozen(placement.place(model.params, model.config.kv_heads))
        draw = np.random.default_rng(0)
        tokens = draw.integers(model.config.vocab_size, size=(1, slots, 1, length)).astype(np.int32)
        ids = draw.integers(2**32, size=(1, slots, 1, 4), dtype=np.uint32)
        offer = Offer(
            offered=np.ones((1, slots), bool),
            budget=np.full((1, slots), ENDLESS, np.int32),
            tokens_GT=tokens,
            lengths_G=np.full((1, slots, 1), length, np.int32),
            ids_G4=ids,
        )
        empty = placement.spread(idle(problem, length, (1, slots)))
        self.state, _ = placement.map(programs.refill, problem)(self.frozen, empty, placement.spread(offer))
        lowered = placement.lower(programs.chunk, self.frozen, self.state, static=(problem, chunk), donate=1)
        self.advance = lowered.compile()

    def __call__(self) -> None:
        self.state, info = self.advance(self.frozen, self.state)
        info.loss.block_until_ready()

    def check(self) -> None:
        """Check that every slot is still running: one that ended did less work than is counted.

        Raises:
          UserError: if one has ended.
        """
        if not np.all(np.asarray(self.state.status) == RUNNING):
            raise UserError("a text was solved while steps were timed; give a greater --length or fewer --repeats")

    def memory(self) -> int:
        """Bytes on the device, by XLA's own account of the compiled program."""
        return program_memory(self.frozen, self.state, self.advance).total


def bench_step(
    source: str = "default",
    *,
    length: int = 32,
    slots: int | str = 8,
    chunk: int = 10,
    repeats: int = 7,
    dtype: str | None = None,
    torch: bool = True,
    compiled: bool = False,
    fused: bool = False,
    scan_layers: bool = False,
    limit: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time a step of ours with `slots` texts and with one, and a step of PyTorch with as many.

    Args:
      source: see `models.subject`.
      length: tokens of a text.
      slots: texts at a time, or "auto" for as many as a fit would take.
      chunk: steps of a call.
      repeats: timed calls of each contender.
      dtype: of the weights; by default float32 on a CPU, else bfloat16.
      torch: whether PyTorch takes part.
      compiled: whether `torch.compile` takes part.
      fused: whether steps with fused attention take part, with `slots` texts; the user is told of kernels that the
        device cannot run.
      scan_layers: whether steps over stacked layers take part, with `slots` texts; the others have separate layers.
      limit: seconds after which no further contender begins; compiling takes most of the time.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per contender, and ratios of medians.
    """
    if torch:
        import_torch()
    clock, model = Clock(limit), subject(source, dtype)
    # Separate layers, whatever the device's own layout: only one contender has a stack.
    model = dataclasses.replace(model, params=by_layer(model.config, model.params))
    dtype = str(model.dtype)
    within_context(model, [length], say)
    one_device = Pmap(jax.local_devices()[:1])
    slots, remat = size_fit(model, [np.zeros(length)], OneStep(), one_device, PRESETS["fast"], slots=slots)
    model = dataclasses.replace(model, remat=remat)
    make = functools.partial(_make, model, functools.cache(functools.partial(_reference, source, dtype)), length, chunk)
    calls = _begun(_wanted(slots, torch, compiled, fused, scan_layers), make, clock, say)
    if not any(one.way == "plain" for one in calls):
        raise UserError(f"{source}: the device has no memory for a step of one text of {length} tokens")
    say(f"{len(calls)} contenders, {repeats} rounds of {chunk} steps each")
    product, product_flops = matmul(model.dtype)
    seconds = interleaved({one.name: call for one, call in calls.items()} | {"matrix product": product}, repeats)
    ceiling, flops = product_flops / statistics.median(seconds["matrix product"]), step_flops(model.config, length)
    rows = []
    for one, call in calls.items():
        call.check()
        row = _row(one, seconds[one.name], chunk, flops, ceiling)
        rows.append({**row, "memory bytes": call.memory()})
    settings = {"model": source, "length": length, "slots": slots, "chunk": chunk, "repeats": repeats, "dtype": dtype}
    work = {"GFLOP of a text-step": flops / 1e9, "GFLOP/s of a matrix product": ceiling / 1e9}
    return record("step", settings, rows, ratios=_ratios(list(calls), seconds), work=work, seconds=seconds)


def _row(one: _Contender, seconds: list[float], chunk: int, flops: float, ceiling: float) -> dict[str, Any]:
    """Columns of a contender's times; `flops` of a text-step, `ceiling` in floating-point operations per second."""
    row: dict[str, Any] = {"contender": one.name, "texts": one.texts}
    row |= spread(A_STEP, seconds, 1e3 / (chunk * one.texts))
    speed = flops / (row[f"{A_STEP} median"] / 1e3)
    return {**row, "GFLOP/s": speed / 1e9, "share of the ceiling": speed / ceiling}


def _ratios(contenders: Sequence[_Contender], seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median time per text of each contender over that of ours with the most texts at a time."""
    a_text = {one.name: statistics.median(seconds[one.name]) / one.texts for one in contenders}
    own = [one.name for one in contenders if one.way == "plain"][-1]
    return {f"{name} over {own}": cost / a_text[own] for name, cost in a_text.items() if name != own}


_NAMES = {
    "plain": "onestep_jax",
    "scan": "onestep_jax, layers scanned",
    **{kernel: f"onestep_jax, {kernel} attention" for kernel in KERNELS},
    "eager": "PyTorch eager",
    "compiled": "PyTorch compiled",
}


class _Contender(NamedTuple):
    """Something that is timed: a way of `_NAMES`, with a number of texts at a time."""

    way: str
    texts: int

    @property
    def name(self) -> str:
        return f"{_NAMES[self.way]}, {self.texts} at a time"


def _wanted(slots: int, torch: bool, compiled: bool, fused: bool, scan_layers: bool) -> list[_Contender]:
    """The contenders in the order in which they begin: where time is short, the last ones are left out."""
    wanted = [_Contender("plain", slots)]
    if torch:
        wanted += [_Contender("eager", 1), _Contender("eager", slots)]
    if torch and compiled:
        wanted += [_Contender("compiled", slots)]
    if scan_layers:
        wanted += [_Contender("scan", slots)]
    if fused:
        wanted += [_Contender(kernel, slots) for kernel in KERNELS]
    wanted += [_Contender("plain", 1)]
    if torch and compiled:
        wanted += [_Contender("compiled", 1)]
    return list(dict.fromkeys(wanted))


class _Loop:
    """PyTorch's counterpart of `Stepper`."""

    def __init__(self, reference: Reference, texts: int, length: int, chunk: int):
        tokens = np.random.default_rng(0).integers(reference.vocabulary, size=(texts, length))
        self.reference, self.training, self.chunk = reference, reference.begin(tokens.tolist()), chunk

    def __call__(self) -> None:
        for _ in range(self.chunk):
            self.training.step()
        self.reference.wait()

    def check(self) -> None:
        """Nothing to check: every step is made, also for texts that are solved."""

    def memory(self) -> int | None:
        """Bytes on the device by PyTorch's allocator, or None on a CPU, where it does not count."""
        if self.reference.peak_bytes() is None:
            return None
        self()
        return self.reference.peak_bytes()


def _reference(source: str, dtype: str, way: str) -> Reference:
    return Reference(source, dtype, compiled=way == "compiled")


def _make(
    model: Model, reference: Callable[[str], Reference], length: int, chunk: int, one: _Contender
) -> Stepper | _Loop:
    """The call of a contender; `reference` gives PyTorch's model by way."""
    if one.way in ("eager", "compiled"):
        return _Loop(reference(one.way), one.texts, length, chunk)
    if one.way == "scan":
        stacked = stack_layers(model.config, model.params)
        return Stepper(dataclasses.replace(model, params=stacked), one.texts, length, chunk)
    model = dataclasses.replace(model, attention=one.way)
    check_attention(model.network, model.dtype, length, jax.local_devices()[0])
    return Stepper(model, one.texts, length, chunk)


def _begun(
    wanted: Sequence[_Contender],
    make: Callable[[_Contender], Stepper | _Loop],
    clock: Clock,
    say: Callable[[str], None],
) -> dict[_Contender, Stepper | _Loop]:
    """Contender → its call, made once, in the order of the record.

    The user is told of contenders that the device has no memory, no kernel or no time for.
    """
    calls: dict[_Contender, Stepper | _Loop] = {}
    for one in wanted:
        if calls and clock.leaves_out(one.name, say):
            continue
        try:
            call = make(one)
            call()
            calls[one] = call
        except (UserError, RuntimeError) as error:  # of JAX and of PyTorch
            if one.way == "plain" and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            say(f"{one.name}: left out ({one_line(error)})")
    ways = list(_NAMES)
    return {one: calls[one] for one in sorted(calls, key=lambda one: (ways.index(one.way), one.texts))}

"""What a step costs: milliseconds a text-step, share of the matrix-product ceiling, memory; beside PyTorch."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax.bench.models import import_torch, subject
from onestep_jax.bench.pytorch import Reference
from onestep_jax.bench.timing import Clock, interleaved, matmul, record, spread, within_context
from onestep_jax.devices.placement import Pmap
from onestep_jax.errors import UserError
from onestep_jax.fitting import slots as device
from onestep_jax.fitting.fitting import make_problem
from onestep_jax.fitting.memory import program_memory
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.fitting.sizing import check_attention, size_fit
from onestep_jax.fitting.slots import RUNNING
from onestep_jax.model.cost import step_flops
from onestep_jax.model.decoder import Model
from onestep_jax.model.fused_attention import KERNELS
from onestep_jax.prototokens.schemes import OneStep
from onestep_jax.store.storage import one_line

ENDLESS = 2**30  # steps
A_STEP = "ms a text-step"


class Stepper:
    """Slots of random texts on one device, which a call moves by a chunk of steps."""

    def __init__(self, model: Model, slots: int, length: int, chunk: int, preset: str = "fast"):
        chosen = PRESETS[preset]
        problem = make_problem(model, OneStep(), chosen, chosen.optimizer.build(), ENDLESS)
        placement = Pmap(jax.local_devices()[:1])
        self.params = placement.place(model.params, model.config.kv_heads)
        draw = np.random.default_rng(0)
        tokens = draw.integers(model.config.vocab_size, size=(1, slots, 1, length)).astype(np.int32)
        ids = draw.integers(2**32, size=(1, slots, 1, 4), dtype=np.uint32)
        offer = device.Offer(np.ones((1, slots), bool), tokens, np.full((1, slots, 1), length, np.int32), ids)
        idle = placement.spread(device.idle(problem, length, (1, slots)))
        self.state, _ = placement.map(device.refill, problem)(self.params, idle, placement.spread(offer))
        lowered = placement.lower(device.chunk, self.params, self.state, static=(problem, chunk), donate=1)
        self.advance = lowered.compile()

    def __call__(self) -> None:
        self.state, info = self.advance(self.params, self.state)
        info.loss.block_until_ready()

    def check(self) -> None:
        """No slot may have ended, or less was done than is counted."""
        if not np.all(np.asarray(self.state.status) == RUNNING):
            raise UserError("a text was solved while steps were timed; give a greater --length or fewer --repeats")

    def memory(self) -> int:
        """Bytes on the device, by XLA's account of the program that is called."""
        return program_memory(self.params, self.state, self.advance).total


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
    limit: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time a step of ours, with `slots` texts and with one, and of PyTorch at batch 1 and at the same batch.

    Args:
      source: see `models.subject`.
      length: tokens of a text.
      slots: texts at a time, or "auto" for as many as a fit would take.
      chunk: steps of a call; one call of each contender is a repeat.
      repeats: timed calls of each.
      dtype: of the weights; by default float32 on a CPU, else bfloat16.
      torch: whether PyTorch takes part.
      compiled: whether `torch.compile` takes part.
      fused: whether steps with fused attention take part, at `slots`; left out with a line where one does not go.
      limit: seconds after which no further contender begins; compiling takes most of the time.
      say: receives a line for the user.

    Returns:
      See `timing.record`; a row a contender, and ratios of medians.
    """
    if torch:
        import_torch()
    clock, model = Clock(limit), subject(source, dtype)
    dtype = str(model.dtype)
    within_context(model, [length], say)
    one_device = Pmap(jax.local_devices()[:1])
    slots, remat = size_fit(model, [np.zeros(length)], OneStep(), one_device, PRESETS["fast"], slots=slots)
    model = dataclasses.replace(model, remat=remat)
    make = functools.partial(_make, model, functools.cache(functools.partial(_reference, source, dtype)), length, chunk)
    calls = _begun(_wanted(slots, torch, compiled, fused), make, clock, say)
    contenders = sorted(calls, key=lambda one: (list(_NAMES).index(one.way), one.texts))
    if not any(one.way == "plain" for one in contenders):
        raise UserError(f"{source}: the device has no memory for a step of one text of {length} tokens")
    product, product_flops = matmul(model.dtype)
    say(f"{len(contenders)} contenders, {repeats} rounds of {chunk} steps each")
    seconds = interleaved({one.name: calls[one] for one in contenders} | {"matrix product": product}, repeats)
    ceiling = product_flops / statistics.median(seconds["matrix product"])
    flops = step_flops(model.config, length)
    rows = []
    for one in contenders:
        calls[one].check()
        row: dict[str, Any] = {"contender": one.name, "texts": one.texts}
        row |= spread(A_STEP, seconds[one.name], 1e3 / (chunk * one.texts))
        speed = flops / (row[f"{A_STEP} median"] / 1e3)
        row |= {"GFLOP/s": speed / 1e9, "share of the ceiling": speed / ceiling}
        rows.append(row | {"memory bytes": calls[one].memory()})
    a_text = {one.name: statistics.median(seconds[one.name]) / one.texts for one in contenders}
    own = [one.name for one in contenders if one.way == "plain"][-1]
    ratios = {f"{name} over {own}": cost / a_text[own] for name, cost in a_text.items() if name != own}
    settings = {"model": source, "length": length, "slots": slots, "chunk": chunk, "repeats": repeats, "dtype": dtype}
    work = {"GFLOP of a text-step": flops / 1e9, "GFLOP/s of a matrix product": ceiling / 1e9}
    return record("step", settings, rows, ratios=ratios, work=work, seconds=seconds)


_NAMES = {
    "plain": "onestep_jax",
    **{kernel: f"onestep_jax, {kernel} attention" for kernel in KERNELS},
    "eager": "PyTorch eager",
    "compiled": "PyTorch compiled",
}


class _Contender(NamedTuple):
    """One that is timed: a way of `_NAMES`, with so many texts at a time."""

    way: str
    texts: int

    @property
    def name(self) -> str:
        return f"{_NAMES[self.way]}, {self.texts} at a time"


def _wanted(slots: int, torch: bool, compiled: bool, fused: bool) -> list[_Contender]:
    """Who takes part, in the order in which they begin: where time is short, the last ones do without."""
    absent = {"eager": not torch, "compiled": not (torch and compiled)} | dict.fromkeys(KERNELS, not fused)
    order = [("plain", slots), ("eager", 1), ("eager", slots), ("compiled", slots)]
    order += [*((kernel, slots) for kernel in KERNELS), ("plain", 1), ("compiled", 1)]
    return list(dict.fromkeys(_Contender(*one) for one in order if not absent.get(one[0])))


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
        """Every step is made, whatever became of the texts."""

    def memory(self) -> int | None:
        """Bytes on the device by PyTorch's allocator, where it counts."""
        if self.reference.peak_bytes() is None:
            return None
        self()
        return self.reference.peak_bytes()


def _reference(source: str, dtype: str, way: str) -> Reference:
    return Reference(source, dtype, compiled=way == "compiled")


def _make(
    model: Model, reference: Callable[[str], Reference], length: int, chunk: int, one: _Contender
) -> Stepper | _Loop:
    if one.way in ("eager", "compiled"):
        return _Loop(reference(one.way), one.texts, length, chunk)
    model = dataclasses.replace(model, attention=one.way)
    check_attention(model.network, model.dtype, length, jax.local_devices()[0])
    return Stepper(model, one.texts, length, chunk)


def _begun(
    wanted: Sequence[_Contender],
    make: Callable[[_Contender], Stepper | _Loop],
    clock: Clock,
    say: Callable[[str], None],
) -> dict[_Contender, Stepper | _Loop]:
    """Their calls, each made once; a line for the user of those that the device has no memory, kernel or time for."""
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
    return calls

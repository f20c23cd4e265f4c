"""What a step costs: milliseconds a text-step, share of the matrix-product ceiling, memory; beside PyTorch."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from onestep_jax import slots as device
from onestep_jax.bench.measuring import interleaved, matmul, record, spread, within_context
from onestep_jax.bench.reference import Reference, Training
from onestep_jax.bench.subjects import subject
from onestep_jax.config import UserError
from onestep_jax.files import one_line
from onestep_jax.fitting import make_problem
from onestep_jax.footprint import fit_memory, step_flops
from onestep_jax.model import Model, Network
from onestep_jax.optimizers import PRESETS
from onestep_jax.placement import Pmap
from onestep_jax.schemes import OneStep
from onestep_jax.sizing import check_attention, size_fit
from onestep_jax.slots import RUNNING

ENDLESS = 2**30  # steps
A_STEP = "ms a text-step"


class Stepper:
    """Slots of random texts on one device, which a call moves by a chunk of steps."""

    def __init__(self, model: Model, slots: int, length: int, chunk: int, preset: str = "fast"):
        chosen = PRESETS[preset]
        problem = make_problem(model, OneStep(), chosen, chosen.optimizer.build(), ENDLESS)
        placement = Pmap(jax.local_devices()[:1])
        self.params = placement.place(model.network, model.params)
        self.advance = placement.map(device.chunk, problem, chunk, donate=1)
        draw = np.random.default_rng(0)
        tokens = draw.integers(model.config.vocab_size, size=(1, slots, 1, length)).astype(np.int32)
        ids = draw.integers(2**32, size=(1, slots, 1, 4), dtype=np.uint32)
        offer = device.Offer(np.ones((1, slots), bool), tokens, np.full((1, slots, 1), length, np.int32), ids)
        idle = placement.spread(device.idle(problem, length, (1, slots)))
        self.state, _ = placement.map(device.refill, problem)(self.params, idle, placement.spread(offer))

    def __call__(self) -> None:
        self.state, info = self.advance(self.params, self.state)
        info.loss.block_until_ready()

    def check(self) -> None:
        """No slot may have ended, or less was done than is counted."""
        if not np.all(np.asarray(self.state.status) == RUNNING):
            raise UserError("a text was solved while steps were timed; give a greater --length or fewer --repeats")


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
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time a step of ours, with `slots` texts and with one, and of PyTorch at batch 1 and at the same batch.

    Args:
      source: see `subjects.subject`.
      length: tokens of a text.
      slots: texts at a time, or "auto" for as many as a fit would take.
      chunk: steps of a call; one call of each contender is a repeat.
      repeats: timed calls of each.
      dtype: of the weights; by default float32 on a CPU, else bfloat16.
      torch: whether PyTorch takes part.
      compiled: whether `torch.compile` takes part.
      fused: whether a step with cuDNN's attention takes part, at `slots`; left out with a line where it does not go.
      say: receives a line for the user.

    Returns:
      See `measuring.record`; a row a contender, and ratios of medians.
    """
    model = subject(source, dtype)
    dtype = str(model.dtype)
    within_context(model, [length], say)
    one_device = Pmap(jax.local_devices()[:1])
    slots, remat = size_fit(model, [np.zeros(length)], OneStep(), one_device, PRESETS["fast"], slots=slots)
    model = dataclasses.replace(model, remat=remat)
    ours = [_of_ours(model, n, length, chunk) for n in sorted({1, slots})]
    if fused:
        ours += _with_fused_attention(model, slots, length, chunk, say)
    ways = ["eager"] * torch + ["compiled"] * (torch and compiled)
    theirs = [one for way in ways for one in _of_pytorch(source, dtype, way, slots, length, chunk)]
    contenders = []
    for one in (*ours, *theirs):
        if _fits(one.call):
            contenders.append(one)
        else:
            say(f"{one.name}: left out, the device has no memory for it")
    if not any(one.plain for one in contenders):
        raise UserError(f"{source}: the device has no memory for a step of one text of {length} tokens")
    product, product_flops = matmul(model.dtype)
    say(f"{len(contenders)} contenders, {repeats} rounds of {chunk} steps each")
    seconds = interleaved({one.name: one.call for one in contenders} | {"matrix product": product}, repeats)
    for one in contenders:
        if isinstance(one.call, Stepper):
            one.call.check()
    ceiling = product_flops / statistics.median(seconds["matrix product"])
    flops = step_flops(model.config, length)
    rows = []
    for one in contenders:
        row: dict[str, Any] = {"contender": one.name, "texts": one.texts}
        row |= spread(A_STEP, seconds[one.name], 1e3 / (chunk * one.texts))
        speed = flops / (row[f"{A_STEP} median"] / 1e3)
        row |= {"GFLOP/s": speed / 1e9, "share of the ceiling": speed / ceiling}
        rows.append(row | {"memory bytes": _memory(one, model.dtype, length)})
    a_text = {one.name: statistics.median(seconds[one.name]) / one.texts for one in contenders}
    own = [one.name for one in contenders if one.plain][-1]
    ratios = {f"{name} over {own}": cost / a_text[own] for name, cost in a_text.items() if name != own}
    settings = {"model": source, "length": length, "slots": slots, "chunk": chunk, "repeats": repeats, "dtype": dtype}
    work = {"GFLOP of a text-step": flops / 1e9, "GFLOP/s of a matrix product": ceiling / 1e9}
    return record("step", settings, rows, ratios=ratios, work=work, seconds=seconds)


class _Contender(NamedTuple):
    """One that is timed: `call` makes a chunk of steps of so many texts."""

    name: str
    texts: int
    call: Callable[[], Any]
    network: Network | None = None
    reference: Reference | None = None

    @property
    def plain(self) -> bool:
        """Whether it is a step of ours with the default attention."""
        return self.network is not None and self.network.attention == "plain"


def _of_ours(model: Model, slots: int, length: int, chunk: int) -> _Contender:
    way = "" if model.attention == "plain" else f", {model.attention} attention"
    name = f"onestep_jax{way}, {slots} at a time"
    return _Contender(name, slots, Stepper(model, slots, length, chunk), network=model.network)


def _with_fused_attention(
    model: Model, slots: int, length: int, chunk: int, say: Callable[[str], None]
) -> list[_Contender]:
    """A step with cuDNN's attention; none, and a line for the user, where that refuses the model or the device."""
    model = dataclasses.replace(model, attention="cudnn")
    try:
        check_attention(model.network, model.dtype, length)
        contender = _of_ours(model, slots, length, chunk)
        contender.call()
    except (UserError, RuntimeError) as error:
        say(f"step with cuDNN's attention: left out ({one_line(error)})")
        return []
    return [contender]


def _of_pytorch(source: str, dtype: str, way: str, slots: int, length: int, chunk: int) -> Iterator[_Contender]:
    """PyTorch at batch 1 and at `slots`, over one copy of the weights."""
    reference = Reference(source, dtype, compiled=way == "compiled")
    for count in sorted({1, slots}):
        tokens = np.random.default_rng(0).integers(reference.vocabulary, size=(count, length))
        call = functools.partial(_steps, reference, reference.begin(tokens.tolist()), chunk)
        yield _Contender(f"PyTorch {way}, {count} at a time", count, call, reference=reference)


def _steps(reference: Reference, training: Training, count: int) -> None:
    for _ in range(count):
        training.step()
    reference.wait()


def _fits(call: Callable[[], Any]) -> bool:
    """Call once; whether the memory of the device was enough."""
    try:
        call()
    except RuntimeError as error:  # of JAX and of PyTorch
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
            raise
        return False
    return True


def _memory(one: _Contender, dtype: Any, length: int) -> int | None:
    """Bytes on the device: ours by XLA's account of the compiled step, PyTorch's by its allocator, where it counts."""
    if one.network is not None:
        return fit_memory(one.network, dtype, slots=one.texts, length=length, preset=PRESETS["fast"]).total
    assert one.reference is not None
    if one.reference.peak_bytes() is None:
        return None
    one.call()
    return one.reference.peak_bytes()

"""What a TPU pod or a GPU machine should do, by calculation: texts an hour, what fits, tails, pre-emption.

    python experiments/studies/scaling.py
    python experiments/studies/scaling.py --record runs/accelerator/step-1b-256.json --evaluations 900

Nothing here is measured on these machines. Operations of a step are `cost.step_flops`; speed and memory of a chip
are the vendors' (`CHIPS`); the share of that speed which a step reaches is assumed, 20, 35 and 50 %, unless a record of
`onestep bench step` on the same chip, model and length says it. Evaluations a text are those of
`results/presets/judge/presets.csv`, measured on SmolLM2-135M at its longest length there, and the whole budget of
`fast`: what a larger model needs at N = 256 or 512 is not known and lies somewhere below the budget.
docs/scaling.md shows what this prints; a test compares them.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import math
import random
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from onestep_jax import PRESETS, OneStep
from onestep_jax.bench.shapes import PREFIX, SHAPES
from onestep_jax.fitting import slots
from onestep_jax.fitting.sizing import MEMORY_SHARE, WEIGHTS_SHARE
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.cost import parameter_counts, step_flops
from onestep_jax.model.decoder import Network
from onestep_jax.model.families import read_config
from onestep_jax.model.token_losses import LOGITS_BYTES

SHARES = (0.2, 0.35, 0.5)  # of the published peak
TOKENS = 2**16  # at a time of a device, at most; a fit measures how many keep it busy
JUDGED = Path(__file__).parents[1] / "results" / "presets" / "judge" / "presets.csv"


class Chip(NamedTuple):
    """A device, by its vendor.

    Attributes:
      flops: bfloat16 operations a second, dense.
      memory: bytes.
      given: share of the memory that XLA takes by default.
      bandwidth: of the memory, bytes a second.
      link: bytes a second to a neighbour, one way.
      kind: how JAX's name of the device begins.
    """

    flops: float
    memory: float
    given: float
    bandwidth: float
    link: float
    kind: str


# v5e: https://docs.cloud.google.com/tpu/docs/v5e (197 TFLOPs, 16 GB, 819 GBps, 400 GBps both ways over four links).
# H200: https://www.nvidia.com/en-us/data-center/h200/, H100 SXM: https://www.nvidia.com/en-us/data-center/h100/ (1,979
# TFLOPS with sparsity, half of it dense; 141 GB at 4.8 TB/s, 80 GB at 3.35 TB/s; NVLink 900 GB/s both ways).
# XLA takes 75 % of a GPU's memory: https://docs.jax.dev/en/latest/gpu_memory_allocation.html.
CHIPS = {
    "v5e": Chip(197e12, 16e9, 1.0, 819e9, 50e9, "TPU v5 lite"),
    "H200": Chip(989.5e12, 141e9, 0.75, 4.8e12, 450e9, "NVIDIA H200"),
    "H100": Chip(989.5e12, 80e9, 0.75, 3.35e12, 450e9, "NVIDIA H100"),
}


class System(NamedTuple):
    """Chips that work on one run; `local` of them belong to one process, and weights are split over these only."""

    name: str
    chip: str
    chips: int
    local: int


SYSTEMS = (System("v5e-256", "v5e", 256, 8), System("8 × H200", "H200", 8, 8), System("1 × H100", "H100", 1, 1))
CASES = (("llama-3.2-1b", 256), ("llama-3.1-8b", 512))


class Need(NamedTuple):
    """What one text of one model asks for, by shapes alone.

    Attributes:
      config: of the model.
      length: tokens.
      weights: bytes of the model, in bfloat16.
      flops: operations of a step of one text.
      state: bytes of a slot: vectors, the optimiser's pairs, bookkeeping.
      copied, divided: bytes that a step of one text keeps for its backward pass, roughly: what every device of a copy
        of the weights holds, and what they hold together.
    """

    config: ModelConfig
    length: int
    weights: int
    flops: int
    state: int
    copied: int
    divided: int


def need(shape: str, length: int) -> Need:
    """Of a published shape, see `bench.shapes`."""
    _, config = read_config(SHAPES[shape])
    weights = 2 * parameter_counts(config)["total"]
    return Need(config, length, weights, step_flops(config, length), state_bytes(config, length), *kept(config, length))


def state_bytes(config: ModelConfig, length: int) -> int:
    """Bytes of one slot under the preset `fast`."""
    fast = PRESETS["fast"]
    problem = slots.FitProblem(Network(config), OneStep(), fast.optimizer.build(), 1.0, fast.temperature)
    leaves = jax.tree.leaves(slots.shapes(problem, length))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def kept(config: ModelConfig, length: int, size: int = 2) -> tuple[int, int]:
    """Bytes that the backward pass of one text needs from the forward pass, with activations of `size` bytes.

    Copied to every device, of a token and layer: the residual before both norms, also in float32. Divided: queries,
    keys and values before and after turning, the mix of the heads, three times the feed-forward width; of a pair of
    positions a weight, also in float32; the logits of a chunk of positions, three times. On the packaged model in
    float32 this is 0.98 of XLA's own account on a CPU at 64 tokens and 0.82 of it at 256.
    """
    c, rows = config, length * config.layers
    heads = c.head_dim * (3 * c.heads + 3 * c.kv_heads)
    pairs = c.heads * length * (size + 4)
    logits = 3 * min(LOGITS_BYTES, 4 * length * c.vocab_size)
    return rows * 2 * c.width * (size + 4), rows * (size * (heads + 3 * c.ffn) + pairs) + logits


class Plan(NamedTuple):
    """How a model lies on a system.

    Attributes:
      axis: devices over which one copy of the weights is split.
      copies: of the weights, over all chips.
      slots: texts at a time of one copy.
      step: seconds of one text-step of one copy, at the whole of the published speed, without what `talk` costs.
      talk: seconds that the devices of one copy spend a text-step on summing over each other, if nothing hides it.
    """

    axis: int
    copies: int
    slots: int
    step: float
    talk: float


def plan(needed: Need, system: System, axis: int | None = None) -> Plan:
    """As `onestep fit` would choose it, or with a given model axis.

    Raises:
      ValueError: if the chips of one process do not hold the weights, or cannot be split so.
    """
    chip = CHIPS[system.chip]
    limit = chip.memory * chip.given
    axes = [count for count in range(1, system.local + 1) if system.local % count == 0]
    fitting = [count for count in axes if needed.weights / count <= WEIGHTS_SHARE * limit]
    if axis is not None and axis not in axes:
        raise ValueError(f"model axis {axis}: a process of {system.name} has {system.local} chips")
    if not fitting and axis is None:
        raise ValueError(f"{needed.weights / 1e9:.1f} GB of weights do not fit into {system.local} × {system.chip}")
    axis = axis or fitting[0]
    room = MEMORY_SHARE * limit - needed.weights / axis
    most = max(0, int(room // (needed.state + needed.copied + needed.divided / axis)))
    count = min(most, TOKENS // needed.length)
    count = 1 << (count.bit_length() - 1) if count else 0
    # Four sums a layer (two forward, two backward) of (length, width) in bfloat16, around a ring.
    sums = 4 * needed.config.layers * needed.length * needed.config.width * 2
    talk = 2 * (axis - 1) / axis * sums / chip.link
    return Plan(axis, system.chips // axis, count, needed.flops / (axis * chip.flops), talk)


def text_seconds(planned: Plan, share: float, evaluations: float, overhead: float) -> float:
    """Seconds of one copy of the weights that a text costs; `overhead` is the host's share of the step time."""
    return evaluations * (planned.step / share + planned.talk) * (1 + overhead)


def texts_an_hour(planned: Plan, share: float, evaluations: float, overhead: float) -> float:
    """Of all copies, while no slot idles."""
    return planned.copies * 3600 / text_seconds(planned, share, evaluations, overhead)


def tail(evaluations: Sequence[float], texts: int, places: int, seed: int = 0) -> float:
    """Share of a sweep's slot time that is idle, because nothing waits while the last texts are still under way.

    Texts whose evaluations are drawn from `evaluations` go to whichever of the `places` slots is free first. No slot is
    ever given up, so this is the worst: the engine halves its slots, and a step of half as many takes less time.
    """
    drawn = random.Random(seed).choices(list(evaluations), k=texts)
    busy = [0.0] * min(places, texts)
    for cost in drawn:
        heapq.heapreplace(busy, busy[0] + cost)
    return 1 - sum(drawn) / (len(busy) * max(busy))


def preemption(hours: float, save_every: float, restart: float) -> tuple[float, float]:
    """Share of the time lost to being stopped every so many hours: with the notice that a save needs, and without.

    Args:
      hours: between two stops.
      save_every: seconds; without notice half of it is lost on average.
      restart: seconds from the new start to the first step: weights, compiled programs, state.
    """
    return min(1.0, restart / (3600 * hours)), min(1.0, (restart + save_every / 2) / (3600 * hours))


def measured_share(record: dict[str, Any]) -> tuple[str, str, int, float]:
    """Chip, shape, length and share of the chip's published speed, from a record of `onestep bench step`.

    Raises:
      ValueError: if it is no such record, or not of one of these chips and shapes.
    """
    if record.get("benchmark") != "step":
        raise ValueError(f"benchmark {record.get('benchmark')!r}: expected a record of onestep bench step")
    kind, settings = record["machine"]["device"], record["settings"]
    chip = next((name for name, chip in CHIPS.items() if kind.startswith(chip.kind)), None)
    shape = settings["model"].removeprefix(PREFIX)
    if chip is None:
        raise ValueError(f"device {kind!r}: its speed says nothing about {', '.join(CHIPS)}")
    if shape not in SHAPES:
        raise ValueError(f"model {settings['model']!r}: expected one of {', '.join(PREFIX + name for name in SHAPES)}")
    ours = [row for row in record["rows"] if row["contender"].startswith("onestep_jax")]
    return chip, shape, settings["length"], 1e9 * max(row["GFLOP/s"] for row in ours) / CHIPS[chip].flops


def judged() -> list[int]:
    """Evaluations of each text of the study behind `fast`, at its longest length, on SmolLM2-135M."""
    with JUDGED.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["way"]) == ("smollm2-135m", "fast")]
    longest = max(int(row["length"]) for row in rows)
    return [int(row["steps"]) for row in rows if int(row["length"]) == longest]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def amount(number: float) -> str:
    """Two or three figures, which is more than the assumptions bear."""
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 10 else f"{number:.2g}"


def report(args: argparse.Namespace) -> str:
    """All tables and what they assume."""
    found = judged()
    evaluations = args.evaluations or [round(sum(found) / len(found)), PRESETS["fast"].steps]
    known: dict[tuple[str, str, int], float] = {}
    for path in args.record:
        chip, shape, length, share = measured_share(json.loads(path.read_text()))
        known[chip, shape, length] = share
    fits, speeds, sweeps = [], [], []
    for shape, length in CASES:
        needed = need(shape, length)
        for system in SYSTEMS:
            name = [system.name, f"{shape}, N = {length}"]
            planned = plan(needed, system, args.model_axis)
            places = planned.copies * planned.slots
            a_copy = f"{planned.axis} chip" + "s" * (planned.axis > 1)
            memory = [f"{needed.weights / 1e9:.1f}", a_copy, str(planned.slots), f"{planned.slots * length:,}"]
            state = places * needed.state
            fits.append([*name, *memory, f"{state / 1e9:.1f}", f"{state / 1e6 / args.save_every:.0f}"])
            if not planned.slots:
                continue
            sure = known.get((system.chip, shape, length))
            shares = SHARES if sure is None else (sure,)
            said = " / ".join(f"{100 * share:.0f}" for share in shares) + " %" + " measured" * (sure is not None)
            step = " / ".join(f"{1e3 * text_seconds(planned, share, 1, args.overhead):.1f}" for share in shares)
            hourly = [[texts_an_hour(planned, share, n, args.overhead) for share in shares] for n in evaluations]
            speeds.append([*name, said, step, *(" / ".join(map(amount, speed)) for speed in hourly)])
            middle = len(shares) // 2
            idle = tail(found, args.texts, places)
            lost, _ = preemption(args.hours, args.save_every, args.restart)
            times = [args.restart / 3600 + args.texts / speed[middle] / (1 - idle) / (1 - lost) for speed in hourly]
            sweeps.append([*name, f"{shares[middle]:.0%}", f"{places:,}", f"{idle:.0%}", *map(amount, times)])
    with_notice, without = preemption(args.hours, args.save_every, args.restart)
    counts = [f"{count:,}" for count in evaluations]
    head = ["system", "model"]
    memory_head = ["weights, GB", "a copy on", "texts at a time of a copy", "tokens at a time"]
    ridges = ", ".join(f"{chip.flops / chip.bandwidth:.0f} ({name})" for name, chip in CHIPS.items())
    fits_note = (
        f"Weights are in bfloat16. They are split where they take more than {WEIGHTS_SHARE:.0%} of what XLA may use. "
        f"Activations are an estimate. From {ridges} tokens at a time on, a step is bound by arithmetic and not by "
        "reading the weights. The last two columns are the state of all slots, and the speed at which a disk must take "
        f"it every {args.save_every:g} s."
    )
    speeds_note = (
        f"A text-step is one step of one text on one copy of the weights. It includes {args.overhead:.0%} for the "
        "host. Where a copy lies on several chips, it also includes the sums over them, as if nothing else ran "
        "meanwhile."
    )
    sweeps_note = (
        f"Each start, the first one and one after each stop, takes {args.restart:g} s until its first step: "
        f"{with_notice:.1%} of the time. A stop without notice loses half of --save-every as well: {without:.1%} in "
        "all. Time without a machine is not counted. Texts differ as much as in the study. The engine gives up idle "
        "slots in the tail; this is left out."
    )
    parts = [
        ("What fits", [*head, *memory_head, "state in flight, GB", "saved, MB/s"], fits, fits_note),
        (
            "Texts an hour, no slot idle",
            [*head, "share of the peak", "ms a text-step", *(f"{count} evaluations" for count in counts)],
            speeds,
            speeds_note,
        ),
        (
            f"A sweep of {args.texts:,} texts, stopped with notice every {args.hours:g} h",
            [*head, "share", "slots", "idle in the tail", *(f"hours at {count}" for count in counts)],
            sweeps,
            sweeps_note,
        ),
    ]
    return "\n\n".join(
        f"**{title}**\n\n{table(names, rows)}\n\n{textwrap.fill(note, 120)}" for title, names, rows, note in parts
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--record", type=Path, nargs="*", default=[], metavar="JSON", help="of onestep bench step")
    parser.add_argument("--evaluations", type=int, nargs="*", metavar="E", help="a text (default: measured; budget)")
    parser.add_argument("--model-axis", type=int, metavar="K", help="chips of a copy (default: as few as hold it)")
    parser.add_argument("--overhead", type=float, default=0.02, help="host's share of a step (default: 0.02)")
    parser.add_argument("--texts", type=int, default=10_000, help="of the sweep (default: 10000)")
    parser.add_argument("--hours", type=float, default=6.0, help="between two pre-emptions (default: 6)")
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds (default: 60)")
    parser.add_argument("--restart", type=float, default=300.0, help="seconds to the first step (default: 300)")
    args = parser.parse_args()
    try:
        print(report(args))
    except ValueError as error:
        print(f"scaling.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

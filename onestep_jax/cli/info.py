"""`onestep info`: a model, and what a fit on it costs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from onestep_jax.cli.options import add_number, add_revision_and_dtype, load
from onestep_jax.cli.terminal import console
from onestep_jax.errors import SIZE, UserError, check_known
from onestep_jax.fitting.memory import fit_memory
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.model.checkpoint import DTYPES, default_dtype
from onestep_jax.model.config import ModelConfig, Rope, stated
from onestep_jax.model.cost import parameter_counts, step_flops
from onestep_jax.model.decoder import Network, input_scale
from onestep_jax.model.untrained import architecture
from onestep_jax.store.records import json_text

SUMMARY = "Describe a model: architecture, sizes, memory and work of a fit."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="default", metavar="MODEL", help="default, a folder, a GGUF file or a hub id"
    )
    add_revision_and_dtype(parser)
    add_number(parser, "--slots", SIZE, default=8, metavar="S", help="texts at a time on one device (default: 8)")
    add_number(parser, "--length", SIZE, default=32, metavar="N", help="tokens of a text (default: 32)")
    parser.add_argument("--preset", default="fast", metavar="NAME", help="optimiser of the fit (default: fast)")
    parser.add_argument("--weights", action="store_true", help="read the weights too: fingerprint, scale of the inputs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "Only config.json (fetched, for a hub id) or the header of a GGUF file is read unless --weights is given. "
        "Memory is XLA's own account of the step, compiled for this machine's device and not run; on a CPU, bfloat16 "
        "includes float32 copies of the weights that accelerators do not make."
    )


def run(args: argparse.Namespace) -> int:
    dtype = args.dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    check_known("preset", [args.preset], PRESETS)
    config = architecture(args.model, args.revision)
    if args.length > config.context:
        raise UserError(f"--length {args.length} is beyond the model's context of {config.context} positions")
    facts = _described(args, config, dtype)
    if args.weights:
        model = load(args.model, dtype, args.revision, tokenizer=False)
        facts |= {"fingerprint": model.fingerprint, "input_scale": input_scale(model)}
    if args.json:
        print(json_text(facts))
    else:
        _print(facts)
    return 0


def _described(args: argparse.Namespace, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """What is known of a model, and of a fit on it, without its weights."""
    counts = parameter_counts(config)
    memory = fit_memory(
        Network(config), DTYPES[dtype], slots=args.slots, length=args.length, preset=PRESETS[args.preset]
    )
    return {
        "model": args.model,
        "architecture": _architecture(config),
        "context": config.context,
        "input_width": config.embed_width or config.width,
        "parameters": counts,
        "bytes": {name: jnp.dtype(kind).itemsize * counts["total"] for name, kind in DTYPES.items()},
        "fit": {
            "slots": args.slots,
            "length": args.length,
            "dtype": dtype,
            "preset": args.preset,
            "device": jax.devices()[0].device_kind,
        },
        "fit_memory_bytes": {**memory._asdict(), "total": memory.total},
        "flops_per_text_step": step_flops(config, args.length),
    }


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """The fields of a model, and of its layers, that are not the usual ones."""
    layers = [stated(layer) | {"rope": layer.rope and _rope(layer.rope)} for layer in config.pattern]
    return stated(config) | {"pattern": layers}


def _rope(rope: Rope) -> dict[str, Any]:
    return {"theta": rope.theta} | stated(rope)


def _print(facts: dict[str, Any]) -> None:
    """A table of the facts, each number with what a reader needs to know of it."""
    from rich.table import Table

    fit, memory, counts = facts["fit"], facts["fit_memory_bytes"], facts["parameters"]
    table = Table(show_header=False, title=f"{facts['model']}: {facts['architecture']['family']}", title_justify="left")
    for name, value in facts["architecture"].items():
        if name not in ("family", "pattern"):
            table.add_row(name, str(value))
    table.add_row("input vector", f"{facts['input_width']} wide")
    pattern = [", ".join(_flat(layer)) for layer in facts["architecture"]["pattern"]]
    for layer in dict.fromkeys(pattern):
        count = f"{pattern.count(layer)} of {len(pattern)} layers" if len(pattern) > 1 else "every layer"
        table.add_row(count, layer)
    table.add_section()
    table.add_row("parameters", f"{counts['total']:,}; touched by a step {counts['touched']:,}")
    table.add_row("size", ", ".join(f"{_size(count)} in {name}" for name, count in facts["bytes"].items()))
    parts = " + ".join(f"{name} {_size(memory[name])}" for name in ("weights", "state", "working"))
    where = f"{fit['slots']} slots of {fit['length']} tokens in {fit['dtype']} on one {fit['device']}"
    table.add_row("memory of a fit", f"{_size(memory['total'])} ({parts}) for {where}")
    flops = f"{facts['flops_per_text_step'] / 1e9:,.3g} GFLOP at {fit['length']} tokens"
    table.add_row("work of a text-step", flops)
    for name in ("fingerprint", "input_scale"):
        if name in facts:
            table.add_row(name.replace("_", " "), str(facts[name]))
    console().print(table)


def _flat(layer: dict[str, Any]) -> Iterator[str]:
    """The facts of a layer that are not the usual ones."""
    for name, value in layer.items():
        if name == "rope":
            rope = None if value is None else " ".join(f"{key} {number}" for key, number in value.items())
            yield "no RoPE" if rope is None else f"RoPE {rope}".strip()
        else:
            yield f"{name} {value}"


def _size(count: int) -> str:
    """Bytes for people."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.0f} {name}" if count >= 100 * unit else f"{count / unit:,.3g} {name}"
    return f"{count} bytes"

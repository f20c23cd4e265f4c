"""What each command does with its parsed options: call the library, print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from onestep_jax.cli import terminal as looks
from onestep_jax.cli.options import REMAT, given_settings, join, optimizer_of, placement_of, scheme_of
from onestep_jax.errors import UserError, check_known
from onestep_jax.model.config import stated


def _load(source: str, dtype: str | None, revision: str | None, **options: Any) -> Any:
    """A model, trained or untrained ("untrained:KIND:SEED:SOURCE"), with a bar while it is read."""
    from onestep_jax.devices.compile_cache import use_cache
    from onestep_jax.model.checkpoint import load_model
    from onestep_jax.model.untrained import PREFIX, load_untrained

    use_cache()
    load = load_untrained if source.startswith(PREFIX) else load_model
    with looks.loading_bar() as progress:
        return load(source, dtype=dtype, revision=revision, progress=progress, **options)


def demo(args: argparse.Namespace) -> int:
    from onestep_jax.cli.demo import run_demo

    run = args.run or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    with looks.fitting_bar() as progress:
        demo = run_demo(run, progress)
    if args.json:
        rows = [
            {
                "text_id": text.text_id,
                "text": text.expected,
                "reconstruction": text.text,
                "accuracy": text.accuracy,
                "steps": result.steps,
            }
            for text, result in zip(demo.decoded, demo.results, strict=True)
        ]
        print(json.dumps({"texts": rows, "seconds": demo.seconds}))
        return 0
    from rich.table import Table

    table = Table(
        "kind", "original (32 tokens)", "one forward pass of [e, m, …, m]", "accuracy", "steps", show_lines=True
    )
    for kind, text, result in zip(demo.kinds, demo.decoded, demo.results, strict=True):
        table.add_row(kind, text.expected, text.text, f"{text.accuracy:.0%}", str(result.steps))
    console = looks.console()
    console.print(table)
    exact = sum(text.accuracy == 1 for text in demo.decoded)
    console.print(f"{exact} of {len(demo.decoded)} texts exact in {demo.seconds:.0f} s.")
    console.print(f"Run directory {demo.run}, figure {demo.figure}")
    return 0


def fit(args: argparse.Namespace) -> int:
    from onestep_jax.fitting.optimizers import PRESETS

    join(args)
    check_known("preset", [args.preset], PRESETS)
    optimizer = optimizer_of(args, PRESETS[args.preset].optimizer)
    optimizer.build()
    slots = int(args.slots) if args.slots.lstrip("-").isdigit() else args.slots
    check_known("way of --remat", [args.remat], REMAT)
    from onestep_jax.fitting import fitting
    from onestep_jax.texts.corpora import is_named, load_tokens
    from onestep_jax.texts.files import read_source

    named, texts = is_named(args.texts), []
    if named and args.limit is None:
        raise UserError(f"--texts {args.texts} has no end: say how many texts with --limit")
    if not named:
        texts = read_source(args.texts, split=args.split, column=args.column, limit=args.limit)
    rows = (args.limit if named else len(texts)) * args.copies
    scheme = scheme_of(args, rows)
    placement = placement_of(args, scheme, rows)
    model = _load(args.model, args.dtype, args.revision, mesh=placement.mesh)
    if named:
        found = load_tokens(model, args.texts, count=args.limit, length=args.length, seed=args.seed, column=args.column)
        texts = [ids.tolist() for ids in found]
    tokens = fitting.prepare(model, texts, args.length, scheme)
    short = sum(len(ids) < args.length for ids in tokens)
    if short:
        print(
            f"onestep: warning: {short} of {len(tokens)} texts have fewer than {args.length} tokens; kept whole",
            file=sys.stderr,
        )
    names = "length run preset steps seed seeds attention chunk save_every copies record".split()
    options: dict[str, Any] = {"optimizer": optimizer, "slots": slots, "remat": REMAT[args.remat]}
    options |= {"scheme": scheme, "placement": placement}
    options |= {key: getattr(args, key) for key in names}
    began = time.perf_counter()
    with looks.fitting_bar() as progress:
        results = fitting.fit(model, [ids.tolist() for ids in tokens], progress=progress, **options)
    seconds = time.perf_counter() - began
    summary = {
        "run": str(args.run),
        "texts": len(results),
        "solved": results.solved,
        "accuracy": float(results.accuracy.mean()),
        "steps": float(results.steps.mean()),
        "seconds": seconds,
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{len(results)} texts: {results.solved} solved, mean accuracy {summary['accuracy']:.4f}, "
            f"mean steps {summary['steps']:.0f}, {seconds:.0f} s; run directory {args.run}"
        )
    return 0


def decode(args: argparse.Namespace) -> int:
    from onestep_jax.store.reading import read_config, read_results

    settings, identity = read_config(args.run)["settings"], read_config(args.run)["identity"]
    results = read_results(args.run)
    from onestep_jax.prototokens import reconstruction as decoding

    model = _load(args.model or settings["model"], args.dtype or identity["dtype"], args.revision)
    how = decoding.regenerate if args.generate else decoding.decode
    decoded = how(model, results, batch=args.batch)

    def name(token: int) -> Any:
        return token if model.tokenizer is None else model.tokenizer.decode([token])

    if args.json:
        rows = [
            dataclasses.asdict(text) | {"tokens": text.tokens.tolist(), "index": r.index}
            for text, r in zip(decoded, results, strict=True)
        ]
        print(json.dumps({"texts": rows}))
        return 0
    for text, result in zip(decoded, results, strict=True):
        print(f"[{result.index}] {text.text_id}  accuracy {text.accuracy:.4f}")
        print(text.text if text.text is not None else text.tokens.tolist())
        for wrong in text.wrong:
            tokens = f"expected {name(wrong.expected)!r} ({wrong.expected}), got {name(wrong.got)!r} ({wrong.got})"
            print(f"    position {wrong.position}: {tokens}")
    exact = sum(text.accuracy == 1 for text in decoded)
    print(f"{exact} of {len(decoded)} texts exact")
    return 0


def verify(args: argparse.Namespace) -> int:
    from onestep_jax.prototokens.reconstruction import decoding_of
    from onestep_jax.store.reading import read_config
    from onestep_jax.store.verify import facts, set_aside
    from onestep_jax.store.verify import verify as check

    config, model = read_config(args.run), None
    if not args.no_decode:
        dtype = args.dtype or config["identity"]["dtype"]
        model = _load(args.model or config["settings"]["model"], dtype, args.revision)
    with looks.counting_bar("verifying") as progress:
        found = check(args.run, None if model is None else decoding_of(model), progress)
    dropping = args.drop and any(problem.damage for problem in found.problems)
    kept = set_aside(args.run, found) if dropping else None
    print(json.dumps(facts(found) | {"kept": kept})) if args.json else looks.print_verification(found, kept)
    return int(any(not (dropping and problem.damage) for problem in found.problems))


def status(args: argparse.Namespace) -> int:
    from onestep_jax.store.status import facts, read_status

    found = read_status(args.run)
    print(json.dumps(facts(found))) if args.json else looks.print_status(found)
    return 0


def export(args: argparse.Namespace) -> int:
    from onestep_jax.store.export import write_safetensors
    from onestep_jax.store.reading import read_results

    results = read_results(args.run)
    write_safetensors(results, args.out)
    summary = {"out": str(args.out), "texts": len(results)}
    print(json.dumps(summary) if args.json else f"{len(results)} texts written to {args.out}")
    return 0


def experiment(args: argparse.Namespace) -> int:
    from onestep_jax.experiment import cards

    if args.name is None:
        for name, path in cards.cards().items():
            print(f"{name:22} {cards.title(cards.load_card(path.stem))}")
        return 0
    if args.smoke and args.packaged:
        raise UserError("--smoke and --packaged exclude each other")
    size = "smoke" if args.smoke else "packaged" if args.packaged else "paper"
    names = list(cards.cards()) if args.name == "all" else [args.name]
    loaded = {name: cards.load_card(name) for name in names}
    changes = given_settings(args.rest)
    chosen = {name: cards.settings_of(card, size, changes) for name, card in loaded.items()}
    if args.card:
        for name, card in loaded.items():
            print(f"{card.__doc__}\n{looks.settings(chosen[name])}")
        return 0
    models: dict[str, Any] = {}
    for name, settings in chosen.items():
        source = args.model or settings.model
        if source not in models:
            models.clear()
            models[source] = _load(source, args.dtype, args.revision)
        print(f"{name}: {cards.title(loaded[name])}")
        command = shlex.join(["onestep", *(name if word == args.name else word for word in args.argv)])
        with looks.fitting_bar() as progress:
            study = cards.Study((args.out or Path("runs/experiments")) / name, models[source], progress)
            record = cards.run_card(name, dataclasses.replace(settings, model=source), study, command)
        print(f"{name}: {record['seconds of the last call']:.0f} s")
    return 0


def report(args: argparse.Namespace) -> int:
    from onestep_jax.report import write_report
    from onestep_jax.store.storage import local_folder

    written = write_report(args.folders, args.out or local_folder(str(args.folders[0])) / "report")
    for path in (written.page, written.table, *written.figures):
        if path is not None:
            print(path)
    return 0


def info(args: argparse.Namespace) -> int:
    import jax.numpy as jnp

    from onestep_jax.fitting.memory import fit_memory
    from onestep_jax.fitting.optimizers import PRESETS
    from onestep_jax.model.checkpoint import DTYPES, default_dtype, describe
    from onestep_jax.model.cost import step_flops
    from onestep_jax.model.decoder import Network, input_scale, parameter_counts
    from onestep_jax.model.hub import locate

    dtype = args.dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    check_known("preset", [args.preset], PRESETS)
    for name in ("slots", "length"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least 1")
    _, _, config = describe(locate(args.model, args.revision, weights=False))
    if args.length > config.context:
        raise UserError(f"--length {args.length} is beyond the model's context of {config.context} positions")
    counts = parameter_counts(config)
    sizes = {"slots": args.slots, "length": args.length}
    memory = fit_memory(Network(config), DTYPES[dtype], preset=PRESETS[args.preset], **sizes)
    facts: dict[str, Any] = {
        "model": args.model,
        "architecture": _architecture(config),
        "context": config.context,
        "input_width": config.embed_width or config.width,
        "parameters": counts,
        "bytes": {name: jnp.dtype(kind).itemsize * counts["total"] for name, kind in DTYPES.items()},
        "fit": {**sizes, "dtype": dtype, "preset": args.preset, **_device()},
        "fit_memory_bytes": {**memory._asdict(), "total": memory.total},
        "flops_per_text_step": step_flops(config, args.length),
    }
    if args.weights:
        model = _load(args.model, dtype, args.revision, tokenizer=False)
        facts |= {"fingerprint": model.fingerprint, "input_scale": input_scale(model)}
    print(json.dumps(facts)) if args.json else looks.print_facts(facts)
    return 0


def _architecture(config: Any) -> dict[str, Any]:
    """The fields of a model, and of its layers, that are not the usual ones."""
    layers = [stated(layer) | {"rope": layer.rope and _rope(layer.rope)} for layer in config.pattern]
    return stated(config) | {"pattern": layers}


def _rope(rope: Any) -> dict[str, Any]:
    return {"theta": rope.theta} | stated(rope)


def _device() -> dict[str, str]:
    import jax

    return {"device": jax.devices()[0].device_kind}

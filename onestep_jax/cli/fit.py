"""`onestep fit`: proto-tokens for many texts, into a run directory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from onestep_jax import errors
from onestep_jax.cli.options import add_model_options, add_number, count_of, load, run_option, tell_results
from onestep_jax.cli.options.losses import add_loss_options, asked_losses, losses_of
from onestep_jax.cli.options.optimizer import optimizer_of
from onestep_jax.cli.options.scheme import add_scheme_options, scheme_of
from onestep_jax.cli.options.start import add_start_options, read_start, start_of, started_scheme
from onestep_jax.cli.terminal import fitting_bar, say_line
from onestep_jax.devices.placement import Placement
from onestep_jax.errors import UserError, check_known
from onestep_jax.fitting.distributed import join_job, together
from onestep_jax.fitting.fitting import run_plan
from onestep_jax.fitting.optimizers import PRESETS, Optimizer, preset_of
from onestep_jax.fitting.plan import resolve
from onestep_jax.fitting.sizing import check_kernel, choose_placement
from onestep_jax.model.checkpoint import DTYPES, default_dtype
from onestep_jax.model.cost import parameter_counts
from onestep_jax.model.decoder import Model
from onestep_jax.model.untrained import architecture
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.prototokens.starts import Starts
from onestep_jax.prototokens.targets import check_length
from onestep_jax.store.locks import check_free
from onestep_jax.store.results import Results
from onestep_jax.store.run import check_place
from onestep_jax.store.storage import writing

SUMMARY = "Find proto-tokens for many texts; run it again to go on where it stopped."
REMAT = {"auto": "auto", "on": True, "off": False}
SCAN = {"auto": None, "on": True, "off": False}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Any other option is an argument of the optimizer, by optax's name for it: --b1 0.9 --weight-decay 0.01. "
        "Without --optimizer they change the preset's optimizer; with it they add to optax's defaults."
    )
    parser.set_defaults(open_ended=True)
    add_model_options(parser, default="default", default_text="default, the packaged one")
    texts = parser.add_argument_group("texts")
    texts.add_argument(
        "--texts",
        required=True,
        metavar="SOURCE",
        help=".txt, .jsonl, .csv, .parquet (or packed), hf:NAME[@CONFIG][:SPLIT[:COLUMN]], demo, random, gen, pg19, "
        "fanfics, excerpts:FILE",
    )
    texts.add_argument("--split", default="file", metavar="HOW", help="a .txt is one text (file) or one a line (lines)")
    texts.add_argument("--column", default="text", help="column of a table (default: text)")
    add_number(
        texts, "--limit", errors.COUNT, metavar="K", help="use only the first K texts; a named source but demo needs it"
    )
    add_number(
        texts, "--length", errors.SIZE, required=True, metavar="N", help="tokens of each text to keep, its first ones"
    )
    texts.add_argument(
        "--prefix",
        metavar="WHAT",
        help="frozen tokens before the vectors: none, bos, a text, or @FILE for the text in it (default: the preset's; "
        "fast takes bos where the first position is an attention sink)",
    )
    texts.add_argument("--prefix-column", metavar="NAME", help="column of a table with each text's own prefix")
    add_start_options(parser)
    _add_run_options(parser)
    job = parser.add_argument_group("several processes", "the same command in each, with a run directory all share")
    job.add_argument("--distributed", action="store_true", help="join a job; Cloud TPU, GKE and Slurm say what it is")
    job.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: of process 0")
    add_number(job, "--processes", errors.PROCESSES, metavar="P", help="elsewhere: how many")
    add_number(job, "--process", errors.Whole(0), metavar="I", help="elsewhere: which one this is, from 0")
    _add_optimisation_options(parser)
    add_loss_options(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument(
        "--run",
        type=run_option,
        required=True,
        metavar="DIR",
        help="run directory, created or gone on with; or an address such as gs://bucket/run",
    )
    add_number(
        run, "--slots", errors.SLOTS, default="auto", metavar="S", help="texts optimised at a time (default: auto)"
    )
    run.add_argument(
        "--remat",
        default="auto",
        metavar="HOW",
        help="activations again instead of kept: on, off or auto, where not one text fits; with a number of --slots "
        "auto is off (default: auto)",
    )
    run.add_argument(
        "--attention",
        default="plain",
        metavar="HOW",
        help="plain, or one fused kernel, which needs --prefix none: cudnn on a GPU in bfloat16, splash on a TPU "
        "(default: plain)",
    )
    run.add_argument(
        "--scan-layers",
        default="auto",
        metavar="HOW",
        help="one program for all layers of a kind: on, off or auto, where the device is no CPU (default: auto)",
    )
    run.add_argument(
        "--placement",
        default="auto",
        metavar="HOW",
        help="pmap: weights on every device; mesh: weights and large groups split; auto: pmap where it will do",
    )
    add_number(
        run, "--model-axis", errors.SIZE, metavar="K", help="devices a model is split over (default: as few as hold it)"
    )
    add_number(
        run, "--chunk", errors.STEPS, default=10, metavar="C", help="steps between looks of the host (default: 10)"
    )
    add_number(
        run, "--save-every", errors.PAUSE, default=60, metavar="SECONDS", help="save the texts in flight (default: 60)"
    )
    run.add_argument("--json", action="store_true", help="print the summary as JSON")


def _add_optimisation_options(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("optimisation")
    how.add_argument("--preset", default="fast", metavar="NAME", help=f"{', '.join(PRESETS)} (default: fast)")
    how.add_argument("--optimizer", metavar="NAME", help="cautious_lbfgs, or of optax or optax.contrib: adamw, lion, …")
    add_number(how, "--lr", errors.RATE, metavar="LR", help="learning rate, the peak of a schedule")
    how.add_argument(
        "--schedule",
        metavar="NAME[:K=V,…]",
        help="optax schedule in units of --lr, such as cosine_decay:decay_steps=400",
    )
    add_scheme_options(how)
    add_number(how, "--steps", errors.STEPS, metavar="K", help="budget of a text and seed (default: the preset's)")
    add_number(how, "--seed", errors.SEED, default=0, metavar="I", help="first seed (default: 0)")
    add_number(
        how,
        "--seeds",
        errors.SEEDS,
        metavar="K",
        help="seeds a text may use until solved; auto: as many as one budget lasts for (default: the preset's)",
    )
    add_number(
        how,
        "--copies",
        errors.SIZE,
        default=1,
        metavar="R",
        help="fit each text R times, every time recorded (default: 1)",
    )
    add_number(
        how,
        "--margin",
        errors.MARGIN,
        default=0,
        metavar="EPS",
        help="a text is solved once each target leads the runner-up by so many logits (default: 0, the argmax will do)",
    )
    how.add_argument("--record", action="store_true", help="keep the vectors after each chunk (trajectories)")


def run(args: argparse.Namespace) -> int:
    _join(args)
    optimizer = optimizer_of(args, preset_of(args.preset, args.run).optimizer)
    optimizer.build()
    check_known("way of --remat", [args.remat], REMAT)
    check_known("way of --scan-layers", [args.scan_layers], SCAN)
    results, seconds = _fit(args, optimizer)
    tell_results(args.run, results, seconds, as_json=args.json, margin=args.margin)
    return 0


def _fit(args: argparse.Namespace, optimizer: Optimizer) -> tuple[Results, float]:
    """Read the texts, load the model and fit; also returns the seconds of the fit alone."""
    with together("read the texts and the model"):
        strings, prefixes = _strings(args)
        rows = args.copies * (count_of(args) if strings is None else len(strings))
        scheme = scheme_of(args, rows)
        placement, read = _settle(args, scheme, rows)
        scan = SCAN[args.scan_layers]
        model = load(args.model, args.dtype, args.revision, mesh=placement.mesh, scan_layers=scan)
        texts = _named_texts(args, model) if strings is None else strings
        start = start_of(args, read, model, texts)
        scheme = started_scheme(args, model, scheme, start)
        beside = losses_of(args, model, texts, prefixes, scheme)
    began = time.perf_counter()
    plan = resolve(
        model,
        texts,
        length=args.length,
        run=args.run,
        preset=args.preset,
        optimizer=optimizer,
        steps=args.steps,
        seed=args.seed,
        seeds=args.seeds,
        slots=args.slots,
        remat=REMAT[args.remat],
        attention=args.attention,
        scheme=scheme,
        prefixes=prefixes,
        start=start,
        start_missing=args.start_missing,
        chunk=args.chunk,
        save_every=args.save_every,
        copies=args.copies,
        record=args.record,
        placement=placement,
        margin=args.margin,
        losses=beside.losses,
        context=beside.context,
    )
    _warn_of_short_texts(plan.tokens[:: plan.copies], args.length)
    with fitting_bar() as progress:
        results = run_plan(plan, progress)
    return results, time.perf_counter() - began


def _join(args: argparse.Namespace) -> None:
    """Join the job of several processes, before anything else asks JAX for its devices."""
    if args.distributed:
        join_job(coordinator=args.coordinator, processes=args.processes, process=args.process, say=say_line)
        return
    for name in ("coordinator", "processes", "process"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} {getattr(args, name)} goes with --distributed")


def _strings(args: argparse.Namespace) -> tuple[list[str] | None, list[str] | None]:
    """The texts of a file or data set, None for a named source, whose texts depend on the model; and their prefixes."""
    from onestep_jax.texts.corpora import is_named
    from onestep_jax.texts.files import read_source, read_with_prefixes

    if not is_named(args.texts):
        if args.prefix_column is None:
            return read_source(args.texts, split=args.split, column=args.column, limit=args.limit), None
        return read_with_prefixes(args.texts, args.prefix_column, column=args.column, limit=args.limit)
    if args.prefix_column is not None:
        raise UserError(f"--prefix-column {args.prefix_column}: --texts {args.texts} is no table")
    return None, None


def _named_texts(args: argparse.Namespace, model: Model) -> list[np.ndarray]:
    from onestep_jax.texts.corpora import load_tokens

    how = {"seed": args.seed, "column": args.column, "split": args.split}
    return load_tokens(model, args.texts, count=count_of(args), length=args.length, **how)


def _warn_of_short_texts(tokens: Sequence[np.ndarray], length: int) -> None:
    short = sum(len(ids) < length for ids in tokens)
    if short:
        say_line(f"onestep: warning: {short} of {len(tokens)} texts have fewer than {length} tokens; kept whole")


def _settle(args: argparse.Namespace, scheme: Scheme, texts: int) -> tuple[Placement, Starts | None]:
    """The placement, and start vectors that lie on a disk; what is wrong is refused before the weights are read."""
    asked_losses(args)
    check_place(args.run)
    if not args.distributed:  # of a job, process 0 may hold the run by now
        with writing(args.run):
            check_free(args.run)
    read = read_start(args)
    dtype = args.dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    config = architecture(args.model, args.revision)
    if args.start is None:  # its arrangement may be another, with more room
        check_length(args.length, config.context, scheme)
    weights = parameter_counts(config)["total"] * jnp.dtype(DTYPES[dtype]).itemsize
    placement = choose_placement(args.placement, weights, scheme, texts, model_axis=args.model_axis)
    check_kernel(args.attention, placement.devices[0])
    return placement, read

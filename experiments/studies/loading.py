"""What loading Llama-3.2-1B costs: memory and speed beside plain safetensors reading, and agreement with transformers.

    python experiments/studies/loading.py --clean

The checkpoint is synthetic and of the exact shape: 1.24 billion random bf16 weights (2.5 GB) in three files, written to
a folder under `--work`. `make` writes it; `measure` reads it in a fresh process each time, the files in the page cache,
the ways of reading (`READINGS`) in random order; `agree` compares a two-layer cut with transformers in float32 (needs
torch); without a part, all three run. `--smoke` shrinks the shape until everything takes seconds.

Targets, in multiples of the params' bytes: at most 1.5 of resident and 1.15 of anonymous memory at their peak; at least
half the speed of plain reading; logits and input gradients within 1e-5 of transformers.

Measured on two cores of a virtual machine with 24 GB (jax 0.10.2, safetensors 0.8.0; `experiments/results/loading.csv`
has a row for each process, medians of five, least in brackets): plain 2.44 s (1.46), ours 3.09 s (1.47), speed 0.79
(0.99) of plain; resident 1.10, anonymous memory 1.04 times the params, 1.01 beyond what the process had before; over
eight devices the same, each with an eighth. Logits within 1.9e-6 and input gradients within 2.3e-6.
A virtual machine that hands free memory back to its host takes seconds to get it again, which shows as system time of
whichever reading it hits: look at the minima beside the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import mmap
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.numpy import save_file

import onestep_jax
from onestep_jax.devices.weight_split import MODEL
from onestep_jax.model.decoder import Model, parameter_shapes
from onestep_jax.model.families import read_config
from onestep_jax.model.hub import shards

# config.json of Llama-3.2-1B as on the hub, in the spelling of transformers 4.
DESCRIBED = """{
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true,
    "vocab_size": 128256
}"""
SMOKE = """{
    "bos_token_id": 0, "eos_token_id": 1, "head_dim": 16, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 512
}"""
FILES = 3
STD = 0.02
DEVICES = 8
TOKENS = 64
CUT = 2  # layers that `agree` compares
ERROR = 1e-5
SAMPLE_EVERY = 0.02  # seconds


def shape(smoke: bool, layers: int | None) -> dict[str, Any]:
    """config.json of the checkpoint to write."""
    cut = {} if layers is None else {"num_hidden_layers": layers}
    return json.loads(DESCRIBED) | (json.loads(SMOKE) if smoke else {}) | cut


def make(folder: Path, described: Mapping[str, Any], seed: int) -> None:
    """Write a checkpoint of random bf16 weights, its norms one, file by file."""
    family, config = read_config(described)
    shapes, rows = parameter_shapes(config), family.weights(config)
    assert all(row.part is None and not row.transposed for row in rows)
    ends = np.cumsum([2 * np.prod(shapes[row.path]) for row in rows])  # bytes
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for k in range(FILES):
        path = folder / f"model-{k + 1:05}-of-{FILES:05}.safetensors"
        chosen = [i for i in range(len(rows)) if (ends[i] - 1) * FILES // ends[-1] == k]
        tensors = {rows[i].name: _weight(shapes[rows[i].path], (seed, i)) for i in chosen}
        save_file(tensors, path, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
    index = {"metadata": {"total_size": int(ends[-1])}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _weight(shape: tuple[int, ...], seed: tuple[int, int]) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    drawn *= STD
    return drawn.astype(ml_dtypes.bfloat16)


def plain(folder: Path) -> dict[str, float]:
    """Every tensor by safetensors itself, kept in a dict."""
    kept: dict[str, np.ndarray] = {}
    _touch_memory(folder)
    with _timed() as spent:
        for path in shards(folder):
            with safe_open(path, framework="numpy") as file:
                kept |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return {"params_bytes": sum(tensor.nbytes for tensor in kept.values()), **spent}


def ours(
    folder: Path, mesh: Mesh | None = None, watch: contextlib.AbstractContextManager[None] | None = None
) -> dict[str, float]:
    """The whole model by onestep_jax."""
    jax.block_until_ready(jnp.zeros(1))  # starts the backend
    if watch is None:
        _touch_memory(folder)
    with watch or contextlib.nullcontext(), _timed() as spent:
        model = onestep_jax.load_model(folder, dtype="bfloat16", tokenizer=False, mesh=mesh)
        jax.block_until_ready(model.params)
    leaves = jax.tree.leaves(model.params)
    row = {"params_bytes": sum(leaf.nbytes for leaf in leaves), **spent}
    if mesh is not None:
        held = dict.fromkeys(mesh.devices.flat, 0)
        for part in (part for leaf in leaves for part in leaf.addressable_shards):
            held[part.device] += part.data.nbytes
        row |= {
            f"{name}_share": of(held.values()) / row["params_bytes"] for name, of in (("least", min), ("most", max))
        }
    return row


def watched(folder: Path, mesh: Mesh | None = None) -> dict[str, float]:
    """`ours`, with its peak memory in multiples of the params' bytes: in all, and in excess of what was before."""
    jax.block_until_ready(jnp.zeros(1))
    before = _memory()
    most = dict(before)
    row = ours(folder, mesh, _peak(most))
    params = row["params_bytes"]
    for name, peak in most.items():
        row |= {name: peak / params, f"{name}_excess": (peak - before[name]) / params}
    return row | {"max_resident": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / params}


def split(folder: Path) -> dict[str, float]:
    """`watched`, over a mesh of all devices, with the least and the most that one of them holds."""
    return watched(folder, Mesh(np.array(jax.devices()), (MODEL,)))


READINGS: dict[str, Callable[[Path], dict[str, float]]] = {
    "plain": plain,
    "ours": ours,
    "watched": watched,
    "split": split,
}
COLUMNS = """repetition reading layers params_bytes seconds user_seconds system_seconds resident resident_excess
    max_resident anonymous anonymous_excess least_share most_share jax safetensors""".split()


def _touch_memory(folder: Path) -> None:
    """Use as much memory as the files take, and free it.

    A virtual machine may have given its free pages back to its host, from where they return slowly: seconds that
    depend on what ran before and not on the way of loading.
    """
    with mmap.mmap(-1, sum(path.stat().st_size for path in shards(folder)), access=mmap.ACCESS_COPY) as pages:
        np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE] = 1


@contextlib.contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Seconds of the block, by the clock and of the processor; known after it."""
    spent: dict[str, float] = {}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    yield spent
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent["seconds"] = time.perf_counter() - start
    spent |= {"user_seconds": after.ru_utime - before.ru_utime, "system_seconds": after.ru_stime - before.ru_stime}


@contextlib.contextmanager
def _peak(most: dict[str, int]) -> Iterator[None]:
    """Raises `most` to the memory of this process at its highest within the block, in bytes, sampled by a thread."""
    over = threading.Event()

    def watch() -> None:
        ended = False
        while not ended:  # once more after the end
            ended = over.wait(SAMPLE_EVERY)
            most.update({name: max(now, most[name]) for name, now in _memory().items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _memory() -> dict[str, int]:
    """Resident and anonymous bytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines}
    return {"resident": 1024 * kilobytes["Rss:"], "anonymous": 1024 * kilobytes["Anonymous:"]}


def measure(folder: Path, repetitions: int, options: list[str]) -> list[dict[str, Any]]:
    """A row for each reading of each repetition, in a process of its own."""
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    same = {"layers": layers, "jax": version("jax"), "safetensors": version("safetensors")}
    rows = []
    for repetition in range(repetitions):
        for path in shards(folder):  # into the page cache
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
        for reading in random.Random(repetition).sample([*READINGS], len(READINGS)):
            row = json.loads(run(reading, options).splitlines()[-1])
            row = {name: round(value, 4) for name, value in row.items()}
            rows.append({"repetition": repetition, "reading": reading, **row, **same})
            print(f"{repetition + 1}/{repetitions} {reading}: {row['seconds']:.2f} s", flush=True)
    return rows


def run(part: str, options: list[str]) -> str:
    """Output of a part of this script in a process of its own, on as many CPU devices as it needs."""
    flags = f"--xla_force_host_platform_device_count={DEVICES if part == 'split' else 1}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, part, *options]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def summary(rows: list[dict[str, Any]]) -> Table:
    """Medians and least values of the rows (of the speed: from those of the seconds); targets are for the medians."""
    table = Table("measured", "median", "least", "target", "met")

    def values(reading: str, column: str) -> list[float]:
        return [row[column] for row in rows if row["reading"] == reading]

    def add(name: str, median: float, least: float, low: float | None = None, high: float | None = None) -> None:
        target = " ".join(f"{sign} {limit:g}" for sign, limit in (("≥", low), ("≤", high)) if limit is not None)
        met = (low is None or median >= low) and (high is None or median <= high)
        table.add_row(name, f"{median:.3f}", f"{least:.3f}", target, ("yes" if met else "NO") if target else "")

    for reading in READINGS:
        for column in ("seconds", "system_seconds"):
            found = values(reading, column)
            add(f"{reading}: {column.replace('_', ' ')}", statistics.median(found), min(found))
    theirs, mine = (values(reading, "seconds") for reading in ("plain", "ours"))
    add("speed of ours / plain", statistics.median(theirs) / statistics.median(mine), min(theirs) / min(mine), low=0.5)
    highest = {
        "resident": 1.5,
        "resident_excess": 1.5,
        "max_resident": 1.5,
        "anonymous": None,
        "anonymous_excess": 1.15,
    }
    for reading in ("watched", "split"):
        for column, high in highest.items():
            found = values(reading, column)
            add(f"{reading}: {column} / params", statistics.median(found), min(found), high=high)
    for column in ("least_share", "most_share"):
        found = [DEVICES * share for share in values("split", column)]
        add(f"split: {DEVICES} · {column}", statistics.median(found), min(found), low=0.95, high=1.05)
    return table


def agree(folder: Path, seed: int) -> dict[str, float]:
    """Relative errors ‖a − b‖ / ‖b‖ against transformers, both in float32, of random tokens and a random cotangent."""
    model = onestep_jax.load_model(folder, dtype="float32", tokenizer=False)
    draw = np.random.default_rng(seed)
    tokens_T = draw.integers(model.config.vocab_size, size=TOKENS)
    cotangent_TV = draw.standard_normal((TOKENS, model.config.vocab_size), np.float32)
    pairs = zip(_ours(model, tokens_T, cotangent_TV), _theirs(folder, tokens_T, cotangent_TV), strict=True)
    errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]
    return dict(zip(("input vectors", "logits", "input gradient"), errors, strict=True))


def _ours(model: Model, tokens_T: np.ndarray, cotangent_TV: np.ndarray) -> tuple[np.ndarray, ...]:
    """Input vectors, logits, and the gradient of sum(logits · cotangent) with respect to the input vectors."""

    @jax.jit
    def passes(params: Any, x_TD: jax.Array, cotangent_TV: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_TV, back = jax.vjp(lambda x_TD: model.apply(params, x_TD), x_TD)
        return logits_TV, back(cotangent_TV)[0]

    x_TD = model.embed(model.params, jnp.asarray(tokens_T))
    return tuple(np.asarray(array) for array in (x_TD, *passes(model.params, x_TD, jnp.asarray(cotangent_TV))))


def _theirs(folder: Path, tokens_T: np.ndarray, cotangent_TV: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    model = model.eval().requires_grad_(False)
    x_1TD = model.get_input_embeddings()(torch.from_numpy(tokens_T)[None]).requires_grad_()
    logits_TV = model(inputs_embeds=x_1TD, use_cache=False).logits[0]
    (gradient_1TD,) = torch.autograd.grad(logits_TV, x_1TD, torch.from_numpy(cotangent_TV))
    return tuple(array.detach().numpy() for array in (x_1TD[0], logits_TV, gradient_1TD[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parts = ("all", "make", "measure", "agree", *READINGS)
    parser.add_argument("part", nargs="?", default="all", choices=parts, help="a reading prints its row (default: all)")
    parser.add_argument("--work", type=Path, default=Path("runs/loading"), help="folder of the checkpoints (3 GB)")
    parser.add_argument("--layers", type=int, help="of the checkpoint that is written (default: 16)")
    parser.add_argument("--repetitions", type=int, default=5, help="processes of each reading (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, tokens and cotangent")
    parser.add_argument("--smoke", action="store_true", help="tiny shape, whose figures mean nothing; CSV in --work")
    parser.add_argument("--clean", action="store_true", help="delete the checkpoint in the end")
    parser.add_argument("--out", type=Path, help="CSV (default: experiments/results/loading.csv)")
    args = parser.parse_args()

    folder = args.work / ("smoke" if args.smoke else "llama-3.2-1b")
    out = args.out or (args.work if args.smoke else Path(__file__).parents[1] / "results") / "loading.csv"
    options = ["--work", str(args.work), "--seed", str(args.seed)]
    options += ["--smoke"] * args.smoke + ([] if args.layers is None else ["--layers", str(args.layers)])
    if args.part in READINGS:
        print(json.dumps(READINGS[args.part](folder)))
    if args.part == "make":
        make(folder, shape(args.smoke, args.layers), args.seed)
    if args.part == "all":
        run("make", options)  # in a process of its own: the highest memory of this one would count in its children's
    if args.part in ("all", "measure"):
        rows = measure(folder, args.repetitions, options)
        Console().print(summary(rows))
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in rows)])
    if args.part in ("all", "agree"):
        args.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.work) as cut:
            make(Path(cut), shape(args.smoke, CUT), args.seed)
            errors = agree(Path(cut), args.seed)
        for name, error in errors.items():
            print(f"relative error of the {name}: {error:.1e} ({'within' if error <= ERROR else 'ABOVE'} {ERROR:g})")
    if args.clean:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Solved texts per hour of this package, of our loop of the paper's protocol, and of the training loops of its peers.

    onestep_jax                   one forward pass, preset `fast`
    PyTorch                       one forward pass, the protocol of the paper, one text at a time
    onestep_jax, autoregressive   one vector before the text, teacher-forced, preset `fast`
    hidden_capacity               the same in its authors' loop (Kuratov et al., arXiv:2502.13063), one text at a time
    progressive_cramming          the same in its authors' loop of "full cramming", texts in batches

Each runs in a process of its own, from its start to its last result, on the same tokens. A text is solved when every
token is the argmax. Vectors that are read token by token hold more than those of one pass, so the peers are to be
compared with our autoregressive way, and our first way with PyTorch.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.bench import PEERS
from onestep_jax.bench.models import import_torch
from onestep_jax.bench.process import in_a_process, solved_an_hour
from onestep_jax.bench.pytorch import Fitted
from onestep_jax.bench.sweep import solve, summary, texts_in_turn
from onestep_jax.bench.timing import record
from onestep_jax.errors import UserError
from onestep_jax.fitting import fit
from onestep_jax.model.checkpoint import default_dtype, load_model
from onestep_jax.model.hub import locate
from onestep_jax.prototokens.schemes import Cramming

OWN = ("onestep_jax", "PyTorch", "onestep_jax, autoregressive")
BATCH = 25  # of progressive_cramming, as its authors' recipe says for SmolLM2


def bench_peers(
    source: str = "default",
    *,
    hidden_capacity: str | None = None,
    progressive_cramming: str | None = None,
    texts: str | Sequence[str] = "gen",
    count: int = 8,
    length: int = 16,
    steps: int = 1000,
    repeats: int = 1,
    dtype: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run our ways, and the loop of each peer of which a clone is given, over the same texts.

    Args:
      source: folder, hub id or "default".
      hidden_capacity, progressive_cramming: folders of clones; None leaves a peer out.
      texts: source of the texts, see `corpora.load_tokens`; several sources give their texts in turn.
      count: texts of all sources together.
      length: tokens of each.
      steps: budget of a text, in gradient evaluations.
      repeats: how often each way runs.
      dtype: of the weights.
      seed: of the texts and of the start vectors.
      say: receives a line for the user.

    Returns:
      See `timing.record`; one row per way and turn, and ratios of solved texts per hour: our two ways over the others.

    Raises:
      UserError: if a folder is no clone of the peer, or a package that it needs is missing.
    """
    dtype = dtype or default_dtype()
    clones = {"hidden_capacity": hidden_capacity, "progressive_cramming": progressive_cramming}
    clones = {name: _clone(name, folder) for name, folder in clones.items() if folder is not None}
    import_torch()
    sources = [texts] if isinstance(texts, str) else list(texts)
    tokens = texts_in_turn(load_model(source, dtype=dtype), sources, count=count, length=length, seed=seed)
    settings = {"model": source, "texts": sources, "count": count, "length": length, "steps": steps}
    settings |= {"dtype": dtype, "seed": seed, "preset": "fast", "slots": "auto"}
    rows = []
    for turn in range(repeats):
        for way in (*OWN, *clones):
            task = {**settings, "way": way, "tokens": tokens, "clone": clones.get(way)}
            found = in_a_process(_WORK[way], task)
            rows.append({"way": way, "turn": turn, **found})
            say(f"{way}: {found['solved']} of {found['texts']} solved in {found['seconds']:.0f} s")
    by_token = [row for row in rows if row["way"] not in OWN[:2]]
    ratios = solved_an_hour([row for row in rows if row["way"] in OWN[:2]]) | solved_an_hour(by_token)
    return record("peers", {**settings, "peers": list(clones)}, rows, ratios=ratios)


def _clone(name: str, folder: str) -> str:
    """The folder of a clone, checked."""
    address, known_by = PEERS[name]
    if not (Path(folder) / known_by).is_file():
        raise UserError(f"{folder}: no clone of {name} ({known_by} is not in it); git clone {address}")
    return str(Path(folder).resolve())


def autoregressive(task: dict[str, Any]) -> dict[str, Any]:
    """Our fit of one vector before the text."""
    model = load_model(task["model"], dtype=task["dtype"])
    began = time.perf_counter()
    found = fit(model, task["tokens"], scheme=Cramming(1), preset=task["preset"], steps=task["steps"])
    seconds = time.perf_counter() - began
    return {**summary([Fitted(text.accuracy == 1, text.steps) for text in found]), "seconds of fitting": seconds}


def hidden_capacity(task: dict[str, Any]) -> dict[str, Any]:
    """The loop of `train.run_single_experiment`, text by text; its accuracy leaves the first token out."""
    torch = import_torch()
    train = _import("train", Path(task["clone"]), "pandas nltk tqdm")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train.sent_tokenize = lambda text: ["", text]  # it fits the second half of the sentences
    train.AutoModelForCausalLM = _Loader  # transformers no longer takes `use_flash_attention_2`
    fits, began = [], time.perf_counter()
    for number, ids in enumerate(task["tokens"]):
        torch.manual_seed(task["seed"] + number)
        found = train.run_single_experiment(
            N_mem_tokens=1,
            text_sample="given as ids",
            max_length=len(ids),
            num_iterations=task["steps"],
            sample_idx=number,
            run_idx=0,
            model_name=str(locate(task["model"])),
            dtype=getattr(torch, task["dtype"]),
            use_flash_attention_2=False,
            device=device,
            tokenizer=_given(ids),
            lr=1e-2,  # the defaults of its command line
            beta_1=0.9,
            beta_2=0.9,
            weight_decay=0.01,
        )
        fits.append(Fitted(solved=found["best_accuracy"] == 1.0, steps=len(found["losses"])))
    return {**summary(fits), "seconds of fitting": time.perf_counter() - began}


class _Loader:
    """Loads a model as the peer's own call did under the transformers of its time: in float32, whatever is stored."""

    @staticmethod
    def from_pretrained(name: str, use_flash_attention_2: bool = False) -> Any:
        from transformers import AutoModelForCausalLM

        assert not use_flash_attention_2
        return AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, dtype="float32")


def _given(ids: Sequence[int]) -> Callable[..., Any]:
    """What stands for a tokenizer where the ids are known."""
    from transformers import BatchEncoding

    made = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
    return lambda *_, **__: BatchEncoding(made, tensor_type="pt")


def progressive_cramming(task: dict[str, Any]) -> dict[str, Any]:
    """The loop of `FullCrammingTrainer`, by its authors' recipe for SmolLM2, in batches of at most `BATCH`."""
    run = _import("progressive_cramming.run", Path(task["clone"]) / "src", "accelerate tensorboard scikit-learn")
    from datasets import Dataset

    arguments = importlib.import_module("progressive_cramming.train.arguments")
    masks = [[1] * len(ids) for ids in task["tokens"]]
    given = Dataset.from_dict({"input_ids": task["tokens"], "attention_mask": masks}).with_format("torch")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        recipe = arguments.MyTrainingArguments(
            output_dir=folder,
            model_checkpoint=str(locate(task["model"])),
            max_sequence_length=task["length"],
            max_optimization_steps_per_sample=task["steps"],
            full_cramming_convergence_threshold=1.0,
            number_of_mem_tokens=1,
            embedding_init_method="random0.02",
            learning_rate=0.1,
            warmup_steps=100,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr": 1e-3},
            loss_type="cross_entropy",
            dtype=task["dtype"],
            attn_implementation="sdpa",
            random_seed=task["seed"],
            per_device_train_batch_size=min(BATCH, len(masks)),
            report_to=[],
        )
        recipe.logging_dir = folder  # which transformers no longer has
        rows = Dataset.load_from_disk(run.run_training(recipe, given)).to_list()
    fits = []
    for row in rows:
        solved = row["final_convergence"] == 1.0
        fits.append(Fitted(solved, row["convergence_after_steps"] + 1 if solved else task["steps"]))
    return {**summary(fits), "seconds of fitting": time.perf_counter() - began}


def _import(module: str, folder: Path, needs: str) -> Any:
    """Import a module of a clone.

    Raises:
      UserError: if a package that it needs is missing.
    """
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{folder}: {error}; pip install {needs}") from error


_WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "onestep_jax": solve,
    "PyTorch": solve,
    "onestep_jax, autoregressive": autoregressive,
    "hidden_capacity": hidden_capacity,
    "progressive_cramming": progressive_cramming,
}

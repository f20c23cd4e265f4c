"""Peers: each loop gets our tokens by the interface of its authors' code, and what it says is counted as it is meant.

The clones here are of our own making: they have the interface of the peers' code, and note what they were given.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onestep_jax.bench import peers
from onestep_jax.bench.process import in_a_process

pytest.importorskip("torch")
pytestmark = pytest.mark.parity

TRAIN = """
import json
from pathlib import Path
from transformers import AutoModelForCausalLM
sent_tokenize = None

def run_single_experiment(N_mem_tokens, text_sample, max_length, num_iterations, sample_idx, run_idx, model_name, dtype,
                          use_flash_attention_2, device, tokenizer, lr, beta_1, beta_2, weight_decay):
    halves = sent_tokenize(text_sample)
    text = " ".join(halves[len(halves) // 2 :])
    inp = tokenizer(text, max_length=max_length, truncation=True, return_tensors="pt").to(device)
    model = AutoModelForCausalLM.from_pretrained(model_name, use_flash_attention_2=use_flash_attention_2)
    logits = model(**inp).logits
    with (Path(__file__).parent / "given.jsonl").open("a") as file:
        given = [inp["input_ids"].tolist(), list(logits.shape), num_iterations, N_mem_tokens, str(dtype), text]
        file.write(json.dumps(given) + "\\n")
    solved = sample_idx == 0
    return {"best_accuracy": 1.0 if solved else 0.9, "losses": [0.0] * (3 if solved else num_iterations)}
"""
RUN = """
from pathlib import Path
from datasets import Dataset

def run_training(args, train_dataset):
    rows = [{"final_convergence": share, "convergence_after_steps": steps} for share, steps in [(1.0, 6), (0.5, 9)]]
    given = train_dataset[:]
    assert given["input_ids"].shape == given["attention_mask"].shape == (2, 8), given
    assert (args.max_optimization_steps_per_sample, args.per_device_train_batch_size) == (9, 2)
    folder = str(Path(args.output_dir) / "compressed_prefixes")
    Dataset.from_list(rows).save_to_disk(folder)
    return folder
"""
ARGUMENTS = """
from dataclasses import make_dataclass

def MyTrainingArguments(**given):
    return make_dataclass("Arguments", given)(**given)
"""


@pytest.fixture
def clones(tmp_path: Path) -> dict[str, str]:
    files = {"a/train.py": TRAIN, "b/src/progressive_cramming/run.py": RUN}
    files |= {"b/src/progressive_cramming/train/arguments.py": ARGUMENTS}
    files |= {f"b/src/progressive_cramming/{name}__init__.py": "" for name in ("", "train/")}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return {"hidden_capacity": str(tmp_path / "a"), "progressive_cramming": str(tmp_path / "b")}


@pytest.fixture
def task(tiny_folder: Path, token_lists) -> dict:
    sizes = {"length": 8, "steps": 9, "dtype": "float32", "seed": 0, "preset": "fast", "slots": "auto"}
    return {"model": str(tiny_folder), "tokens": token_lists[:2], **sizes}


def test_the_loop_of_the_predecessor(clones, task, token_lists):
    folder = clones["hidden_capacity"]
    found = in_a_process(peers.hidden_capacity, {**task, "way": "hidden_capacity", "clone": folder})
    assert (found["solved"], found["steps"]) == (1, [3, 9])
    given = [json.loads(line) for line in (Path(folder) / "given.jsonl").read_text().splitlines()]
    expected = [[[ids], [1, 8, 61], 9, 1, "torch.float32", "given as ids"] for ids in token_lists[:2]]
    assert given == expected


def test_the_loop_of_the_successor(clones, task):
    clone = {"way": "progressive_cramming", "clone": clones["progressive_cramming"]}
    found = in_a_process(peers.progressive_cramming, {**task, **clone})
    assert (found["solved"], found["steps"]) == (1, [7, 9])


def test_our_own_ways_over_the_same_texts(tiny_folder: Path):
    said = []
    sizes = {"texts": "random", "count": 2, "length": 4, "steps": 200}
    found = peers.bench_peers(str(tiny_folder), **sizes, say=said.append)
    assert [row["way"] for row in found["rows"]] == list(peers.OWN)
    assert len(said) == 3
    assert set(found["ratios"]) == {"onestep_jax over PyTorch"}
    assert all(row["peak MB"] > 100 and row["texts"] == 2 for row in found["rows"])

"""Write tests/golden: the checkpoints of `llama_cases` with random weights, and what transformers computes with them.

    python tests/make_golden.py

needs torch (`pip install -e .[parity]`) and replaces the whole folder in seconds. The tests read the folder without
torch; run it again after a change of `llama_cases`, and commit both.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_cases import CASES, GOLDEN, SHARD_SIZE
from transformers import LlamaConfig, LlamaForCausalLM

POSITIONS = 20
STD = 0.25  # of matrices and biases: makes attention rows sharp, so that a mistake in RoPE or in the mask shows


def build(config: dict[str, Any], seed: int) -> LlamaForCausalLM:
    """A Llama in float32 whose every weight is random, norm scales (about one) and biases too."""
    generator = torch.Generator().manual_seed(seed)
    llama = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, weight in llama.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            weight.copy_(mean + STD * torch.randn(weight.shape, generator=generator))
    return llama.requires_grad_(False)


def forward(llama: LlamaForCausalLM, seed: int) -> dict[str, np.ndarray]:
    """Inputs, logits, hidden states, and the gradient of sum(logits · cotangent) with respect to the inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(POSITIONS, llama.config.hidden_size, generator=generator).requires_grad_()
    cotangent = torch.randn(POSITIONS, llama.config.vocab_size, generator=generator)
    output = llama(inputs_embeds=x[None], output_hidden_states=True, use_cache=False)
    (gradient,) = torch.autograd.grad((output.logits[0] * cotangent).sum(), x)
    arrays = {
        "x_TD": x,
        "cotangent_TV": cotangent,
        "logits_TV": output.logits[0],
        "hidden_LTD": torch.cat(output.hidden_states),
        "gradient_TD": gradient,
    }
    return {name: array.detach().numpy() for name, array in arrays.items()}


def write(name: str, seed: int, folder: Path) -> None:
    """Write the checkpoint folder/name and the arrays folder/name.npz."""
    llama = build(CASES[name], seed)
    llama.save_pretrained(folder / name, max_shard_size=SHARD_SIZE.get(name, "1GB"))
    (folder / name / "generation_config.json").unlink()
    np.savez(folder / f"{name}.npz", **forward(llama, seed + 1000))


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for seed, name in enumerate(CASES):
        write(name, seed, GOLDEN)
    size = sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file())
    print(f"{GOLDEN}: {len(CASES)} cases, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

"""Write tests/golden: checkpoints of `family_cases` with random weights, and what transformers computes with them.

    python tests/support/make_golden.py

needs torch (`pip install -e .[parity]`) and replaces the whole folder in seconds. The tests read the folder without
torch; run it again after a change of `family_cases`, and commit both.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from family_cases import CASES, GOLDEN, GOLDEN_FOLDER
from parity import build, inputs, run_theirs, save

# Largest weight file, by save_pretrained; the other checkpoints fit into one file.
SHARD_SIZE = {"llama_sharded": "40KB"}


def write(name: str, seed: int, folder: Path) -> None:
    """Write the checkpoint folder/name and the arrays folder/name.npz of one text."""
    model_type, case = GOLDEN[name]
    theirs = build(model_type, CASES[model_type][case], seed)
    save(theirs, folder / name, max_shard_size=SHARD_SIZE.get(name, "1GB"))
    (folder / name / "generation_config.json").unlink()
    x_GTD, cotangent_GTV = (array[:1] for array in inputs(theirs, seed + 1000))
    theirs_G = run_theirs(theirs, x_GTD, cotangent_GTV)
    # Only OPT 350m's last state is of another width: transformers has already projected it.
    hidden_LTD = np.concatenate([state for state in theirs_G.hidden if state.shape == theirs_G.hidden[0].shape])
    np.savez(
        folder / f"{name}.npz",
        x_TD=x_GTD[0],
        cotangent_TV=cotangent_GTV[0],
        logits_TV=theirs_G.logits[0],
        hidden_LTD=hidden_LTD,
        gradient_TD=theirs_G.gradient[0],
    )


def main() -> None:
    shutil.rmtree(GOLDEN_FOLDER, ignore_errors=True)
    for seed, name in enumerate(GOLDEN):
        write(name, seed, GOLDEN_FOLDER)
    size = sum(path.stat().st_size for path in GOLDEN_FOLDER.rglob("*") if path.is_file())
    print(f"{GOLDEN_FOLDER}: {len(GOLDEN)} checkpoints, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

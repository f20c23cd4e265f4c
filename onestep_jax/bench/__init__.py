"""Benchmarks: what a step, a sweep, decoding and loading cost, measured in one run with the PyTorch way.

One module per benchmark: NAME has `bench_NAME` and, if there is something to plot, `draw_NAME`.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `encoder`, `fitting`.
"""

WAYS = ("onestep_jax", "lockstep", "one at a time", "PyTorch")  # to run a sweep; see `sweep`

# Loops of other authors that `peers` runs: where they are to be had, and the file by which a clone is known.
PEERS = {
    "hidden_capacity": ("https://github.com/yurakuratov/hidden_capacity", "train.py"),
    "progressive_cramming": (
        "https://github.com/FusionBrainLab/progressive_cramming",
        "src/progressive_cramming/run.py",
    ),
}

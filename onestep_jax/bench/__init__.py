"""Benchmarks: what a step, a sweep, decoding and loading cost, beside the PyTorch way, measured in one run.

A module a benchmark: NAME has `bench_NAME` and, where there is something to plot, `draw_NAME`.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `fitting`.
"""

WAYS = ("onestep_jax", "lockstep", "one at a time", "PyTorch")  # to run a sweep, see `sweep`

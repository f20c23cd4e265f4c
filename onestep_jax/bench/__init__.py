"""Benchmarks: what a step, a sweep, decoding and loading cost, measured in one run with the PyTorch way.

One module per benchmark: NAME has `bench_NAME` and, if there is something to plot, `draw_NAME`.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `encoder`, `fitting`.
"""

WAYS = ("onestep_jax", "lockstep", "one at a time", "PyTorch")  # to run a sweep; see `sweep`

"""Benchmarks: what a step, a sweep, decoding and loading cost, beside the PyTorch way, measured in one run."""

WAYS = ("onestep_jax", "lockstep", "one at a time", "PyTorch")  # to run a sweep, see `sweep`

"""Benchmarks: what a step, a sweep, decoding and loading cost, beside the PyTorch way, measured in one run."""

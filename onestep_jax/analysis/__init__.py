"""Analyses of fitted proto-tokens: numbers from stored results; no plots.

metrics        horizons, nats and sizes of one stored result
samples        area under the ROC curve, rank correlation, permutation tests
text_capacity  capacity of one text from fits of its prefixes, and a cell of Table 3
prefix_table   fits of prefixes, texts × lengths, from which capacities are read
rounds         how such a table is filled
capacity       those fits: every length, or as few as needed (Table 3, Figure 1)
growth         those fits: one token more at a time, from the last solution
distances      cosine distances of learned vectors: same text, same context, different contexts (Figure 6)
similarity     distances of the texts themselves, and learned vectors against them (Figure 5) or against a teacher's
connectivity   straight lines and trained curves between solutions of one text (Figure 7)
bezier         one such curve: its geometry and its training (Eq. 4 and 5)
trajectories   paths of the optimisation in their principal plane, and their lengths
attention      attention to e, and how much of a text is left when e or m is replaced
knockout       which layers' attention to e, or among the m positions, is needed
access         whether autoregressive generation can read a text out of the vectors (access test)
failures       which tokens are wrong, and where
absorption     steps that each further token of a text takes, against its surprisal
stability      how similar solutions of one text are, and whether their vectors can be exchanged
robustness     the noise that vectors survive; what comes out in another dtype, batch, attention or in PyTorch

The metrics and `grow` are handed on here. The other names are imported from their modules, some of which share their
name.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `fitting`.
"""

from onestep_jax.analysis.growth import grow
from onestep_jax.analysis.metrics import THRESHOLD, bits, exact_horizon, horizon, reconstructed

__all__ = ["THRESHOLD", "bits", "exact_horizon", "grow", "horizon", "reconstructed"]

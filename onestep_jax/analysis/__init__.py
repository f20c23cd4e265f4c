"""Analyses of fitted proto-tokens: numbers from stored results; no plots.

metrics       horizons, nats and compression of stored results
capacity      the longest text that is reconstructed (Table 3, Figure 1)
prefix_table  fits of prefixes, texts × lengths, that a capacity is read from
distances     cosine distances of learned vectors: same text, same context, different contexts (Figure 6)
similarity    distances of the texts themselves, and learned vectors against them (Figure 5)
connectivity  straight lines and trained curves between solutions of one text (Figure 7, Eq. 4 and 5)
bezier        one such curve: its geometry and its training
trajectories  paths of the optimisation in their principal plane, and how far they went
attention     where a reconstruction looks, and what is left of it when e or m is replaced
access        whether autoregressive generation can read the vectors (access test)
failures      where and which tokens fail
absorption    what each further token of a text costs, against its surprisal
stability     how alike solutions of one text are, and whether their vectors can be exchanged

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `fitting`.
"""

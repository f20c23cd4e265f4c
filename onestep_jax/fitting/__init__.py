"""Finding proto-tokens for many texts: `fit`, engine, slots, optimisers, sizes, several processes.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`.
"""

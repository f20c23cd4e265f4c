"""The frozen language model: checkpoint, decoder in Flax, generation, likelihood, loss of a token.

May import `errors`, `tokens`, `devices`.
"""

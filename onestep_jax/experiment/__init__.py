"""What runs the recipe cards of `experiments/cards/`.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `fitting`.
"""

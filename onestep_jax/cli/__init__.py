"""The command `onestep`: one file per command.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `fitting`, `analysis`, `bench`,
`experiment`, `report`.
"""

from onestep_jax.cli.parser import main

__all__ = ["main"]

"""The command `onestep`: one file per command.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`, `texts`, `encoder`, `fitting`, `analysis`,
`bench`, `experiment`, `report`.
"""

from __future__ import annotations

from onestep_jax.cli.signals import end_by_signal

TYPE_CHECKING = False  # as in the package's __init__
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of this process; SIGINT and SIGTERM end it in one line from here on.

    Args:
      argv: the words after `onestep`; by default those of the process.

    Returns:
      The exit status, see `parser.main`; 130 and 143 where a signal ended the process.
    """
    end_by_signal()
    from onestep_jax.cli import parser  # takes seconds, as it imports JAX

    return parser.main(argv)

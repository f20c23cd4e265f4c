"""`python -m onestep_jax.cli`."""

import sys

from onestep_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())

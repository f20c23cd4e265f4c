"""Measure every case of `family_cases` against transformers and write docs/parity.md.

    python tests/support/parity_table.py

needs torch (`pip install -e .[parity]`) and takes about four minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import torch
import transformers
from closeness import TOLERANCE
from family_cases import CASES
from parity import POSITIONS, STD, TEXTS, Errors, build, measure, save

TABLE = Path(__file__).parents[2] / "docs" / "parity.md"
INTRO = f"""# Parity with transformers

Each row is one tiny checkpoint with random weights (standard deviation {STD}, norm scales about 1). It is made by
transformers, saved, and loaded here. Both then run forward and backward over the same {TEXTS} texts of {POSITIONS}
random input vectors, on a CPU. Errors are relative, ‖a − b‖ / ‖b‖, where b is transformers in float32:

* **embed**: error of the input vectors of all token ids, in float32 and in bfloat16; "exact" where all are equal bit
  for bit.
* **logits**, **hidden**, **gradient**: errors in float32, of the worst text. They are of the logits, of the hidden
  states (the worst layer), and of the gradient of a random combination of the logits with respect to the input
  vectors. The tests allow {TOLERANCE:.0e}.
* **bf16**: errors in bfloat16, of the median text. They are given for this package and, for comparison, for
  transformers itself ("theirs").

torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__}, jax {jax.__version__}. Written by
`python tests/support/parity_table.py`, which takes about four minutes. `tests/model/test_families_parity.py` checks the
same numbers. The options are those of `tests/support/family_cases.py`.
"""
HEADER = """\
| Family | Option | embed | logits | hidden | gradient | bf16 logits | theirs | bf16 gradient | theirs |
|---|---|---|---|---|---|---|---|---|---|
"""


def row(model_type: str, case: str, errors: Errors) -> str:
    exact = "exact" if errors.embed == 0 else f"{errors.embed:.1e}"
    float32 = (errors.logits, errors.hidden, errors.gradient)
    bfloat16 = (errors.bf16_logits, errors.torch_bf16_logits, errors.bf16_gradient, errors.torch_bf16_gradient)
    return " | ".join([f"| {model_type}", case, exact, *(f"{error:.1e}" for error in float32 + bfloat16)]) + " |\n"


def rows() -> Iterator[str]:
    for model_type, cases in CASES.items():
        for case, options in cases.items():
            theirs = build(model_type, options)
            with tempfile.TemporaryDirectory() as folder:
                yield row(model_type, case, measure(theirs, save(theirs, Path(folder))))


def main() -> None:
    TABLE.write_text(f"{INTRO}\n{HEADER}{''.join(rows())}", encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()

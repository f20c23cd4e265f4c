"""How close is close enough: one measure and one tolerance for every comparison with transformers."""

from __future__ import annotations

from typing import Any

import numpy as np

# Of ‖a − b‖ / ‖b‖ in float32. PyTorch's own float32 differs from its float64 by up to 1.3e-6 on models of this size.
TOLERANCE = 1e-5


def relative(a: Any, b: Any) -> float:
    """‖a − b‖ / ‖b‖ over all elements, in float64, of two arrays of one shape; NaN if either holds a NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"{a.shape} against {b.shape}"
    return float(np.linalg.norm((a - b).ravel()) / np.linalg.norm(b.ravel()))


def assert_close(a: Any, b: Any) -> None:
    """Fail unless `a` is within TOLERANCE of `b`; a NaN fails too."""
    error = relative(a, b)
    assert error <= TOLERANCE, f"relative difference {error:.2e}, at most {TOLERANCE:.0e} is allowed"

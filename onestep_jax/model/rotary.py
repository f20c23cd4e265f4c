"""Rotary position embedding: the frequency of each pair of channels, and the turn."""

from __future__ import annotations

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.model.config import Rope

Array: TypeAlias = jax.Array


def rotated_channels(rope: Rope, head_dim: int) -> int:
    """How many of a head's channels turn."""
    return int(head_dim * rope.fraction)


def rope_frequencies(rope: Rope, head_dim: int, reach: int = 0) -> np.ndarray:
    """Angular frequency of each rotated pair, radians per position, shape (rotated channels / 2,), float32.

    Args:
      rope: the kind of embedding and its numbers.
      head_dim: width of a head (C).
      reach: positions of the whole input; "longrope" takes other factors beyond its original context.

    The "llama3" ramp follows the reference of Llama 3.1: wavelengths above original_context / low_freq_factor are
    stretched by `factor`, those below original_context / high_freq_factor are kept, those between are blended. The
    ramp of "yarn" (arXiv:2309.00071, section 3.2) has the same ends but is linear in the number of the pair.
    """
    channels = rotated_channels(rope, head_dim)
    exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    inverse = (1.0 / (rope.theta**exponents)).astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
    if rope.kind == "longrope":
        factors = rope.long_factors if reach > rope.original_context else rope.short_factors
        return inverse / np.asarray(factors, np.float32)
    if rope.kind in ("llama3", "yarn"):
        kept = _yarn_ramp(rope, channels) if rope.kind == "yarn" else _llama3_ramp(rope, inverse)
        return (kept * inverse + (1 - kept) * inverse / rope.factor).astype(np.float32)
    assert rope.kind == "default", rope.kind
    return inverse


def _llama3_ramp(rope: Rope, inverse: np.ndarray) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is divided by `factor`."""
    turns = rope.original_context * inverse / (2 * math.pi)
    return np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)


def _yarn_ramp(rope: Rope, channels: int) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is divided by `factor`."""

    def pair(turns: float) -> float:
        """The (fractional) pair that makes so many turns within the original context."""
        return channels * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(rope.high_freq_factor), pair(rope.low_freq_factor)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, channels - 1)
    last += 0.001 if first == last else 0.0
    return 1 - np.clip((np.arange(channels // 2, dtype=np.float32) - first) / (last - first), 0.0, 1.0)


def rotate(x_HTC: Array, positions_T: Array, frequencies: np.ndarray, magnitude: float = 1.0) -> Array:
    """Turn each pair (i, i + R/2) of the first R channels by position × frequency; R is twice the frequencies.

    float32 inside, dtype of `x` outside.
    """
    pairs = len(frequencies)
    angles_TC = positions_T[:, None].astype(jnp.float32) * frequencies[None, :]
    cos, sin = magnitude * jnp.cos(angles_TC)[None], magnitude * jnp.sin(angles_TC)[None]
    x32 = x_HTC.astype(jnp.float32)
    first, second, rest = x32[..., :pairs], x32[..., pairs : 2 * pairs], x32[..., 2 * pairs :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest] if rest.size else turned, axis=-1).astype(x_HTC.dtype)

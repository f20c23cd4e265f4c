"""Rotary position embedding (RoFormer, arXiv:2104.09864): the frequency of each pair of channels, and the rotation."""

from __future__ import annotations

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.model.config import Rope

Array: TypeAlias = jax.Array


def rotated_channels(rope: Rope, head_dim: int) -> int:
    """How many of a head's channels are rotated."""
    return int(head_dim * rope.fraction)


def rope_frequencies(rope: Rope, head_dim: int, reach: int = 0) -> np.ndarray:
    """Angular frequency of each rotated pair, radians per position, shape (rotated channels / 2,), float32.

    Args:
      rope: the kind of embedding and its numbers.
      head_dim: width of a head (C).
      reach: positions of the whole input; "longrope" has other factors beyond its original context.

    Sources: "linear" is position interpolation (arXiv:2306.15595), "longrope" is arXiv:2402.13753, "llama3" follows the
    reference code of Llama 3.1, and "yarn" is "NTK by parts" (arXiv:2309.00071, section 3.2). The last two keep short
    wavelengths, stretch long ones by `factor` and blend those between.
    """
    channels = rotated_channels(rope, head_dim)
    # θ_i = theta^(−2i / R) for pair i of R rotated channels.
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
    """1 where a frequency is kept, 0 where it is divided by `factor`: linear in the frequency between the ends."""
    # Turns of a pair within the original context, that is context / wavelength: kept above high_freq_factor turns.
    turns = rope.original_context * inverse / (2 * math.pi)
    return np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)


def _yarn_ramp(rope: Rope, channels: int) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is divided by `factor`: linear in the pair's number between the ends."""

    def pair(turns: float) -> float:
        """The (fractional) number of the pair that makes so many turns within the original context."""
        # turns = context · theta^(−2i / R) / 2π, solved for i.
        return channels * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(rope.high_freq_factor), pair(rope.low_freq_factor)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, channels - 1)
    last += 0.001 if first == last else 0.0  # no division by zero, as in the authors' code
    return 1 - np.clip((np.arange(channels // 2, dtype=np.float32) - first) / (last - first), 0.0, 1.0)


def rotate(x_HTC: Array, positions_T: Array, frequencies: np.ndarray, magnitude: float = 1.0) -> Array:
    """Rotate each pair of channels by the angle position × frequency; float32 inside, returned in the dtype of `x`.

    Channels i and i + R/2 are a pair, where R is twice the number of frequencies; channels beyond R stay as they are.
    RoFormer pairs neighbours, 2i and 2i + 1; checkpoints in the format of transformers have their channels reordered.

    Args:
      x_HTC: queries or keys.
      positions_T: position of each row.
      frequencies: of `rope_frequencies`, (R/2,) radians per position.
      magnitude: factor of the rotated channels.
    """
    pairs = len(frequencies)
    angles_TC = positions_T[:, None].astype(jnp.float32) * frequencies[None, :]
    cos, sin = magnitude * jnp.cos(angles_TC)[None], magnitude * jnp.sin(angles_TC)[None]
    x32 = x_HTC.astype(jnp.float32)
    first, second, rest = x32[..., :pairs], x32[..., pairs : 2 * pairs], x32[..., 2 * pairs :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest] if rest.size else turned, axis=-1).astype(x_HTC.dtype)

"""Settings as frozen values, parsed strictly: an unknown key is an error that names the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that a person can put right; the command line prints it as one line and exits with status 2."""


class Interrupted(Exception):
    """A fit was told to stop; its state is saved and the same call goes on from there."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint " (did you mean 'x'?)" for a mistyped name, or an empty string if nothing known is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first name in `given` that is not in `known`, naming the nearest.

    Raises:
      UserError: for an unknown name.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: "default", "linear" (positions divided by `factor`) or "llama3" (long wavelengths
        stretched by `factor`, short ones kept, a ramp between; Llama 3.1 and later).
      factor: stretch of the context.
      low_freq_factor, high_freq_factor: ends of the ramp ("llama3" only).
      original_context: context length before stretching, in tokens ("llama3" only).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a decoder is, in our own names; `families` translates a checkpoint's config.json into it.

    Attributes:
      family: key in `families.FAMILIES`.
      vocab_size: rows of the embedding table (V).
      width: residual width (D); also the width of an input vector for every family known so far.
      layers: number of blocks (L).
      heads, kv_heads, head_dim: query heads (H), key/value heads (K), width of one head (C).
      ffn: feed-forward width (F).
      context: longest input in positions.
      norm_eps: added under the square root of a norm.
      tied: the output head is the transposed embedding table.
      attention_bias, mlp_bias: biases in the projections.
      activation: gate of the feed-forward, a key of `layers.ACTIVATIONS`.
      rope: rotary position embedding.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    norm_eps: float
    tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    rope: Rope = Rope()

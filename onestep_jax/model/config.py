"""What a decoder is, as frozen values that its Flax module and its weight table are made from."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: "default"; "linear" (positions divided by `factor`); "llama3" and "yarn" (long wavelengths stretched by
        `factor`, short ones kept, a ramp between); "longrope" (each frequency divided by a factor of its own).
      fraction: share of a head's channels that turn, its first ones.
      magnitude: factor of the cosines and sines ("yarn" and "longrope").
      factor: stretch of the context.
      low_freq_factor, high_freq_factor: ends of the ramp, in turns within the original context ("llama3", "yarn").
      original_context: context length before stretching, in tokens ("llama3", "yarn" and "longrope").
      truncate: the ends of the ramp are rounded outwards to whole pairs ("yarn").
      short_factors, long_factors: of inputs within the original context and beyond it ("longrope").
    """

    theta: float = 10000.0
    kind: str = "default"
    fraction: float = 1.0
    magnitude: float = 1.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layer:
    """What may differ from one block to the next.

    Attributes:
      rope: rotary positions, None for none.
      window: how many positions a position sees, itself among them; None for all before it.
      scale: factor of the attention scores, None for 1 / sqrt(C).
    """

    rope: Rope | None = Rope()
    window: int | None = None
    scale: float | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a decoder is, in our own names; `families` translates a checkpoint's config.json into it.

    Attributes:
      family: key in `families.FAMILIES`.
      vocab_size: rows of the embedding table (V).
      width: residual width (D).
      layers: number of blocks (L).
      heads, kv_heads, head_dim: query heads (H), key/value heads (K), width of one head (C).
      ffn: feed-forward width (F).
      context: longest input in positions.
      norm_eps: added under the square root of a norm.
      tied: the output head is the embedding table.
      embed_width: width of an input vector where it is projected to the residual width, else None.
      embed_scale: factor of a token's row of the embedding table; input vectors are what comes after it.
      position_rows: rows of a learned position table, None if there is none.
      position_offset: row of the first position.
      pattern: block i is pattern[i % len(pattern)].
      norm: a key of `layers.NORMS`.
      norm_at: "input" of attention and feed-forward, their "output", "both", or the "sum" with the residual.
      final_norm: a norm follows the last block.
      parallel: attention and feed-forward read the same residual.
      qkv_bias, out_bias, mlp_bias: biases of the projections.
      qk_norm: queries and keys are normed by "head", "all" heads together, or None.
      clip_qkv: limit of the absolute value of queries, keys and values.
      score_cap, logit_cap: scores and logits are cap · tanh(x / cap).
      gated: the feed-forward has a gate.
      activation: of the feed-forward, a key of `layers.ACTIVATIONS`.
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
    embed_width: int | None = None
    embed_scale: float = 1.0
    position_rows: int | None = None
    position_offset: int = 0
    pattern: tuple[Layer, ...] = (Layer(),)
    norm: str = "rms"
    norm_at: str = "input"
    final_norm: bool = True
    parallel: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str | None = None
    clip_qkv: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    gated: bool = True
    activation: str = "silu"

    def layer(self, i: int) -> Layer:
        """What block i is."""
        return self.pattern[i % len(self.pattern)]

    @property
    def boundary(self) -> int | None:
        """Positions up to which rotary positions are those of short texts ("longrope"); None if they never change."""
        ropes = (layer.rope for layer in self.pattern if layer.rope is not None)
        return next((rope.original_context for rope in ropes if rope.kind == "longrope"), None)


def stated(settings: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass that differ from their defaults, by name; new fields leave it as it was."""
    fields = dataclasses.fields(settings)
    return {f.name: getattr(settings, f.name) for f in fields if getattr(settings, f.name) != f.default}

"""The parts of a decoder block, each written for one text.

Dimension letters are those of `model`. Weights may be float32 or bfloat16 and activations follow them; rotary angles,
norms and the softmax are computed in float32 because their rounding errors would be shared by a whole row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.config import ModelConfig, Rope

Array: TypeAlias = jax.Array
DotGeneral: TypeAlias = Callable[..., Array]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": nn.silu}


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Angular frequency of each rotated pair, radians per position, shape (C/2,), float32.

    The "llama3" ramp follows the reference of Llama 3.1: wavelengths above original_context / low_freq_factor are
    stretched by `factor`, those below original_context / high_freq_factor are kept, those between are blended.
    """
    inverse = 1.0 / (rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)))
    inverse = inverse.astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
    if rope.kind == "llama3":
        turns = rope.original_context * inverse / (2 * math.pi)
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        kept = np.clip(ramp, 0.0, 1.0)
        return (kept * inverse + (1 - kept) * inverse / rope.factor).astype(np.float32)
    assert rope.kind == "default", rope.kind
    return inverse


def rotate(x_HTC: Array, positions_T: Array, frequencies: np.ndarray) -> Array:
    """Turn each pair (i, i + C/2) of a head by position × frequency; float32 inside, dtype of `x` outside."""
    angles_TC = positions_T[:, None].astype(jnp.float32) * frequencies[None, :]
    cos, sin = jnp.cos(angles_TC)[None], jnp.sin(angles_TC)[None]
    first, second = jnp.split(x_HTC.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_HTC.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · scale, in float32, returned in the dtype of `x`."""

    eps: float

    @nn.compact
    def __call__(self, x_TD: Array) -> Array:
        scale_D = self.param("scale", nn.initializers.ones, (x_TD.shape[-1],))
        x32 = x_TD.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x_TD.dtype) * scale_D.astype(x_TD.dtype)[None, :]


class Attention(nn.Module):
    """Causal grouped-query self-attention with rotary positions."""

    config: ModelConfig
    dot_general: DotGeneral = jax.lax.dot_general

    @nn.compact
    def __call__(self, x_TD: Array) -> Array:
        c = self.config
        T, D = x_TD.shape

        def project(x: Array, features: int, name: str) -> Array:
            return nn.Dense(features, c.attention_bias, dot_general=self.dot_general, kernel_init=INIT, name=name)(x)

        def heads(count: int, name: str) -> Array:
            return project(x_TD, count * c.head_dim, name).reshape(T, count, c.head_dim).swapaxes(0, 1)

        frequencies, positions_T = rope_frequencies(c.rope, c.head_dim), jnp.arange(T)
        q_HTC = rotate(heads(c.heads, "q"), positions_T, frequencies)
        k_KSC = rotate(heads(c.kv_heads, "k"), positions_T, frequencies)
        v_KSC = heads(c.kv_heads, "v")

        # Heads lead and the queries that share a key head are stacked along T: plain batched matrix products.
        q_KTC = q_HTC.reshape(c.kv_heads, -1, c.head_dim)
        scores_KTS = jnp.einsum("ktc,ksc->kts", q_KTC, k_KSC, preferred_element_type=jnp.float32)
        scores_HTS = scores_KTS.reshape(c.heads, T, T) / math.sqrt(c.head_dim)
        causal_1TS = (positions_T[:, None] >= positions_T[None, :])[None]
        weights_HTS = jax.nn.softmax(jnp.where(causal_1TS, scores_HTS, -jnp.inf), axis=-1)
        self.sow("intermediates", "attention", weights_HTS)
        weights_KTS = weights_HTS.astype(x_TD.dtype).reshape(c.kv_heads, -1, T)
        mixed_HTC = jnp.einsum("kts,ksc->ktc", weights_KTS, v_KSC).reshape(c.heads, T, c.head_dim)
        return project(mixed_HTC.swapaxes(0, 1).reshape(T, -1), D, "o")


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x))."""

    config: ModelConfig
    dot_general: DotGeneral = jax.lax.dot_general

    @nn.compact
    def __call__(self, x_TD: Array) -> Array:
        c = self.config

        def project(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, c.mlp_bias, dot_general=self.dot_general, kernel_init=INIT, name=name)

        gated_TF = ACTIVATIONS[c.activation](project(c.ffn, "gate")(x_TD)) * project(c.ffn, "up")(x_TD)
        return project(c.width, "down")(gated_TF)


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    config: ModelConfig
    dot_general: DotGeneral = jax.lax.dot_general

    @nn.compact
    def __call__(self, x_TD: Array) -> Array:
        eps = self.config.norm_eps
        x_TD = x_TD + Attention(self.config, self.dot_general, name="attention")(RMSNorm(eps, name="norm_1")(x_TD))
        return x_TD + GatedMLP(self.config, self.dot_general, name="mlp")(RMSNorm(eps, name="norm_2")(x_TD))


INIT: Any = nn.initializers.normal(0.02)

"""The parts of a decoder block, each written for one text.

Dimension letters are those of `decoder`. Weights may be float32 or bfloat16, and activations have the same dtype.
Rotary angles, norms and the softmax are computed in float32, because a whole row would share their rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from onestep_jax.devices.weight_split import by_heads, settle
from onestep_jax.model.config import Layer, ModelConfig
from onestep_jax.model.fused_attention import KERNELS
from onestep_jax.model.rotary import rope_frequencies, rotate

Array: TypeAlias = jax.Array
DotGeneral: TypeAlias = Callable[..., Array]

INIT: Any = nn.initializers.normal(0.02)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


class NormKind(NamedTuple):
    """A kind of norm.

    Attributes:
      centred: whether the mean is subtracted.
      scaled, biased: whether it has learned scales and biases.
      offset: added to a stored scale.
    """

    centred: bool
    scaled: bool
    biased: bool
    offset: float = 0.0


NORMS = {
    "rms": NormKind(centred=False, scaled=True, biased=False),
    "rms_plus_one": NormKind(centred=False, scaled=True, biased=False, offset=1.0),
    "layer": NormKind(centred=True, scaled=True, biased=True),
    "layer_plain": NormKind(centred=True, scaled=False, biased=False),
}


class Norm(nn.Module):
    """x / sqrt(mean(x²) + eps) · scale + bias over the last axis; float32 inside, returned in the dtype of `x`."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kind, width = NORMS[self.kind], x.shape[-1:]
        x32 = x.astype(jnp.float32)
        if kind.centred:
            x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + float(self.eps))
        shape = (1,) * (x.ndim - 1) + width
        if kind.scaled:
            scale = self.param("scale", nn.initializers.constant(1.0 - kind.offset), width)
            normed = normed * (kind.offset + scale.astype(jnp.float32)).reshape(shape)
        if kind.biased:
            normed = normed + self.param("bias", nn.initializers.zeros, width).astype(jnp.float32).reshape(shape)
        return normed.astype(x.dtype)


class Linear(nn.Module):
    """x · kernelᵀ + bias; the kernel is (out, in), as in checkpoints, and `kv_heads` as in `weight_split.settle`.

    If the variable collection "adapters" holds "down" (rank, in) and "up" (out, rank), x · downᵀ · upᵀ is added (LoRA,
    arXiv:2106.09685).
    """

    features: int
    use_bias: bool = False
    kv_heads: int = 1
    dot_general: DotGeneral = jax.lax.dot_general

    @nn.compact
    def __call__(self, x_TD: Array) -> Array:
        kernel = self.param("kernel", INIT, (self.features, x_TD.shape[-1]))
        y = settle(matmul_transposed(x_TD, kernel, self.dot_general), self.name, self.kv_heads)
        if self.has_variable("adapters", "down"):
            down, up = (self.get_variable("adapters", name) for name in ("down", "up"))
            low_TR = matmul_transposed(x_TD, down, self.dot_general)
            y = y + matmul_transposed(low_TR, up, self.dot_general).astype(y.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)[None, :]
        return y


def matmul_transposed(x_TD: Array, kernel_FD: Array, dot_general: DotGeneral = jax.lax.dot_general) -> Array:
    """(T, D) and (F, D) → (T, F)."""
    return dot_general(*promote_dtype(x_TD, kernel_FD), (((1,), (1,)), ((), ())))


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap · tanh(x / cap), or x if there is no cap."""
    return x if cap is None else float(cap) * jnp.tanh(x / float(cap))


class Attention(nn.Module):
    """Causal grouped-query self-attention.

    If the variable collection "cache" holds "k" and "v", each (K, S, C), the new keys and values are written over its
    rows from `start` on, and a query attends to all rows up to its own position. The collection keeps them where it is
    mutable. Without a cache, `start` is 0.

    If the collection "masks" holds "seen", (T, S), a query attends to no row where it is false, on top of the causal
    mask and of the window.

    A `kernel` other than "plain" stores neither scores nor attention weights, so the weights cannot be recorded. Cached
    rows, and those behind such a mask, are always attended to plainly.
    """

    config: ModelConfig
    layer: Layer
    dot_general: DotGeneral = jax.lax.dot_general
    kernel: str = "plain"

    @nn.compact
    def __call__(self, x_TD: Array, start: Array | int = 0) -> Array:
        c, T = self.config, x_TD.shape[0]
        q_HTC, k_KSC, v_KSC = self.heads(x_TD, start)
        if self.kernel == "plain" or self.has_variable("cache", "k") or self.has_variable("masks", "seen"):
            k_KSC, v_KSC = self.remember("k", k_KSC, start), self.remember("v", v_KSC, start)
            mixed_HTC = self.mix(q_HTC, k_KSC, v_KSC, start)
        else:
            mixed_HTC = self.mix_fused(q_HTC, k_KSC, v_KSC)
        mixed_TD = mixed_HTC.swapaxes(0, 1).reshape(T, -1)
        return Linear(x_TD.shape[1], c.out_bias, c.kv_heads, self.dot_general, name="o")(mixed_TD)

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return 1 / math.sqrt(self.config.head_dim) if self.layer.scale is None else self.layer.scale

    def mix(self, q_HTC: Array, k_KSC: Array, v_KSC: Array, start: Array | int) -> Array:
        """Values mixed by the attention weights, (H, T, C)."""
        c, T, S = self.config, q_HTC.shape[1], k_KSC.shape[1]
        # Grouped-query attention as one batched matrix product for each key head: the queries of the heads that share
        # it are stacked along T. Scores are summed in float32 even where the products are of bfloat16.
        q_KTC = q_HTC.reshape(c.kv_heads, -1, c.head_dim)
        scores_KTS = jnp.einsum("ktc,ksc->kts", q_KTC, k_KSC, preferred_element_type=jnp.float32)
        scores_HTS = soft_cap(scores_KTS.reshape(c.heads, T, S) * self.scale, c.score_cap)
        # A row of the cache that is not written yet lies beyond every query, so the causal mask hides it.
        distance_TS = start + jnp.arange(T)[:, None] - jnp.arange(S)[None, :]
        seen_TS = distance_TS >= 0
        if self.layer.window is not None:
            seen_TS &= distance_TS < self.layer.window
        if self.has_variable("masks", "seen"):
            seen_TS &= self.get_variable("masks", "seen")
        weights_HTS = jax.nn.softmax(jnp.where(seen_TS[None], scores_HTS, -jnp.inf), axis=-1)
        self.sow("intermediates", "attention", weights_HTS)

        weights_KTS = weights_HTS.astype(q_HTC.dtype).reshape(c.kv_heads, -1, S)
        return jnp.einsum("kts,ksc->ktc", weights_KTS, v_KSC).reshape(c.heads, T, c.head_dim)

    def mix_fused(self, q_HTC: Array, k_KTC: Array, v_KTC: Array) -> Array:
        """The same by one fused kernel, run by each device of a mesh on its own heads."""
        attend = partial(
            KERNELS[self.kernel].attend, scale=self.scale, window=self.layer.window, cap=self.config.score_cap
        )
        return by_heads(attend, self.config.kv_heads)(q_HTC, k_KTC, v_KTC)

    def heads(self, x_TD: Array, start: Array | int) -> tuple[Array, Array, Array]:
        """Queries (H, T, C), keys and values (K, T, C): projected, clipped, normed and rotated."""
        c, T = self.config, x_TD.shape[0]
        made: dict[str, Array] = {}
        for name, count in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
            y = Linear(count * c.head_dim, c.qkv_bias, c.kv_heads, self.dot_general, name=name)(x_TD)
            if c.clip_qkv is not None:
                y = jnp.clip(y, -float(c.clip_qkv), float(c.clip_qkv))
            normed = c.qk_norm if name != "v" else None
            norm = Norm(c.norm, c.norm_eps, name=f"{name}_norm") if normed else None
            y = norm(y) if norm and normed == "all" else y
            y = y.reshape(T, count, c.head_dim).swapaxes(0, 1)
            made[name] = norm(y) if norm and normed == "head" else y
        if (rope := self.layer.rope) is not None:
            # "longrope" chooses its factors by the length of the whole input, which with a cache is the cache's length.
            reach = self.get_variable("cache", "k").shape[1] if self.has_variable("cache", "k") else T
            frequencies = rope_frequencies(rope, c.head_dim, reach)
            for name in "qk":
                made[name] = rotate(made[name], start + jnp.arange(T), frequencies, rope.magnitude)
        return made["q"], made["k"], made["v"]

    def remember(self, name: str, new_KTC: Array, start: Array | int) -> Array:
        """The rows of the cache (K, S, C) with the new rows written in; the new rows alone if there is no cache."""
        if not self.has_variable("cache", name):
            return new_KTC
        kept_KSC = self.get_variable("cache", name)
        kept_KSC = jax.lax.dynamic_update_slice(kept_KSC, new_KTC.astype(kept_KSC.dtype), (0, start, 0))
        if self.is_mutable_collection("cache"):
            self.put_variable("cache", name, kept_KSC)
        return kept_KSC


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))) without a gate."""

    config: ModelConfig
    dot_general: DotGeneral = jax.lax.dot_general

    @nn.compact
    def __call__(self, x_TD: Array) -> Array:
        c, act = self.config, ACTIVATIONS[self.config.activation]

        def project(features: int, name: str) -> Linear:
            return Linear(features, c.mlp_bias, c.kv_heads, self.dot_general, name=name)

        gate_TF = project(c.ffn, "gate")(x_TD) if c.gated else None
        up_TF = project(c.ffn, "up")(x_TD)
        return project(x_TD.shape[1], "down")(act(up_TF) if gate_TF is None else act(gate_TF) * up_TF)


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual; the norms stand where `norm_at` says."""

    config: ModelConfig
    layer: Layer
    dot_general: DotGeneral = jax.lax.dot_general
    kernel: str = "plain"

    def setup(self) -> None:
        c, at = self.config, self.config.norm_at
        self.attention = Attention(c, self.layer, dot_general=self.dot_general, kernel=self.kernel)
        self.mlp = MLP(c, dot_general=self.dot_general)
        self.norm_1, self.norm_2 = Norm(c.norm, c.norm_eps), Norm(c.norm, c.norm_eps)
        if at == "both":
            self.norm_1_out, self.norm_2_out = Norm(c.norm, c.norm_eps), Norm(c.norm, c.norm_eps)

    def __call__(self, x_TD: Array, start: Array | int = 0) -> Array:
        attend = partial(self.attention, start=start)
        if self.config.parallel:
            return x_TD + attend(self.norm_1(x_TD)) + self.mlp(self.norm_2(x_TD))
        at = self.config.norm_at
        if at == "both":
            x_TD = x_TD + self.norm_1_out(attend(self.norm_1(x_TD)))
            return x_TD + self.norm_2_out(self.mlp(self.norm_2(x_TD)))
        for part, norm in ((attend, self.norm_1), (self.mlp, self.norm_2)):
            if at == "input":
                x_TD = x_TD + part(norm(x_TD))
            elif at == "output":
                x_TD = x_TD + norm(part(x_TD))
            else:
                x_TD = norm(x_TD + part(x_TD))
        return x_TD

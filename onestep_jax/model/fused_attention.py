"""Attention by fused kernels, which store neither scores nor weights.

Each takes the queries (H, T, C), keys and values (K, T, C) of one text and gives (H, T, C): causal attention with
scores multiplied by `scale`, capped at `cap` and seen over `window` positions. Rounding differs from that of the
products written out in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Array: TypeAlias = jax.Array

# What TPUs tile by, and the blocks of a text that splash may take at a time, the greatest that divides it first.
LANES = 128
BLOCKS = (512, 384, 256, LANES)


class Kernel(NamedTuple):
    """Where a kernel runs (`jax.Device.platform`), and the function."""

    platform: str
    attend: Callable[..., Array]


def cudnn(
    q_HTC: Array,
    k_KTC: Array,
    v_KTC: Array,
    *,
    scale: float,
    window: int | None,
    cap: float | None,
    implementation: Any = "cudnn",
) -> Array:
    """By NVIDIA's library, in bfloat16; its backward pass may add in another order each time.

    Raises:
      NotImplementedError: where scores are capped.
    """
    if cap is not None:
        raise NotImplementedError("cuDNN's kernel does not cap attention scores, as this model does")
    seen = None if window is None else (window - 1, 0)
    how: dict[str, Any] = {"scale": scale, "is_causal": True, "local_window_size": seen}
    q_THC, k_TKC, v_TKC = (x.swapaxes(0, 1) for x in (q_HTC, k_KTC, v_KTC))
    return jax.nn.dot_product_attention(q_THC, k_TKC, v_TKC, implementation=implementation, **how).swapaxes(0, 1)


def splash(
    q_HTC: Array,
    k_KTC: Array,
    v_KTC: Array,
    *,
    scale: float,
    window: int | None,
    cap: float | None,
    interpret: bool = False,
) -> Array:
    """By JAX's kernel for TPUs, over the text padded to a multiple of 128 positions."""
    # Imported here because nobody without a TPU should depend on it.
    from jax.experimental.pallas.ops.tpu import splash_attention

    heads, positions, _ = q_HTC.shape
    padded = positions + -positions % LANES
    q_HTC = q_HTC * jnp.asarray(scale, q_HTC.dtype)
    q_HTC, k_KTC, v_KTC = (jnp.pad(x, ((0, 0), (0, padded - positions), (0, 0))) for x in (q_HTC, k_KTC, v_KTC))
    square = (padded, padded)
    causal = splash_attention.CausalMask(square)
    mask = causal if window is None else splash_attention.LocalMask(square, (window - 1, 0), 0)
    block = next(size for size in BLOCKS if padded % size == 0)
    blocks = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    attend: Any = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(**dict.fromkeys(blocks, block)),
        attn_logits_soft_cap=cap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return attend(q_HTC, k_KTC, v_KTC)[:, :positions]


KERNELS = {"cudnn": Kernel("gpu", cudnn), "splash": Kernel("tpu", splash)}

"""Attention by fused kernels, which store neither scores nor weights.

Each kernel takes the queries (H, T, C), keys and values (K, T, C) of one text and returns (H, T, C): causal attention
whose scores are multiplied by `scale` and then capped at `cap`, over the last `window` positions. It rounds differently
from the products written out in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Array: TypeAlias = jax.Array

LANES = 128  # positions in a tile of a TPU
BLOCKS = (512, 384, 256, LANES)  # positions that splash may take at a time; the first that divides the text is used


class Kernel(NamedTuple):
    """A kernel.

    Attributes:
      platform: where it runs, as `jax.Device.platform` says it.
      attend: the function.
    """

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
    """Attention by NVIDIA's cuDNN, in bfloat16.

    Its backward pass may add in another order each time, so gradients are not the same to the last bit.

    Raises:
      NotImplementedError: if scores are capped.
    """
    if cap is not None:
        raise NotImplementedError("cuDNN's kernel does not cap attention scores, as this model does")
    q_THC, k_TKC, v_TKC = (x.swapaxes(0, 1) for x in (q_HTC, k_KTC, v_KTC))
    mixed_THC = jax.nn.dot_product_attention(
        q_THC,
        k_TKC,
        v_TKC,
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    return mixed_THC.swapaxes(0, 1)


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
    """Attention by JAX's splash kernel for TPUs, over the text padded to a multiple of 128 positions."""
    # Imported here, since the module is experimental and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu import splash_attention

    heads, positions, _ = q_HTC.shape
    padded = positions + -positions % LANES
    q_HTC = q_HTC * jnp.asarray(scale, q_HTC.dtype)  # the kernel has no scale of its own
    # Padding follows the text, so the causal mask hides it from every real query.
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


KERNELS = {"cudnn": Kernel(platform="gpu", attend=cudnn), "splash": Kernel(platform="tpu", attend=splash)}

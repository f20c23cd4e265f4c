"""The tensors of a GGUF file as those of a Hugging Face checkpoint.

What llama.cpp's converter (convert_hf_to_gguf.py) did to them is undone.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from onestep_jax.model.gguf.files import GgufTensor, Header, check_kinds, read_header
from onestep_jax.model.gguf.layouts import FREQUENCIES, LONG, SHORT, Layout, layout_of

_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<part>\w+)\.(?P<leaf>weight|bias)")


def gguf_tensors(path: Path) -> list[GgufTensor]:
    """The tensors of a file by their names in the checkpoint; those that hold settings, not weights, are left out.

    A name that the architecture does not have stays as it is in the file.

    Raises:
      UserError: see `gguf_config`, and for blocks that cannot be dequantised.
    """
    header = read_header(path)
    layout = layout_of(header)
    check_kinds(header)
    settings = (FREQUENCIES, SHORT, LONG)
    return [_renamed(tensor, header, layout) for name, tensor in header.tensors.items() if name not in settings]


def _renamed(tensor: GgufTensor, header: Header, layout: Layout) -> GgufTensor:
    """A tensor by its name in the checkpoint, with what llama.cpp's converter did to it undone."""
    found = _NAME.fullmatch(tensor.name)
    if found is None or found["part"] not in layout.names:
        return tensor
    part, block = found["part"], "" if found["block"] is None else f"{layout.block}.{found['block']}."
    tensor = tensor._replace(name=f"{block}{layout.names[part]}.{found['leaf']}")
    if layout.model_type == "llama" and part in ("attn_q", "attn_k"):
        settings = header.settings()
        heads = settings["attention.head_count"]
        heads = heads if part == "attn_q" else settings.get("attention.head_count_kv", heads)
        return tensor._replace(change=partial(_halves, heads=heads))
    if layout.model_type.startswith("gemma") and part.endswith("norm"):
        return tensor._replace(change=_minus_one)
    if layout.model_type == "gpt2" and len(tensor.stored) == 2 and block:
        return tensor._replace(change=np.transpose, shape=tensor.stored[::-1])
    return tensor


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs as llama.cpp's "llama" has them, side by side, → as transformers has them, half a head apart."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _minus_one(scale: np.ndarray) -> np.ndarray:
    """The weight w of a norm that multiplies by 1 + w; the file has 1 + w."""
    return scale - np.float32(1)

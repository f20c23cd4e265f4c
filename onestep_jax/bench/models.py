"""Models to measure: checkpoints, and random weights of published shapes, for us and for PyTorch."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from onestep_jax.bench.shapes import PREFIX, SHAPES
from onestep_jax.errors import UserError, check_known
from onestep_jax.model.checkpoint import DTYPES, default_dtype, load_model
from onestep_jax.model.decoder import Model, parameter_shapes
from onestep_jax.model.families import read_config
from onestep_jax.model.hub import locate

STD = 0.02


def subject(source: str, dtype: str | None = None) -> Model:
    """A model by folder, hub id or "default", or with random weights by "shape:NAME" of `SHAPES`.

    Raises:
      UserError: for an unknown shape or dtype; as `load_model`.
    """
    if not source.startswith(PREFIX):
        return load_model(source, dtype=dtype)
    dtype = dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    described = _shape(source)
    _, config = read_config(described)
    weights = {
        path: STD * jax.random.normal(jax.random.fold_in(jax.random.key(0), i), shape, DTYPES[dtype])
        for i, (path, shape) in enumerate(parameter_shapes(config).items())
    }
    return Model(config, unflatten_dict(weights, sep="/"), None, source, source, described)


def torch_subject(source: str, dtype: str, device: str) -> Any:
    """The same for PyTorch: transformers' model with scaled-dot-product attention, frozen.

    Raises:
      UserError: where torch is not installed; for an unknown shape.
    """
    torch = import_torch()
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    how: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    if source.startswith(PREFIX):
        described = _shape(source)
        config = CONFIG_MAPPING[described["model_type"]].from_dict(described)
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(config, **how)
    else:
        model = AutoModelForCausalLM.from_pretrained(locate(source), trust_remote_code=False, **how)
    return model.to(device).eval().requires_grad_(False)


def _shape(source: str) -> dict[str, Any]:
    name = source.removeprefix(PREFIX)
    check_known("shape", [name], SHAPES)
    return SHAPES[name]


def import_torch() -> Any:
    """torch, or a line that says how to have it."""
    try:
        import torch
    except ImportError as error:
        cure = "pip install torch, or leave PyTorch out with --no-torch"
        raise UserError(f"the PyTorch reference needs torch ({error}); {cure}") from error
    return torch


def bytes_of(model: Model) -> int:
    """Bytes of the weights."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))

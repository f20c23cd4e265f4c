"""Models to measure: checkpoints, and random weights of published shapes, for us and for PyTorch."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from onestep_jax.bench.shapes import PREFIX, SHAPES
from onestep_jax.errors import UserError, check_known
from onestep_jax.model import pytorch, untrained
from onestep_jax.model.checkpoint import DTYPES, default_dtype, default_scan
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Model, parameter_shapes
from onestep_jax.model.families import read_config
from onestep_jax.model.gguf import is_gguf
from onestep_jax.model.hub import locate
from onestep_jax.model.pytorch import frozen, load_torch
from onestep_jax.model.stacked import stack_layers
from onestep_jax.model.untrained import load_any

STD = 0.02


def subject(source: str, dtype: str | None = None) -> Model:
    """Load a model to measure, or make one with random weights.

    Args:
      source: as of `load_model` or `load_untrained`; or "shape:NAME" for random weights of that shape of `SHAPES`.
      dtype: of the weights, see `load_model`.

    Raises:
      UserError: for an unknown shape or dtype; see also `load_model`.
    """
    if not source.startswith(PREFIX):
        return load_any(source, dtype=dtype)
    dtype = dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    described = _shape(source)
    config = architecture(source)
    weights = {
        path: STD * jax.random.normal(jax.random.fold_in(jax.random.key(0), i), shape, DTYPES[dtype])
        for i, (path, shape) in enumerate(parameter_shapes(config).items())
    }
    params = unflatten_dict(weights, sep="/")
    return Model(
        config,
        params=stack_layers(config, params) if default_scan() else params,
        tokenizer=None,
        source=source,
        fingerprint=source,
        described=described,
    )


def architecture(source: str) -> ModelConfig:
    """The architecture of `subject(source)`; no weight is read.

    Raises:
      UserError: for an unknown shape, or a source that cannot be found or read.
    """
    if source.startswith(PREFIX):
        return read_config(_shape(source))[1]
    return untrained.architecture(source)


def torch_subject(source: str, dtype: str, device: str) -> Any:
    """The model of `subject` for PyTorch: transformers' own, frozen, with scaled-dot-product attention.

    Args:
      source: see `subject`.
      dtype: "float32" or "bfloat16".
      device: such as "cpu" or "cuda".

    Raises:
      UserError: if torch is not installed, for an unknown shape, or for untrained weights.
    """
    if source.startswith(untrained.PREFIX):
        told = "untrained weights, which PyTorch does not load"
        raise UserError(f"model {source!r}: {told}; leave PyTorch out, by --no-torch or --ways")
    torch = import_torch()
    kind, attention = getattr(torch, dtype), "sdpa"
    if not source.startswith(PREFIX):
        folder, file = locate(source), {}
        if is_gguf(folder):
            folder, file = folder.parent, {"gguf_file": folder.name}
        return load_torch(folder, kind, device, attention, **file)
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    described = _shape(source)
    config = CONFIG_MAPPING[described["model_type"]].from_dict(described)
    with torch.device(device):
        return frozen(AutoModelForCausalLM.from_config(config, dtype=kind, attn_implementation=attention), device)


def _shape(source: str) -> dict[str, Any]:
    name = source.removeprefix(PREFIX)
    check_known("shape", [name], SHAPES)
    return SHAPES[name]


def import_torch() -> Any:
    """Import torch.

    Raises:
      UserError: if it is not installed, with the way to install it.
    """
    return pytorch.import_torch("leave PyTorch out with --no-torch")


def bytes_of(model: Model) -> int:
    """Bytes of a model's weights."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))

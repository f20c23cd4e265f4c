"""A checkpoint as PyTorch runs it: transformers' own model, for comparisons. Torch is imported where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestep_jax.errors import UserError


def import_torch(cure: str) -> Any:
    """Import torch.

    Raises:
      UserError: if it is not installed, with the way to install it and another cure.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"the PyTorch reference needs torch ({error}); pip install torch, or {cure}") from error
    return torch


def load_torch(folder: Path, dtype: Any, device: str, attention: str | None = None, **more: Any) -> Any:
    """Load transformers' own model of a checkpoint, frozen and without dropout.

    Args:
      folder: of the checkpoint, see `hub.locate`.
      dtype: of torch.
      device: such as "cpu" or "cuda".
      attention: transformers' `attn_implementation`; None for its own choice.
      more: arguments of `from_pretrained`.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, dtype=dtype, attn_implementation=attention, **more
    )
    return frozen(model, device)


def frozen(model: Any, device: str) -> Any:
    """A model of transformers on a device, without dropout and without gradients of its weights."""
    return model.to(device).eval().requires_grad_(False)

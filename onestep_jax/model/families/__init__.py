"""Architectures as data: what each key of a checkpoint's config.json means, and where each weight goes.

A family is one small file: a `Family` value with the keys it handles, a function from config.json to `ModelConfig`, and
a function from `ModelConfig` to the weight table. Every key of config.json is handled, ignored on purpose, or refused
if it differs from the value that the family's mathematics assumes; a key that nobody knows is refused unless null.
docs/families.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.errors import UserError, nearest
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.families import (
    gemma2,
    gemma3,
    gpt2,
    gpt_neo,
    gpt_neox,
    llama,
    mistral,
    olmo,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
)
from onestep_jax.model.families.base import Family, Part, Weight, check_keys, need

__all__ = ["FAMILIES", "Family", "Part", "Weight", "read_config"]

_MODULES = (gpt_neox, llama, mistral, qwen2, qwen3, gemma2, gemma3, gpt2, gpt_neo, opt, olmo, olmo2, phi3)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in _MODULES}


def read_config(config: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and architecture that a config.json describes.

    Raises:
      UserError: for an architecture, key or value that is not supported.
    """
    model_type = str(need(config, "model_type"))
    if model_type not in FAMILIES:
        hint = nearest(model_type, FAMILIES)
        raise UserError(f"model_type: unsupported architecture {model_type!r}{hint}; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    check_keys(family, config)
    return family, family.read(config)

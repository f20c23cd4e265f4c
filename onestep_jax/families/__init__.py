"""Architectures as data: what each key of a checkpoint's config.json means, and where each weight goes.

A family is one small file: a `Family` value with the keys it handles, a function from config.json to `ModelConfig`, and
a function from `ModelConfig` to the weight table. Every key of config.json is handled, ignored on purpose, or refused
if it differs from the value that the family's mathematics assumes; a key that nobody knows is refused unless null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep_jax.config import ModelConfig, UserError, nearest
from onestep_jax.families import llama
from onestep_jax.families.base import Family, Weight, check_keys, need

__all__ = ["FAMILIES", "Family", "Weight", "read_config"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (llama.FAMILY,)}


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

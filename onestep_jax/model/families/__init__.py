"""Architectures as data: what each key of a checkpoint's config.json means, and where each weight goes.

A family is one small file: a `Family` value with the keys it handles, a function from config.json to `ModelConfig`, and
a function from `ModelConfig` to the weight table. Every key of config.json is handled, ignored on purpose, or refused
if it differs from the value that the mathematics of the family assumes. Any other key is refused if transformers knows
it. If not, it has no effect there; it has none here and is named in a note. docs/models.md says which checkpoints work
and how to add a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from onestep_jax.errors import UserError
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
    rope,
    wrappers,
)
from onestep_jax.model.families.base import Family, Part, Weight, check_keys, need

__all__ = ["FAMILIES", "Family", "Part", "Reading", "Weight", "read_config", "read_described"]

_MODULES = (gpt_neox, llama, mistral, qwen2, qwen3, gemma2, gemma3, gpt2, gpt_neo, opt, olmo, olmo2, phi3)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in _MODULES}


class Reading(NamedTuple):
    """What a config.json says.

    Attributes:
      described: the config.json itself; that of the decoder alone where it is a part of a whole.
      family: of the decoder.
      config: its architecture.
      notes: sentences about what is left out or has no effect.
    """

    described: dict[str, Any]
    family: Family
    config: ModelConfig
    notes: list[str]


def read_described(config: Mapping[str, Any]) -> Reading:
    """Read a config.json.

    Raises:
      UserError: for an architecture, key or value that is not supported.
    """
    whole, notes, unknown = str(need(config, "model_type")), [], []
    described = dict(config)
    if whole in wrappers.WRAPPERS:
        described, unknown = wrappers.unwrap(config)
    model_type = str(need(described, "model_type"))
    if model_type not in FAMILIES:
        supported = ", ".join(sorted([*FAMILIES, *wrappers.WRAPPERS]))
        raise UserError(f"model_type: unsupported architecture {model_type!r}; supported: {supported}")
    family = FAMILIES[model_type]
    if whole in wrappers.WRAPPERS:
        notes.append(f"only the text decoder ({model_type}) of this {whole} is used, without what reads pictures")
    unknown += check_keys(family, described)
    architecture = family.read(described)
    unread = rope.unread(rope.rope_settings(described)) if family.unread is None else family.unread(described)
    if ignored := unknown + unread:
        notes.append(f"keys without effect, since transformers does not read them for {whole}: {', '.join(ignored)}")
    return Reading(described=described, family=family, config=architecture, notes=notes)


def read_config(config: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and architecture that a config.json describes.

    Raises:
      UserError: see `read_described`.
    """
    reading = read_described(config)
    return reading.family, reading.config

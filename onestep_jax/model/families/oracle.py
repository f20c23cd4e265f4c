"""What the installed transformers knows of an architecture: the keys it may read, and the values of absent ones.

It is asked only about keys that a family does not know or does not find, because importing it takes a second or two.
"""

from __future__ import annotations

import dataclasses
from typing import Any

# Names that transformers' code takes from config.json although a config class has no field for them.
READ_BESIDES = frozenset(
    """attention_chunk_size audio_config compile_config cross_attention_hidden_size decoder distributed_config encoder
    fusion_config generator head_dim is_causal layer_types mlp_layer_types mtp_layer_types num_key_value_heads
    original_max_position_embeddings partial_rotary_factor per_layer_config quantization_config rope_local_base_freq
    rope_parameters rope_scaling rope_theta rotary_emb_base rotary_pct sliding_window sliding_window_pattern text_config
    text_encoder tie_encoder_decoder tie_last_hidden_states transformers_weights unpadded_vocab_size vision_config
    _is_quantized _rope_type_labels""".split()
)


def config_class(model_type: str) -> Any:
    """transformers' config class of an architecture, or None if it has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    # its `get` knows nothing of what it has not loaded yet
    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401


def knows(model_type: str, key: str) -> bool:
    """Whether transformers' code has a name for a key, so that it may change what transformers computes.

    An architecture that transformers does not have may read any key.
    """
    described = config_class(model_type)
    if described is None:
        return True
    aliases = described.attribute_map
    return key in READ_BESIDES or key in own_keys(model_type) or key in aliases or hasattr(described, key)


def own_keys(model_type: str) -> set[str]:
    """The fields of an architecture's config class."""
    return {field.name for field in dataclasses.fields(config_class(model_type))}


def default(model_type: str, key: str) -> Any:
    """What transformers takes where config.json lacks a key; None if it has no value for it."""
    described = config_class(model_type)
    fields = () if described is None else dataclasses.fields(described)
    values = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return values.get(key)

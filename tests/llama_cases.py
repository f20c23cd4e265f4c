"""Tiny Llamas, one for each thing a config.json can ask for, as keyword arguments of transformers' LlamaConfig.

`make_golden.py` turns them into what the tests read: GOLDEN / name is the checkpoint, GOLDEN / name.npz what
transformers computed with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"

# Grouped queries, a tied head, no biases, plain RoPE; the other cases change one or two of these.
BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

# With 8 pairs per head, wavelengths run from 6.3 up by factors of 3.2: below 16 / 2 = 8 positions they are kept, above
# 16 / 0.5 = 32 they are stretched, and the second one, 19.9, lies on the ramp.
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}

CASES: dict[str, dict[str, Any]] = {
    "grouped_tied": BASE,
    "full_untied": BASE | {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "wide_heads": BASE | {"head_dim": 12, "attention_bias": True},  # biases in one half of a block only
    "biases": BASE | {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2},
    "rope_llama3": BASE | {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": LLAMA3},
    "rope_linear": BASE | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "rope_theta": BASE | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "sharded": BASE | {"tie_word_embeddings": False},
}

# Largest weight file, by save_pretrained; the other cases fit into one file.
SHARD_SIZE = {"sharded": "40KB"}

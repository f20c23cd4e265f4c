"""GGUF files, as Ollama, LM Studio and llama.cpp have them, read as Hugging Face checkpoints.

Settings become a config.json and tensors get their names in the checkpoint, so that families and weight tables need
not know of llama.cpp.
"""

from __future__ import annotations

from onestep_jax.model.gguf.config import gguf_config
from onestep_jax.model.gguf.files import GgufTensor, is_gguf
from onestep_jax.model.gguf.tensors import gguf_tensors
from onestep_jax.model.gguf.tokenizer import gguf_tokenizer

__all__ = ["GgufTensor", "gguf_config", "gguf_tensors", "gguf_tokenizer", "is_gguf"]

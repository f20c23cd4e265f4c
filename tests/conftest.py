"""Strict by default: eight CPU devices, no silent rank promotion; warnings are errors (pyproject.toml)."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="onestep-xla-"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Model
from onestep_jax.config import ModelConfig
from onestep_jax.families import llama
from onestep_jax.model import Decoder
from onestep_jax.placement import Pmap

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny() -> Model:
    """A random Llama of 30 thousand weights, on which 8 tokens are solved in well under 500 steps."""
    config = ModelConfig(
        family="llama",
        vocab_size=61,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn=48,
        context=64,
        norm_eps=1e-5,
        tied=False,
    )
    params = Decoder(config).init(jax.random.key(3), jnp.zeros((2, config.width)))["params"]
    wider = jax.tree_util.tree_map_with_path(lambda path, x: x * 10 if path[-1].key == "kernel" else x, params)
    wider["embed"] = {"embedding": 0.3 * jax.random.normal(jax.random.key(4), (config.vocab_size, config.width))}
    return Model(config, wider, None, "tiny", "0123456789abcdef")


@pytest.fixture(scope="session")
def token_lists() -> list[list[int]]:
    """Twelve texts of 8 random tokens each."""
    return np.random.default_rng(0).integers(61, size=(12, 8)).tolist()


@pytest.fixture(scope="session")
def one_device() -> Pmap:
    return Pmap(jax.local_devices()[:1])


WORDS = ["<unk>", *(f"w{i}" for i in range(60))]


@pytest.fixture(scope="session")
def tiny_folder(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint folder, with a tokenizer of sixty words."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tensors = {}
    for row in llama.weights(tiny.config):
        leaf = functools.reduce(lambda tree, key: tree[key], row.path.split("/"), tiny.params)
        tensors[row.name] = np.ascontiguousarray(np.asarray(leaf).T if row.transposed else np.asarray(leaf))
    save_file(tensors, folder / "model.safetensors")
    c = tiny.config
    config = {"model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": c.width, "intermediate_size": c.ffn}
    config |= {"num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads}
    config |= {"max_position_embeddings": c.context, "rms_norm_eps": c.norm_eps, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder

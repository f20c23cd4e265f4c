"""Small GGUF files, written with gguf's writer as llama.cpp's convert_hf_to_gguf.py writes large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from flax.traverse_util import unflatten_dict
from gguf import GGMLQuantizationType as Kind

from onestep_jax.model.decoder import Model, parameter_shapes
from onestep_jax.model.families import read_config
from onestep_jax.model.weight_files import stored_arrays

WIDTH = 256  # the blocks of K-quants hold 256 numbers
EPSILON = 2.0**-17  # files hold float32
SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": EPSILON,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
# Where transformers' own reader of GGUF files leaves a setting out, the case has its default: heads of 128 (Qwen3), a
# divisor of the scores of 256 (Gemma), windows on five of six layers (Gemma 3), 1,024 positions and a feed-forward of
# four times the width (GPT-2).
GEMMA = SIZES | {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 256}
GEMMA |= {"sliding_window": 7, "tie_word_embeddings": True}
CASES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 128},
    "gemma2": GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": GEMMA | {"num_hidden_layers": 6},
    "phi3": SIZES | {"pad_token_id": 0},
    "gpt2": {
        "vocab_size": 264,
        "n_embd": WIDTH,
        "n_inner": 4 * WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 1024,
        "layer_norm_epsilon": EPSILON,
    }
    | {"tie_word_embeddings": False},
}
MODEL_TYPES = {"gemma3": "gemma3_text"}
MIXED = (Kind.Q8_0, Kind.Q4_1, Kind.Q4_K, Kind.F16, Kind.F32, Kind.Q6_K, Kind.BF16)


def described(architecture: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a case."""
    return {"model_type": MODEL_TYPES.get(architecture, architecture)} | CASES[architecture] | changes


def random_model(config_json: Mapping[str, Any], seed: int = 0) -> Model:
    """A model whose every weight is random; attention rows are sharp, as in `parity.build`."""
    _, config = read_config(config_json)
    random = np.random.default_rng(seed)
    about_zero = config.norm == "rms_plus_one"
    params: dict[str, np.ndarray] = {}
    for path, shape in parameter_shapes(config).items():
        noise = random.standard_normal(shape).astype(np.float32)
        mean = np.float32(path.endswith("/scale") and not about_zero)
        params[path] = mean + np.float32(1.4 / WIDTH**0.5 if len(shape) > 1 else 0.2) * noise
    return Model(config, unflatten_dict(params, sep="/"), None, "random", "0" * 16, dict(config_json))


def write_gguf(
    path: Path,
    model: Model,
    kinds: Sequence[Kind] = (Kind.F32,),
    *,
    metadata: Mapping[str, Any] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    vocabulary: str = "gpt2",
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a GGUF file; matrices are stored as the `kinds`, one after the other.

    Args:
      path: of the file.
      model: with its config.json.
      kinds: types of blocks.
      metadata: more settings of the architecture, or others in place of the usual ones; None for none at all.
      more: further tensors in float32, by their names in the file.
      vocabulary: "gpt2" (bytes and merges), "llama" (SentencePiece), or "" for none.
      tokenizer: settings of the vocabulary in place of the usual ones; None for none at all.
    """
    config = model.described
    architecture = {new: old for old, new in MODEL_TYPES.items()}.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, architecture)
    settings = _settings(config, model) | dict(metadata or {})
    for key, value in settings.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    if vocabulary:
        write_vocabulary(writer, vocabulary)
    for key, value in (tokenizer or {}).items():
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}", None)
        if value is not None:
            _add(writer, f"tokenizer.ggml.{key}", value)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.layers)
    random, matrices = np.random.default_rng(1), 0
    for name, array in stored_arrays(model):
        stem, _, leaf = name.rpartition(".")
        found = names.get_name(stem)
        assert found is not None, name
        array = _converted(architecture, found, array, model)
        kind = Kind.F32
        if array.ndim == 2:
            kind, matrices = kinds[matrices % len(kinds)], matrices + 1
        add_tensor(writer, f"{found}.{leaf}", array, kind, random)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensor(writer: gguf.GGUFWriter, name: str, array: np.ndarray, kind: Kind, random: np.random.Generator) -> None:
    """Add a tensor as blocks of a type. What gguf cannot quantise to gets random blocks of that type."""
    if kind == Kind.F16:
        writer.add_tensor(name, array.astype(np.float16))
        return
    try:
        blocks = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind)
    except NotImplementedError:
        blocks = random_blocks(array.shape, kind, random)
    writer.add_tensor(name, blocks, raw_dtype=kind)


def random_blocks(shape: tuple[int, ...], kind: Kind, random: np.random.Generator) -> np.ndarray:
    """Blocks of a K-quant, about as large as the weights of `random_model`, with a mean of about zero."""
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = shape[0], shape[1] // block
    made = random.integers(256, size=(rows, blocks, nbytes), dtype=np.uint8)
    if kind in (Kind.Q4_K, Kind.Q5_K):  # scale and offset of the block come first
        levels = 7.5 if kind == Kind.Q4_K else 15.5
        made[..., :4] = np.array([0.003 / levels, 0.003], np.float16).view(np.uint8)
    else:
        assert kind == Kind.Q6_K
        made[..., 208:] = np.array([6e-5], np.float16).view(np.uint8)  # its scale comes last
    return made.reshape(rows, blocks * nbytes)


def _settings(config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    sizes = model.config
    found = {
        "context_length": sizes.context,
        "embedding_length": sizes.width,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.ffn,
        "attention.head_count": sizes.heads,
        "vocab_size": sizes.vocab_size,
    }
    if sizes.position_rows is not None:
        return found | {"attention.layer_norm_epsilon": sizes.norm_eps}
    found |= {
        "attention.head_count_kv": sizes.kv_heads,
        "attention.layer_norm_rms_epsilon": sizes.norm_eps,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": sizes.head_dim,
        "attention.sliding_window": config.get("sliding_window"),
    }
    return found | {f"{name}_logit_softcapping": config.get(f"{name}_logit_softcapping") for name in ("attn", "final")}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _converted(architecture: str, name: str, array: np.ndarray, model: Model) -> np.ndarray:
    """What llama.cpp's converter does to a tensor."""
    sizes = model.config
    if architecture == "llama" and name.endswith(("attn_q", "attn_k")):
        heads = sizes.heads if name.endswith("attn_q") else sizes.kv_heads
        array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if architecture.startswith("gemma") and name.endswith("norm"):
        array = array + np.float32(1)
    if architecture == "gpt2" and array.ndim == 2 and name.startswith("blk."):
        array = array.T
    return np.ascontiguousarray(array)


def write_vocabulary(writer: gguf.GGUFWriter, kind: str) -> None:
    """264 tokens: bytes, two words with the parts they are merged from, and a few of special meaning."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    control, plain, byte = 3, 1, 6
    if kind == "gpt2":
        merges = [("a", "b"), ("ab", "c"), ("Ġ", "abc"), ("d", "e"), ("Ġ", "de")]
        tokens = ["<|start|>", "<|end|>", "<|pad|>", *bytes_to_unicode().values(), *map("".join, merges)]
        types = [control] * 3 + [plain] * 261
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_tokenizer_pre("qwen2")
        ids = (0, 1, None)
    else:
        words = ["▁", "a", "b", "ab", "▁ab"]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
        types = [2, control, control] + [byte] * 256 + [plain] * 5
        writer.add_token_scores([0.0] * 259 + [-4.0, -3.0, -2.0, -1.0, -0.5])
        ids = (1, 2, 0)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    begin, end, unknown = ids
    writer.add_bos_token_id(begin)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(0)
    if unknown is not None:
        writer.add_unk_token_id(unknown)

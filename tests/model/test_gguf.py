"""GGUF files that gguf's writer wrote: settings and tensors, commands on them, and refusals."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from closeness import assert_close
from flax.traverse_util import flatten_dict
from transformers import AutoConfig

gguf = pytest.importorskip("gguf")

from gguf_writing import CASES, MIXED, described, random_model, write_gguf  # noqa: E402

from onestep_jax.cli.parser import main  # noqa: E402
from onestep_jax.errors import UserError  # noqa: E402
from onestep_jax.model.checkpoint import describe, load_model, save_model  # noqa: E402
from onestep_jax.model.decoder import Model  # noqa: E402
from onestep_jax.model.families import read_config  # noqa: E402
from onestep_jax.model.hub import locate  # noqa: E402

Kind = gguf.GGMLQuantizationType


def weights(model: Model) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float32) for name, leaf in flatten_dict(model.params, sep="/").items()}


def logits(model: Model) -> Any:
    x_TD = np.random.default_rng(2).standard_normal((20, model.config.width)).astype(np.float32)
    return jax.jit(model.apply)(model.params, x_TD)


@pytest.mark.parametrize("architecture", CASES)
def test_the_model_that_was_written_is_read(architecture: str, path: Path):
    written = random_model(described(architecture))
    read = load_model(write_gguf(path, written), dtype="float32")
    assert read.config == written.config
    for name, weight in weights(read).items():
        exact = not architecture.startswith("gemma") or not name.endswith("scale")  # the file has 1 + w, rounded
        np.testing.assert_allclose(weight, weights(written)[name], rtol=0, atol=0 if exact else 1e-6)


def test_file_and_folder_of_one_model_have_one_fingerprint(path: Path, tmp_path: Path):
    read = load_model(write_gguf(path, random_model(described("qwen2")), MIXED), dtype="float32")
    save_model(read, tmp_path / "folder")
    again = load_model(tmp_path / "folder", dtype="float32")
    assert again.fingerprint == read.fingerprint
    assert again.stop_tokens == read.stop_tokens == (1,)
    assert read.source == str(path)


@pytest.mark.parametrize("kind", [*MIXED, Kind.Q5_0, Kind.Q5_K], ids=lambda kind: kind.name)
def test_blocks_are_dequantised_piece_by_piece(kind: Any, llama: Model, path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(path, llama, [kind])
    stored = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.1.ffn_down.weight")
    monkeypatch.setattr("onestep_jax.model.gguf.files._PIECE", 1000)
    read = weights(load_model(path, dtype="float32", tokenizer=False))["block_1/mlp/down/kernel"]
    np.testing.assert_array_equal(read, gguf.dequantize(stored.data, stored.tensor_type))


def test_bfloat16(llama: Model, path: Path):
    write_gguf(path, llama, MIXED)
    exact, rounded = (load_model(path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.fingerprint == exact.fingerprint
    for name, weight in weights(exact).items():
        np.testing.assert_array_equal(weights(rounded)[name], np.asarray(jax.numpy.bfloat16(weight), np.float32))


def same(architecture: str, path: Path, metadata: dict[str, Any], **config: Any) -> None:
    written = describe(write_gguf(path, random_model(described(architecture)), metadata=metadata))[2]
    assert written == read_config(described(architecture, **config))[1]


def test_stretched_rotary_positions(path: Path):
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    same("llama", path, linear, rope_scaling={"rope_type": "linear", "factor": 4.0})
    same("llama", path, {"rope.scale_linear": 4.0}, rope_scaling={"rope_type": "linear", "factor": 4.0})
    same("gemma3", path, linear, rope_scaling={"rope_type": "linear", "factor": 4.0})
    same("llama", path, {"rope.scaling.type": "none"})
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    of_yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    same("qwen2", path, yarn, rope_scaling=of_yarn)
    same("gemma3", path, {"rope.freq_base_swa": 500.0}, rope_local_base_freq=500.0)
    same("phi3", path, {"rope.dimension_count": 32}, partial_rotary_factor=0.5)
    same("qwen2", path, {"rope.freq_base": None}, rope_theta=10000.0)


def test_frequencies_of_llama3(path: Path):
    scaling = {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0, "original_max_position_embeddings": 16}
    written = random_model(described("llama", rope_scaling={"rope_type": "llama3", **scaling}))
    turns = 16 / (2 * np.pi * 5000.0 ** (np.arange(0, 64, 2) / 64))
    ramp = np.clip((turns - 0.5) / (2.0 - 0.5), 0, 1)
    divisors = (1 / ((1 - ramp) / 8 + ramp)).astype(np.float32)
    read = load_model(write_gguf(path, written, more={"rope_freqs.weight": divisors}), dtype="float32")
    assert_close(logits(read), logits(written))
    plain = load_model(write_gguf(path, written), dtype="float32")
    assert not np.allclose(logits(plain), logits(written), rtol=0.1)


def test_longrope(path: Path):
    short, long = (np.linspace(1, most, 32, dtype=np.float32) for most in (2, 8))
    lists = {"short_factor": short.tolist(), "long_factor": long.tolist(), "attention_factor": 1.25}
    written = random_model(
        described("phi3", original_max_position_embeddings=16, rope_scaling={"rope_type": "longrope", **lists})
    )
    settings = {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.25}
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    read = load_model(write_gguf(path, written, metadata=settings, more=tensors), dtype="float32")
    assert read.config == written.config


def test_windows_and_scores(path: Path):
    kinds = ["sliding_attention", "full_attention"]
    every = {"sliding_window": None, "layer_types": kinds[1:] * 6}
    same("gemma3", path, {"attention.sliding_window_pattern": 2}, layer_types=kinds * 3)
    same("gemma3", path, {"attention.sliding_window_pattern": [True, False] * 3}, layer_types=kinds * 3)
    same("gemma3", path, {"attention.sliding_window": None}, **every)
    same("gemma3", path, {"attention.sliding_window": 0}, **every)
    same("gemma2", path, {"attention.sliding_window": None}, sliding_window=4096)
    same("gemma2", path, {"attn_logit_softcapping": 20.0}, attn_logit_softcapping=20.0)
    same("gemma2", path, {"attention.scale": 0.125}, query_pre_attn_scalar=64)
    same("gemma2", path, {"attention.scale": 168**-0.5}, query_pre_attn_scalar=168)
    same("phi3", path, {"attention.sliding_window": 9}, sliding_window=9)
    same("phi3", path, {"attention.sliding_window": 0})
    same("llama", path, {"attention.head_count_kv": [2, 2], "expert_count": 0})


@pytest.mark.parametrize("metadata", [{}, {"attention.scale": 0.125}, {"attention.scale": 168**-0.5}], ids=str)
def test_the_divisor_of_the_scores_is_what_transformers_takes(
    metadata: dict[str, float], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A model of as many layers as the 27B ones, whose divisor follows from the width; it may be no float there."""
    monkeypatch.setattr("onestep_jax.model.gguf.config._LAYERS_OF_27B", {"gemma2": 2})
    written = random_model(described("gemma2", query_pre_attn_scalar=128))
    save_model(load_model(write_gguf(path, written, metadata=metadata)), tmp_path / "folder")
    divisor = AutoConfig.from_pretrained(tmp_path / "folder").query_pre_attn_scalar
    assert type(divisor) is int
    assert divisor == {0.125: 64, 168**-0.5: 168}.get(metadata.get("attention.scale", 0), 128)


def test_biases_and_a_tied_head(path: Path):
    for changes in ({"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}):
        written = random_model(described("llama", **changes))
        read = load_model(write_gguf(path, written), dtype="float32")
        assert read.config == written.config
        assert_close(logits(read), logits(written))


@pytest.mark.long
def test_commands(llama: Model, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any):
    write_gguf(path, llama, MIXED)
    assert main(["info", str(path), "--length", "8", "--weights", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fingerprint"] == load_model(path).fingerprint
    (tmp_path / "texts.txt").write_text("abc de abc\n")
    monkeypatch.chdir(tmp_path)
    options = ["--model", path.name, "--texts", "texts.txt", "--split", "lines", "--run", str(tmp_path / "run")]
    assert main(["fit", *options, "--length", "3", "--slots", "1"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["decode", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "abc de abc" in out
    assert "1 of 1 texts exact" in out


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"rope.scaling.type": "su"}, "RoPE with rope.scaling.type = 'su'"),
        ({"rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor = 2.0, tensors none is not supported"),
        ({"rope.scaling.type": "none", "rope.scaling.attn_factor": 0.5}, "rope.scaling.attn_factor = 0.5"),
        ({"rope.scale_linear": 4.0, "rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor = 2.0"),
        ({"rope.dimension_count": 32}, "rope.dimension_count = 32 is not supported; expected the width of a head, 64"),
        ({"expert_count": 8}, "llama.expert_count = 8 is not supported; expected 0"),
        ({"logit_scale": 2.0}, "llama.logit_scale = 2.0: this metadata key is not supported"),
        ({"attention.head_count_kv": [2, 1]}, "llama.attention.head_count_kv = [2, 1] is not supported; expected one"),
        ({"attention.value_length": 32}, "attention.value_length differs"),
        ({"embedding_length": None}, "the metadata key llama.embedding_length is missing"),
        ({"embedding_length": 0}, "hidden_size = 0: expected a positive integer"),
        ({"feed_forward_length": 512}, "has shape (256, 256), expected (256, 512) from its metadata"),
        ({"block_count": 4_000_000_000}, "llama.block_count = 4000000000, but there are tensors of 2 layers"),
        ({"block_count": 1}, "llama.block_count = 1, but there are tensors of 2 layers"),
    ],
)
def test_settings_that_are_refused(metadata: dict[str, Any], message: str, llama: Model, path: Path):
    assert message in refusal(write_gguf(path, llama, metadata=metadata))


def test_tensors_that_are_refused(llama: Model, path: Path):
    write_gguf(path, llama, more={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    assert "unknown weight blk.0.attn_sinks.weight" in refusal(path)
    write_gguf(path, llama, more={"blk.1.ffn_norm.bias": np.ones(256, np.float32)})
    assert "unknown weight model.layers.1.post_attention_layernorm.bias" in refusal(path)
    write_gguf(path, llama, more={"rope_factors_long.weight": np.ones(32, np.float32)})
    assert "tensors rope_factors_long.weight" in refusal(path)
    divisors = {"rope_freqs.weight": np.ones(32, np.float32)}
    write_gguf(path, llama, metadata={"rope.scaling.attn_factor": 2.0}, more=divisors)
    assert "rope.scaling.attn_factor = 2.0, tensors rope_freqs.weight is not supported" in refusal(path)
    write_gguf(path, llama, metadata={"rope.scaling.attn_factor": 1.0}, more=divisors)
    load_model(path)
    write_gguf(path, llama, more={"blk.0.ids.weight": np.ones(4, np.int32)})
    assert "blk.0.ids.weight is stored as I32, which gguf cannot read; take a file of another" in refusal(path)
    qwen2 = random_model(described("qwen2"))
    content = write_gguf(path, qwen2).read_bytes().replace(b"blk.1.attn_k.bias", b"blk.1.attn_x.bias")
    path.write_bytes(content)
    assert "missing weight model.layers.1.self_attn.k_proj.bias" in refusal(path)


def patched(path: Path, llama: Model, old: bytes, new: bytes) -> Path:
    content = write_gguf(path, llama).read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))
    return path


def test_files_that_are_refused(llama: Model, path: Path, tmp_path: Path):
    assert "unsupported GGUF architecture 'lemma'; supported: llama, " in refusal(
        patched(path, llama, b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemma")
    )
    assert "with version 1;" in refusal(patched(path, llama, b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0"))
    assert "with big-endian numbers;" in refusal(patched(path, llama, b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"))
    shape = struct.pack("<IQI", 1, 256, 0)  # a vector in float32
    reason = "is not a valid GGMLQuantizationType); download it again; where its quantisation is a new one, pip"
    name = b"output_norm.weight"
    assert reason in refusal(patched(path, llama, name + shape, name + struct.pack("<IQI", 1, 256, 99)))
    twice = patched(path, llama, b"blk.1.attn_k.weight", b"blk.0.attn_k.weight")
    assert "duplicated tensor with name blk.0.attn_k.weight" in refusal(twice)
    twice = patched(path, llama, b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id")
    assert "Duplicate tokenizer.ggml.eos_token_id already in list" in refusal(twice)
    path.write_bytes(b"GGML....")
    assert "not a GGUF file" in refusal(path)
    assert "no such file" in refusal(tmp_path / "none.gguf")
    assert main(["info", str(tmp_path / "none.gguf")]) == 2


def test_a_split_file(llama: Model, path: Path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    assert "one of 3 parts of a split GGUF file; join the parts with `llama-gguf-split --merge" in refusal(path)


def test_a_truncated_file_wherever_it_ends(llama: Model, path: Path):
    content = write_gguf(path, llama, MIXED).read_bytes()
    for size in [*range(4, 24), *np.random.default_rng(0).integers(24, len(content), size=30).tolist()]:
        path.write_bytes(content[:size])
        assert "truncated GGUF file" in refusal(path)


def test_a_file_needs_no_suffix(llama: Model, tmp_path: Path):
    path = write_gguf(tmp_path / "sha256-0123", llama)
    assert locate(path) == path
    assert load_model(path, dtype="float32").config == llama.config


def test_without_the_package(llama: Model, path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(path, llama)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(UserError, match=r"GGUF files need the package gguf .*; pip install 'onestep_jax\[gguf\]'"):
        load_model(path)

"""Loading: every refusal says what, where and what would do; the fingerprint tells weights apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import RevisionNotFoundError
from llama_cases import BASE, GOLDEN, LLAMA3
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onestep_jax.checkpoint import load_model
from onestep_jax.config import UserError
from onestep_jax.families import read_config

Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
GATE, UP = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
NORM, TABLE = "model.norm.weight", "model.embed_tokens.weight"

Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint in one file, to be spoiled."""
    return Path(shutil.copytree(GOLDEN / "grouped_tied", tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound checkpoint in three files and an index, to be spoiled."""
    return Path(shutil.copytree(GOLDEN / "sharded", tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; the value `...` removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_weights(path: Path, change: Callable[[Tensors], Any]) -> None:
    """Rewrite a safetensors file after `change` has altered its tensors in place."""
    if path.is_dir():
        path = path / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refusal(source: Path | str, **options: Any) -> str:
    """The message with which `source` is refused."""
    with pytest.raises(UserError) as caught:
        load_model(source, **options)
    return str(caught.value)


def assert_says(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message, f"{str(part)!r} is not in {message!r}"


def poke(name: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].reshape(-1)[5] = value

    return change


# Weights


def test_missing_weight(folder: Path):
    change_weights(folder, lambda tensors: tensors.pop(Q))
    assert_says(refusal(folder), folder, f"missing weight {Q}", "complete the download, or correct config.json")


def test_missing_head_of_an_untied_model(folder: Path):
    change_config(folder, tie_word_embeddings=False)
    assert_says(refusal(folder), folder, "missing weight lm_head.weight")


def test_misspelt_weight_names_the_nearest(folder: Path):
    change_weights(folder, lambda tensors: tensors.update({"model.norn.weight": tensors.pop(NORM)}))
    assert_says(refusal(folder), folder, f"missing weight {NORM}", "did you mean 'model.norn.weight'?")


def test_extra_weight(folder: Path):
    name = "model.layers.0.self_attn.q_proj.bias"
    change_weights(folder, lambda tensors: tensors.update({name: np.zeros(32, np.float32)}))
    assert_says(
        refusal(folder), folder / "model.safetensors", f"unknown weight {name}", "llama as config.json describes it"
    )


def test_weight_of_a_layer_that_config_does_not_have(folder: Path):
    change_config(folder, num_hidden_layers=1)
    assert_says(refusal(folder), folder / "model.safetensors", "unknown weight model.layers.1.")


def test_buffers_and_the_copy_of_a_tied_head_are_no_extra_weights(folder: Path):
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)}
    change_weights(folder, lambda tensors: tensors.update(buffers | {"lm_head.weight": tensors[TABLE].copy()}))
    assert load_model(folder).fingerprint == load_model(GOLDEN / "grouped_tied").fingerprint


@pytest.mark.parametrize(
    ("name", "shape", "expected"), [(Q, (16, 64), (32, 32)), (TABLE, (96, 32), (97, 32)), (NORM, (1, 32), (32,))]
)
def test_wrong_shape(folder: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]):
    change_weights(folder, lambda tensors: tensors.update({name: np.ones(shape, np.float32)}))
    assert_says(refusal(folder), folder / "model.safetensors", name, f"shape {shape}", f"expected {expected}")


def test_transposed_weight_is_a_wrong_shape(folder: Path):
    change_weights(folder, lambda tensors: tensors.update({K: np.ascontiguousarray(tensors[K].T)}))
    assert_says(refusal(folder), K, "shape (32, 16)", "expected (16, 32)")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_number_that_is_not_finite(folder: Path, value: float, dtype: str):
    change_weights(folder, poke(UP, value))
    assert_says(refusal(folder, dtype=dtype), folder / "model.safetensors", UP, "NaN or an infinity")


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files(folder: Path, stored: Any):
    change_weights(folder, lambda tensors: tensors.update({name: t.astype(stored) for name, t in tensors.items()}))
    kernel = load_model(folder, dtype="float32").params["block_0"]["attention"]["q"]["kernel"]
    assert kernel.dtype == jnp.float32
    rounded = load_file(GOLDEN / "grouped_tied" / "model.safetensors")[Q].astype(stored)
    np.testing.assert_array_equal(kernel, rounded.astype(np.float32).T)


def test_head_that_is_no_copy_of_the_tied_table(folder: Path):
    change_weights(folder, lambda tensors: tensors.update({"lm_head.weight": 2 * tensors[TABLE]}))
    assert_says(refusal(folder), folder / "model.safetensors", "lm_head.weight", "tie_word_embeddings")


@pytest.mark.parametrize(
    ("stored", "name"),
    [(np.int8, "I8"), (np.bool_, "BOOL"), (np.int32, "I32"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")],
    ids=str,
)
def test_weights_that_are_no_floats(folder: Path, stored: Any, name: str):
    change_weights(folder, lambda tensors: tensors.update({Q: tensors[Q].astype(stored)}))
    assert_says(
        refusal(folder), folder / "model.safetensors", Q, f"stored as {name};", "expected one of F32, F16, BF16, F64"
    )


def test_double_precision_is_cast(folder: Path):
    change_weights(folder, lambda tensors: tensors.update({Q: tensors[Q].astype(np.float64)}))
    assert fingerprint(folder) == fingerprint(GOLDEN / "grouped_tied")


def test_number_that_bfloat16_cannot_hold(folder: Path):
    change_weights(folder, poke(UP, 3.4e38))
    assert_says(refusal(folder, dtype="bfloat16"), folder / "model.safetensors", UP, "bfloat16")


# Files


def test_duplicate_across_shards(sharded: Path):
    paths = sorted(sharded.glob("*.safetensors"))
    name, tensor = next(iter(load_file(paths[0]).items()))
    change_weights(paths[2], lambda tensors: tensors.update({name: tensor}))
    assert_says(refusal(sharded), f"duplicate weight {name}", paths[0], paths[2])


def test_missing_shard(sharded: Path):
    lost = sharded / "model-00002-of-00003.safetensors"
    lost.unlink()
    assert_says(refusal(sharded), lost, "missing", "model.safetensors.index.json names it")


def test_index_that_is_not_json(sharded: Path):
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-20])
    assert_says(refusal(sharded), index, "not valid JSON")


@pytest.mark.parametrize("kept", [0, 4, 100, 20000], ids="{} bytes".format)
def test_truncated_file(folder: Path, kept: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert_says(refusal(folder), path, "damaged or truncated safetensors")


def test_garbage_file(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    assert_says(refusal(folder), path, "damaged or truncated safetensors")


def test_pickles_only(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert_says(refusal(folder), folder, "pickled weights (.bin)", "can run code", "save_pretrained")


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    assert_says(refusal(folder), folder, "no model.safetensors", "no model.safetensors.index.json")


def test_one_file_and_shards(sharded: Path):
    shutil.copy(GOLDEN / "full_untied" / "model.safetensors", sharded)
    assert_says(refusal(sharded), sharded, "model.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": null}}', "null"])
def test_index_without_a_weight_map(sharded: Path, text: str):
    index = sharded / "model.safetensors.index.json"
    index.write_text(text)
    assert_says(refusal(sharded), index)


@pytest.mark.parametrize("name", ["", "."])
def test_index_that_names_no_file(sharded: Path, name: str):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {TABLE: name}}))
    assert_says(refusal(sharded), sharded, "missing", "model.safetensors.index.json names it")


# config.json


def test_missing_config(folder: Path):
    (folder / "config.json").unlink()
    assert_says(refusal(folder), folder / "config.json", "no such file", "needs config.json and safetensors weights")


def test_config_that_is_not_json(folder: Path):
    (folder / "config.json").write_text('{"model_type": "llama",')
    assert_says(refusal(folder), folder / "config.json", "not valid JSON")


def test_unsupported_architecture_lists_the_supported(folder: Path):
    change_config(folder, model_type="llava")
    assert_says(refusal(folder), folder / "config.json")
    assert_says(refusal(folder), "unsupported architecture 'llava'", "did you mean 'llama'?", "supported: llama")


@pytest.mark.parametrize("key", ["model_type", "vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_missing_required_key(folder: Path, key: str):
    change_config(folder, **{key: ...})
    assert_says(refusal(folder), "config.json", f"the key {key!r} is missing")


def test_unknown_key_names_the_nearest(folder: Path):
    change_config(folder, attention_bais=True)
    assert_says(refusal(folder), "config.json", "'attention_bais' = True", "did you mean 'attention_bias'?", "llama")


def test_unknown_key_that_is_null_says_nothing(folder: Path):
    change_config(folder, some_new_option=None)
    assert load_model(folder).fingerprint == load_model(GOLDEN / "grouped_tied").fingerprint


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hidden_act", "gelu", "silu"),
        ("is_encoder_decoder", True, False),
        ("add_cross_attention", True, False),
        ("pruned_heads", {"0": [1]}, {}),
    ],
)
def test_refused_value(folder: Path, key: str, value: Any, expected: Any):
    change_config(folder, **{key: value})
    assert_says(refusal(folder), "config.json", f"{key} = {value!r} is not supported", f"expected {expected!r}")


def test_quantised(folder: Path):
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert_says(refusal(folder), "config.json", "quantised", "use the unquantised weights")


def test_keys_of_smollm2_say_nothing(folder: Path):
    keys: dict[str, Any] = {"is_llama_config": True, "rope_interleaved": False, "max_sequence_length": 2048}
    keys |= {"transformers.js_config": {"dtype": "q4"}, "_attn_implementation_autoset": True, "use_bfloat16": True}
    change_config(folder, **keys)
    assert fingerprint(folder) == fingerprint(GOLDEN / "grouped_tied")


@pytest.mark.parametrize("text", ["[]", "null", '"llama"'])
def test_config_that_is_no_object(folder: Path, text: str):
    (folder / "config.json").write_text(text)
    assert_says(refusal(folder), folder / "config.json")


def test_config_that_is_a_folder(folder: Path):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert_says(refusal(folder), folder / "config.json", "directory")


def test_config_nested_too_deeply(folder: Path):
    (folder / "config.json").write_text("[" * 100_000)
    assert_says(refusal(folder), folder / "config.json", "not valid JSON")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", ["llama"]),
        ("hidden_size", "32"),
        ("vocab_size", 97.0),
        ("head_dim", 7),
        ("num_attention_heads", 3),
        ("tie_word_embeddings", 1),
        ("rms_norm_eps", None),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", "1e-5"),
        ("rope_parameters", "llama3"),
        ("rope_parameters", {"rope_type": ["linear"]}),
        ("rope_parameters", {"rope_type": "linear", "factor": "4"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "1e4x"}),
        ("rope_parameters", LLAMA3 | {"original_max_position_embeddings": 32.5}),
        ("rope_parameters", LLAMA3 | {"high_freq_factor": LLAMA3["low_freq_factor"]}),
    ],
)
def test_value_of_a_wrong_kind(folder: Path, key: str, value: Any):
    change_config(folder, **{key: value})
    assert_says(refusal(folder), f"{folder / 'config.json'}: ", key)


@pytest.mark.parametrize("heads", [3, 64])
def test_width_that_heads_do_not_divide(folder: Path, heads: int):
    change_config(folder, num_attention_heads=heads, num_key_value_heads=..., head_dim=...)
    message = f"num_attention_heads = {heads}: expected a divisor of hidden_size = 32"
    assert_says(refusal(folder), folder / "config.json", message)


# RoPE


def test_unsupported_rope_type(folder: Path):
    change_config(folder, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0})
    assert_says(refusal(folder), "config.json", "RoPE type 'yarn'", "supported: default, linear, llama3")


@pytest.mark.parametrize("key", sorted(LLAMA3.keys() - {"rope_type", "rope_theta"}))
def test_llama3_rope_that_lacks_an_argument(folder: Path, key: str):
    change_config(folder, rope_parameters={name: value for name, value in LLAMA3.items() if name != key})
    assert_says(refusal(folder), "config.json", "RoPE type 'llama3' lacks", key)


def test_unknown_rope_argument_names_the_nearest(folder: Path):
    change_config(folder, rope_parameters={"rope_type": "linear", "factor": 2.0, "factr": 4.0})
    assert_says(refusal(folder), "RoPE type 'linear'", "'factr'", "did you mean 'factor'?")


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        ({"rope_type": "default", "rope_theta": 10000.0}, {}),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            {"rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
        (
            LLAMA3,
            {"rope_theta": 10000.0, "rope_scaling": {key: LLAMA3[key] for key in LLAMA3 if key != "rope_theta"}},
        ),
        (
            LLAMA3,
            {"rope_scaling": {"type": "llama3", **{key: LLAMA3[key] for key in LLAMA3 if key != "rope_type"}}},
        ),
    ],
    ids=["theta", "nothing", "linear by type", "llama3 by rope_type", "llama3 by type"],
)
def test_both_spellings_of_rope_mean_the_same(new: dict[str, Any], old: dict[str, Any]):
    rest = {key: value for key, value in BASE.items() if key != "rope_parameters"} | {"model_type": "llama"}
    _, from_new = read_config(rest | {"rope_parameters": new})
    _, from_old = read_config(rest | old)
    assert from_new == from_old
    assert (from_new.rope.kind, from_new.rope.theta) == (new["rope_type"], new["rope_theta"])


def test_two_spellings_of_rope_that_disagree(folder: Path):
    change_config(folder, rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert_says(refusal(folder), "config.json", "rope_parameters", "rope_scaling")


def test_two_spellings_of_rope_that_agree(folder: Path):
    change_config(folder, rope_scaling={"type": "default"}, rope_theta=10000)
    assert fingerprint(folder) == fingerprint(GOLDEN / "grouped_tied")


def test_unknown_argument_of_the_default_rope(folder: Path):
    change_config(folder, rope_parameters={"rope_type": "default", "beta_fast": 32.0})
    assert_says(refusal(folder), folder / "config.json", "'beta_fast' of RoPE type 'default'; expected rope_theta")


# Source and dtype


def test_unknown_dtype_names_the_nearest():
    message = refusal(GOLDEN / "grouped_tied", dtype="bfloat61")
    assert_says(message, "unknown dtype 'bfloat61'", "did you mean 'bfloat16'?", "known: bfloat16, float32")


@pytest.mark.parametrize("source", ["no-such-model", "./org/name", "/a/b/c", "~/models", "a/b/c"])
def test_source_that_does_not_exist(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert_says(refusal(source), repr(source), "no such folder", "a hub id like 'org/name'", "'default'")


def test_source_that_is_a_file(folder: Path):
    path = folder / "model.safetensors"
    assert_says(refusal(path), repr(str(path)), "no such folder")


def test_hub_id_while_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal("some-org/some-model")
    assert_says(message, "'some-org/some-model'", "not in the local cache", "cannot be reached")
    assert "\n" not in message


@pytest.mark.parametrize("source", ["org/na me", "org/name--x"])
def test_hub_id_that_cannot_be_one(source: str):
    assert_says(refusal(source), repr(source))


def test_path_named_default_is_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.rename(folder.with_name("default")).parent)
    assert load_model(Path("default"), tokenizer=False).config.vocab_size == 97


def test_name_longer_than_any_file_may_have():
    assert_says(refusal("a" * 5000), "no such folder")


def test_revision_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch):
    def download(*args: Any, **options: Any) -> None:
        raise RevisionNotFoundError("404 Client Error", response=MagicMock())

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert_says(refusal("org/name", revision="v9"), "'org/name'", "no revision 'v9'")


# Tokenizer


def write_tokenizer(folder: Path, ids: int) -> None:
    """Write a tokenizer of words w0, w1, … with that many ids."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(ids)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def test_tokenizer_is_loaded(folder: Path):
    write_tokenizer(folder, 97)
    tokenizer = load_model(folder).tokenizer
    assert tokenizer("w3 w96 w0")["input_ids"] == [3, 96, 0]
    assert tokenizer.decode([96, 3]) == "w96 w3"


def test_folder_without_tokenizer(folder: Path):
    assert load_model(folder).tokenizer is None


def test_tokenizer_with_ids_beyond_the_table(folder: Path):
    write_tokenizer(folder, 98)
    assert_says(refusal(folder), folder, "tokenizer's ids reach 97", "table has 97 rows")


def test_damaged_tokenizer(folder: Path):
    write_tokenizer(folder, 97)
    (folder / "tokenizer.json").write_text("{")
    assert_says(refusal(folder), folder, "the tokenizer cannot be read")


def test_unwanted_tokenizer_is_not_read(folder: Path):
    write_tokenizer(folder, 98)
    assert load_model(folder, tokenizer=False).tokenizer is None


# Fingerprint


def fingerprint(folder: Path, **options: Any) -> str:
    return load_model(folder, **options).fingerprint


def test_fingerprint_is_the_same_for_every_load(folder: Path):
    first = fingerprint(folder)
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint(folder) == first
    assert fingerprint(folder, dtype="float32") == fingerprint(folder, dtype="bfloat16") == first
    assert fingerprint(GOLDEN / "grouped_tied") == first


@pytest.mark.parametrize("bit", [0, 12, 23, 31])
@pytest.mark.parametrize("name", [Q, NORM, TABLE])
def test_fingerprint_changes_with_one_bit_of_one_weight(folder: Path, name: str, bit: int):
    before = fingerprint(folder)

    def flip(tensors: Tensors) -> None:
        tensors[name].reshape(-1).view(np.uint32)[7] ^= np.uint32(1 << bit)

    change_weights(folder, flip)
    assert fingerprint(folder) != before


def test_fingerprint_changes_when_two_tensors_are_swapped(folder: Path):
    before = fingerprint(folder)
    change_weights(folder, lambda tensors: tensors.update({GATE: tensors[UP], UP: tensors[GATE]}))
    assert fingerprint(folder) != before


def test_fingerprint_changes_when_two_numbers_are_swapped(folder: Path):
    before = fingerprint(folder)

    def swap(tensors: Tensors) -> None:
        flat = tensors[GATE].reshape(-1)
        flat[[3, 11]] = flat[[11, 3]]

    change_weights(folder, swap)
    assert fingerprint(folder) != before


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-6}, {"rope_parameters": {"rope_theta": 5e5}}])
def test_fingerprint_changes_with_the_architecture(folder: Path, change: dict[str, Any]):
    before = fingerprint(folder)
    change_config(folder, **change)
    assert fingerprint(folder) != before


def test_fingerprint_is_the_same_for_a_default_and_for_its_value(folder: Path):
    before = fingerprint(folder)
    change_config(folder, head_dim=..., mlp_bias=...)
    assert fingerprint(folder) == before


def negate(name: str, count: int | None) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].reshape(-1)[:count] *= -1

    return change


@pytest.mark.parametrize("count", [2, None], ids=["two numbers", "all numbers"])
def test_fingerprint_changes_with_signs(folder: Path, count: int | None):
    before = fingerprint(folder)
    change_weights(folder, negate(Q, count))
    assert fingerprint(folder) != before

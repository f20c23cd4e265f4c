"""Loading: every refusal says what, where and what would do; the fingerprint tells weights apart."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from closeness import assert_close
from family_cases import GOLDEN_FOLDER, LLAMA, LLAMA3
from huggingface_hub.errors import RevisionNotFoundError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onestep_jax.errors import UserError
from onestep_jax.model.checkpoint import load_model, save_model
from onestep_jax.model.decoder import Model
from onestep_jax.model.families import FAMILIES, read_config

Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
GATE, UP = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
NORM, TABLE = "model.norm.weight", "model.embed_tokens.weight"

ROOT = Path(__file__).parents[2]
PLAIN = GOLDEN_FOLDER / "llama"

Tensors = dict[str, np.ndarray]


def copy(golden: str, tmp_path: Path) -> Path:
    """A sound checkpoint, to be spoiled."""
    return Path(shutil.copytree(GOLDEN_FOLDER / golden, tmp_path / "model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound Llama in one file, to be spoiled."""
    return copy("llama", tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound Llama in three files and an index, to be spoiled."""
    return copy("llama_sharded", tmp_path)


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


def assert_same_params(a: Model, b: Model) -> None:
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


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


def test_misspelt_weight(folder: Path):
    change_weights(folder, lambda tensors: tensors.update({"model.norn.weight": tensors.pop(NORM)}))
    assert_says(refusal(folder), folder, f"missing weight {NORM}")
    assert "did you mean" not in refusal(folder)


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
    assert load_model(folder).fingerprint == load_model(PLAIN).fingerprint


@pytest.mark.parametrize(
    ("name", "shape", "expected"), [(Q, (16, 64), (32, 32)), (TABLE, (96, 32), (97, 32)), (NORM, (1, 32), (32,))]
)
def test_wrong_shape(folder: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]):
    change_weights(folder, lambda tensors: tensors.update({name: np.ones(shape, np.float32)}))
    assert_says(refusal(folder), folder / "model.safetensors", name, f"shape {shape}", f"expected {expected}")


def test_transposed_weight_is_a_wrong_shape(folder: Path):
    change_weights(folder, lambda tensors: tensors.update({K: np.ascontiguousarray(tensors[K].T)}))
    assert_says(refusal(folder), K, "shape (32, 16)", "expected (16, 32)")


@pytest.mark.parametrize(
    ("golden", "name", "shape", "expected"),
    [
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", (64, 32), (96, 32)),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value.bias", (32,), (96,)),
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight", (96, 32), (64, 32)),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", (40, 32), (80, 32)),
        ("gpt2", "transformer.h.1.attn.c_attn.weight", (96, 32), (32, 96)),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight", (128, 32), (32, 128)),
    ],
)
def test_wrong_shape_of_a_fused_or_transposed_weight(
    tmp_path: Path, golden: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
):
    folder = copy(golden, tmp_path)
    change_weights(folder, lambda tensors: tensors.update({name: np.ones(shape, np.float32)}))
    assert_says(refusal(folder), folder / "model.safetensors", name, f"shape {shape}", f"expected {expected}")


def test_missing_fused_weight(tmp_path: Path):
    folder, name = (
        copy("phi3", tmp_path),
        "model.layers.1.mlp.gate_up_proj.weight",
    )
    change_weights(folder, lambda tensors: tensors.pop(name))
    assert_says(refusal(folder), folder, f"missing weight {name}")


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
    rounded = load_file(PLAIN / "model.safetensors")[Q].astype(stored)
    np.testing.assert_array_equal(kernel, rounded.astype(np.float32))


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
    assert_same_params(load_model(folder), load_model(PLAIN))


def test_number_that_bfloat16_cannot_hold(folder: Path):
    change_weights(folder, poke(UP, 3.4e38))
    assert_says(refusal(folder, dtype="bfloat16"), folder / "model.safetensors", UP, "bfloat16")


def test_params_do_not_change_with_the_file(folder: Path):
    path, model = folder / "model.safetensors", load_model(folder)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same_params(model, load_model(PLAIN))


def test_progress_counts_the_bytes_of_all_tensors(sharded: Path):
    seen: list[tuple[int, int]] = []
    load_model(sharded, progress=lambda done, total: seen.append((done, total)))
    sizes = [tensor.nbytes for path in sharded.glob("*.safetensors") for tensor in load_file(path).values()]
    assert {total for _, total in seen} == {sum(sizes)}
    steps = np.diff([0, *(done for done, _ in seen)])
    assert sorted(steps) == sorted(sizes)


# Over several devices


def make_mesh(**axes: int) -> jax.sharding.Mesh:
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def parts(leaf: jax.Array) -> set[tuple[int, ...]]:
    """Shapes of what the devices hold of an array."""
    return {shard.data.shape for shard in leaf.addressable_shards}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_device_holds_its_part_and_no_more(dtype: str):
    mesh = make_mesh(model=4)
    params = load_model(GOLDEN_FOLDER / "gpt2", dtype=dtype, mesh=mesh).params
    assert all(len(leaf.addressable_shards) == 4 for leaf in jax.tree.leaves(params))
    split = {"q": (8, 32), "k": (8, 32), "v": (8, 32), "o": (32, 8)}
    for name, shape in split.items():
        assert parts(params["block_1"]["attention"][name]["kernel"]) == {shape}
    assert parts(params["block_0"]["attention"]["q"]["bias"]) == {(8,)}
    assert parts(params["block_0"]["attention"]["o"]["bias"]) == {(32,)}
    assert parts(params["block_0"]["mlp"]["up"]["kernel"]) == {(32, 32)}
    assert parts(params["block_0"]["mlp"]["up"]["bias"]) == {(32,)}
    assert parts(params["block_0"]["mlp"]["down"]["kernel"]) == {(32, 32)}
    assert parts(params["block_0"]["norm_1"]["scale"]) == {(32,)}


def test_table_and_head_are_split_by_token_if_they_can_be(tmp_path: Path):
    folder, mesh = copy("mistral", tmp_path), make_mesh(model=4)
    whole = load_model(folder, mesh=mesh).params  # 97 tokens
    assert parts(whole["embed"]["embedding"]) == parts(whole["head"]["kernel"]) == {(97, 32)}
    change_config(folder, vocab_size=96)
    change_weights(
        folder, lambda tensors: tensors.update({name: tensors[name][:96] for name in (TABLE, "lm_head.weight")})
    )
    split = load_model(folder, mesh=mesh).params
    assert parts(split["embed"]["embedding"]) == parts(split["head"]["kernel"]) == {(24, 32)}


@pytest.mark.parametrize("axes", [{"model": 4}, {"texts": 2, "model": 4}], ids=str)
@pytest.mark.parametrize("golden", ["llama", "gpt_neox", "phi3", "opt_350m"])
def test_model_over_several_devices_is_the_same_model(golden: str, axes: dict[str, int]):
    one = load_model(GOLDEN_FOLDER / golden, dtype="float32")
    many = load_model(GOLDEN_FOLDER / golden, dtype="float32", mesh=make_mesh(**axes))
    assert many.fingerprint == one.fingerprint
    assert_same_params(many, one)
    x_TD = np.load(GOLDEN_FOLDER / f"{golden}.npz")["x_TD"]
    assert_close(jax.jit(many.apply)(many.params, x_TD), jax.jit(one.apply)(one.params, x_TD))


def test_other_axes_of_a_mesh_hold_copies():
    kernel = load_model(PLAIN, mesh=make_mesh(texts=2, model=4)).params["block_0"]["mlp"]["gate"]["kernel"]
    rows = [shard.index[0].start for shard in kernel.addressable_shards]
    assert parts(kernel) == {(10, 32)}
    assert sorted(rows) == sorted(2 * [0, 10, 20, 30])


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
    shutil.copy(PLAIN / "model.safetensors", sharded)
    assert_says(refusal(sharded), sharded, "model.safetensors", "model.safetensors.index.json")


def test_an_index_of_the_single_file(folder: Path):
    """As mlx-lm writes it."""
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert load_model(folder).fingerprint == load_model(PLAIN).fingerprint
    other = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names | {TABLE: other[TABLE]}}))
    assert_says(refusal(folder), folder, "both model.safetensors and model.safetensors.index.json of other files")


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
    change_config(folder, model_type="lama")
    assert_says(refusal(folder), folder / "config.json")
    assert_says(refusal(folder), "unsupported architecture 'lama'", *FAMILIES)
    assert "did you mean" not in refusal(folder)


def test_missing_architecture(folder: Path):
    change_config(folder, model_type=...)
    assert_says(refusal(folder), "config.json", "the key 'model_type' is missing")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("vocab_size", "model.embed_tokens.weight has shape (97, 32), expected (32000, 32)"),
        ("intermediate_size", "shape (32, 40), expected (32, 11008)"),
        ("num_hidden_layers", "missing weight model.layers.10."),
    ],
)
def test_default_size_that_the_weights_do_not_have(folder: Path, key: str, said: str):
    change_config(folder, **{key: ...})
    assert_says(refusal(folder), said)


def test_unknown_key_that_is_null_says_nothing(folder: Path):
    change_config(folder, some_new_option=None)
    assert load_model(folder).fingerprint == load_model(PLAIN).fingerprint


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rope_interleaved", True, False),
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
    assert fingerprint(folder) == fingerprint(PLAIN)


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
    change_config(folder, rope_parameters={"rope_type": "axial", "factor": 4.0, "rope_theta": 10000.0})
    assert_says(refusal(folder), "config.json", "RoPE type 'axial'", "supported: default, linear, dynamic, llama3")


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor"])
def test_llama3_rope_that_lacks_an_argument(folder: Path, key: str):
    change_config(folder, rope_parameters={name: value for name, value in LLAMA3.items() if name != key})
    assert_says(refusal(folder), "config.json", "RoPE type 'llama3' lacks", key)


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
    rest = {key: value for key, value in LLAMA.items() if key != "rope_parameters"} | {"model_type": "llama"}
    _, from_new = read_config(rest | {"rope_parameters": new})
    _, from_old = read_config(rest | old)
    assert from_new == from_old
    rope = from_new.layer(0).rope
    assert rope is not None
    assert (rope.kind, rope.theta) == (new["rope_type"], new["rope_theta"])


def test_two_spellings_of_rope_that_disagree(folder: Path):
    change_config(folder, rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert_says(refusal(folder), "config.json", "rope_parameters", "rope_scaling")


def test_two_spellings_of_rope_that_agree(folder: Path):
    change_config(folder, rope_scaling={"type": "default"}, rope_theta=10000)
    assert fingerprint(folder) == fingerprint(PLAIN)


# Source and dtype


def test_unknown_dtype_names_the_nearest():
    message = refusal(PLAIN, dtype="bfloat61")
    assert_says(message, "unknown dtype 'bfloat61'", "did you mean 'bfloat16'?", "known: bfloat16, float32")


@pytest.mark.parametrize("source", ["./org/name", "/a/b/c", "~/models", "a/b/c"])
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


def test_code_in_a_folder_is_never_run(folder: Path):
    """Neither by loading, nor by a report on a run of such a model, whatever stands on standard input."""
    write_tokenizer(folder, 97)
    path, ran = folder / "tokenizer_config.json", folder / "ran"
    described = json.loads(path.read_text()) | {
        "tokenizer_class": "Mine",
        "auto_map": {"AutoTokenizer": ["mine.Mine", None]},
    }
    path.write_text(json.dumps(described))
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Mine: pass\n")
    program = (
        "import sys; from onestep_jax import load_model; from onestep_jax.report.token_strings import find_tokenizer\n"
        "print(find_tokenizer(sys.argv[1])[1]); load_model(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], input="y\n" * 9, capture_output=True, text=True)
    assert "custom code?" not in done.stdout + done.stderr, "nobody is asked"
    assert f"{folder}: its tokenizer is code in that folder" in done.stdout
    assert f"UserError: {folder}: its tokenizer is code in that folder" in done.stderr
    assert not ran.exists()


def test_no_call_into_transformers_may_run_the_code_of_a_checkpoint():
    """`datasets` runs no code of a data set since 4.0, which we ask for, and huggingface_hub only fetches files."""
    called = []
    for path in sorted(ROOT.glob("onestep_jax/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "from_pretrained"
            ):
                called.append((path.name, "trust_remote_code=False" in map(ast.unparse, node.keywords)))
    assert ("tokenizer.py", True) in called
    assert all(refused for _, refused in called), called


def test_damaged_tokenizer(folder: Path):
    write_tokenizer(folder, 97)
    (folder / "tokenizer.json").write_text("{")
    assert_says(refusal(folder), folder, "the tokenizer cannot be read")


def test_unwanted_tokenizer_is_not_read(folder: Path):
    write_tokenizer(folder, 98)
    assert load_model(folder, tokenizer=False).tokenizer is None


# Stop tokens


@pytest.mark.parametrize("described", [..., None, 2, [2, 5]], ids=str)
@pytest.mark.parametrize("generation", [..., None, 2, [2, 5], [], [7]], ids=str)
def test_stop_tokens_are_written_and_read_back(folder: Path, tmp_path: Path, described: Any, generation: Any):
    change_config(folder, eos_token_id=described, bos_token_id=1)
    path = folder / "generation_config.json"
    if generation is not ...:
        path.write_text(json.dumps({"eos_token_id": generation}))
    model, saved = load_model(folder), tmp_path / "saved"
    save_model(model, saved)
    assert load_model(saved).stop_tokens == model.stop_tokens
    written = saved / "generation_config.json"
    meant = {"None": (), "2": (2,), "[2, 5]": (2, 5)}.get(str(described), ())
    if meant == model.stop_tokens:
        assert not written.exists()
    else:
        assert json.loads(written.read_text())["bos_token_id"] == 1
    written.write_text(json.dumps({"eos_token_id": 9}))
    save_model(model, saved)
    assert load_model(saved).stop_tokens == model.stop_tokens


# Fingerprint


def fingerprint(folder: Path, **options: Any) -> str:
    return load_model(folder, **options).fingerprint


def test_fingerprint_is_the_same_for_every_load(folder: Path):
    first = fingerprint(folder)
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint(folder) == first
    assert fingerprint(folder, dtype="float32") == fingerprint(folder, dtype="bfloat16") == first
    assert fingerprint(PLAIN) == first


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

"""Checkpoints made to hurt: nothing outside the folder is read, and no number or rule makes time or memory explode."""

import json
import struct
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_cases import CASES, YARN, longrope
from test_checkpoint import assert_says, change_config, copy, refusal
from tokenizers import Tokenizer, models, normalizers

from onestep_jax import load_model
from onestep_jax.cli.parser import main
from onestep_jax.errors import UserError
from onestep_jax.model.families import FAMILIES, read_config
from onestep_jax.model.families.base import LAYERS

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy("llama", tmp_path)


@pytest.mark.parametrize("name", ["../other/{}", "a/../../other/{}", "{folder}/other/{}", "..\\other\\{}", "C:\\{}"])
def test_an_index_never_leads_outside_its_folder(tmp_path: Path, name: str):
    sharded, other = copy("llama_sharded", tmp_path), tmp_path / "other"
    other.mkdir()
    index = json.loads((sharded / INDEX).read_text())
    moved = sorted(set(index["weight_map"].values()))[0]
    (sharded / moved).rename(other / moved)
    outside = name.format(moved, folder=tmp_path)
    index["weight_map"] = {key: outside if at == moved else at for key, at in index["weight_map"].items()}
    (sharded / INDEX).write_text(json.dumps(index))
    assert_says(refusal(sharded), sharded / INDEX, repr(outside), "inside its folder")


def test_an_index_may_name_a_folder_below_its_own(tmp_path: Path):
    sharded = copy("llama_sharded", tmp_path)
    index = json.loads((sharded / INDEX).read_text())
    (sharded / "parts").mkdir()
    for name in set(index["weight_map"].values()):
        (sharded / name).rename(sharded / "parts" / name)
    index["weight_map"] = {key: f"parts/{name}" for key, name in index["weight_map"].items()}
    (sharded / INDEX).write_text(json.dumps(index))
    assert load_model(sharded).fingerprint == load_model(copy("llama_sharded", tmp_path / "again")).fingerprint


def test_two_tensors_of_one_name_in_a_header(folder: Path):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    twice = json.dumps({name: header[name]})[:-1] + ", " + json.dumps(header)[1:]
    path.write_bytes(struct.pack("<Q", len(twice)) + twice.encode() + content[8 + length :])
    assert_says(refusal(folder), path, "damaged or truncated safetensors", repr(name))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("vocab_size", 2**31),
        ("vocab_size", 2**30),
        ("hidden_size", 2**30),
        ("intermediate_size", 10**12),
        ("num_attention_heads", 2**30),
        ("max_position_embeddings", 10**13),
        ("rms_norm_eps", 10**400),
        ("rms_norm_eps", float("inf")),
        ("head_dim", 2**40),
    ],
)
def test_sizes_that_the_files_do_not_have(folder: Path, key: str, value: Any):
    change_config(folder, **{key: value})
    began = time.monotonic()
    assert refusal(folder)
    assert time.monotonic() - began < 20
    assert main(["info", "--model", str(folder)]) == 2 or value < 2**31


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [(name, {"layer_types": None}) for name in CASES]
    + [("gpt2", {"scale_attn_by_inverse_layer_idx": True})]
    + [("gpt_neo", {"num_layers": 2, "attention_types": [[["local"], n]]}) for n in (10**9, 10**19, float("inf"))]
    + [("gpt_neo", {"num_layers": 2, "attention_types": [[[], 10**19], [["local"], 2]]})],
    ids=str,
)
def test_a_billion_layers(model_type: str, changes: dict[str, Any]):
    """Refused before anything is made of that number: a list of a billion names takes 8 GB and minutes."""
    (key,) = (key for key, kind in FAMILIES[model_type].handled.items() if kind == LAYERS)
    described = {"model_type": model_type, **next(iter(CASES[model_type].values())), key: 10**9} | changes
    began = time.monotonic()
    with pytest.raises(UserError, match=f"^(attention_types|{key} = 1000000000: expected a positive integer, at most)"):
        read_config(described)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("model_type", "rope", "said"),
    [
        ("phi3", longrope(4, original=1), "original_max_position_embeddings = 1: expected at least 2"),
        ("llama", longrope(4, original=1), "original_max_position_embeddings = 1: expected at least 2"),
        ("llama", YARN | {"rope_theta": 1}, "rope_parameters: rope_theta = 1: RoPE type 'yarn' divides by"),
    ],
    ids=str,
)
def test_rotary_settings_whose_logarithm_is_zero(model_type: str, rope: dict[str, Any], said: str):
    described = next(iter(CASES[model_type].values())) | {"original_max_position_embeddings": 1}
    with pytest.raises(UserError, match=said):
        read_config({"model_type": model_type, **described, "rope_parameters": rope})
    told = rope | {"attention_factor": 1.0, "rope_theta": 1.5}
    read_config({"model_type": model_type, **described, "rope_parameters": told})


def test_large_whole_numbers_are_numbers(folder: Path):
    """10¹³ is no 32-bit integer, and transformers takes it."""
    change_config(folder, rms_norm_eps=10**13)
    model = load_model(folder)
    assert np.isfinite(np.asarray(model.apply(model.params, np.ones((3, model.embed_width), np.float32)))).all()


@pytest.mark.parametrize("value", ["</s>", 1.5, [1, "2"], {"id": 1}, [True]])
def test_stop_tokens_that_are_no_ids(folder: Path, value: Any):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert_says(refusal(folder), "generation_config.json", "eos_token_id", "expected a token id")


def test_rules_that_make_a_text_explode(folder: Path):
    """Nine rules of sixteen: a text of a hundred letters would take 6 TB."""
    letters = "abcdefghij"
    rules = [normalizers.Replace(a, 16 * b) for a, b in pairwise(letters)]
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(rules)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert_says(refusal(folder), folder / "tokenizer.json", "replacement rules", "6.87e+10 times as long")


@pytest.mark.parametrize("name", ["../other/tokenizer.4.0.0.json", "/tmp/tokenizer.4.0.0.json", "a/../x.json", "..\\x"])
def test_a_tokenizer_is_read_from_its_folder_alone(folder: Path, name: str):
    (folder / "tokenizer_config.json").write_text(json.dumps({"fast_tokenizer_files": [name]}))
    assert_says(refusal(folder), folder / "tokenizer_config.json", repr(name), "not in the folder itself")


def test_rules_of_a_newer_file_are_looked_at(folder: Path):
    """transformers reads the file of its own version where tokenizer_config.json names it."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer.normalizer = normalizers.Replace("b", "a")
    tokenizer.save(str(folder / "tokenizer.4.0.0.json"))
    assert load_model(folder).tokenizer("b", add_special_tokens=False)["input_ids"] == [1]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(a, 16 * b) for a, b in pairwise("abcd")])
    tokenizer.save(str(folder / "tokenizer.4.0.0.json"))
    assert_says(refusal(folder), folder / "tokenizer.4.0.0.json", "replacement rules")


def test_a_damaged_list_of_files_is_named(folder: Path):
    (folder / "tokenizer_config.json").write_text('{"fast_tokenizer_files": [3]}')
    assert_says(refusal(folder), folder / "tokenizer_config.json", "fast_tokenizer_files")


def test_usual_rules_are_taken(folder: Path):
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert load_model(folder).tokenizer("a", add_special_tokens=False)["input_ids"] == [0]


@pytest.mark.parametrize("content", ["[" * 10**6, '{"normalizer": ' + "[" * 10**6, '{"model": ' + '{"a":' * 10**6])
def test_nests_of_a_million(folder: Path, content: str):
    for name in ("tokenizer.json", "config.json"):
        (folder / name).write_text(content)
        assert_says(refusal(folder), folder / name)


def test_the_model_of_a_run_is_found_from_any_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    texts = tmp_path / "ids.jsonl"
    texts.write_text('{"text": "a"}\n')
    tokenizer = Tokenizer(models.WordLevel({"a": 1, "<unk>": 0}, unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    run = str(tmp_path / "run")
    command = ["fit", "--model", folder.name, "--texts", str(texts), "--length", "1", "--steps", "3", "--run", run]
    assert main(command) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["decode", run]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["model"] == str(folder)


def _gguf(*, tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


LIST, UINT32, KEY = 9, 4, struct.pack("<Q", 1) + b"a"
HEADERS = {
    "entries": _gguf(entries=2**60),
    "tensors": _gguf(tensors=2**60),
    "a string": _gguf(entries=1, rest=struct.pack("<Q", 2**60)),
    "a list": _gguf(entries=1, rest=KEY + struct.pack("<IIQ", LIST, UINT32, 2**60)),
    "lists in lists": _gguf(entries=1, rest=KEY + struct.pack("<I", LIST) + struct.pack("<IQ", LIST, 1) * 10**6),
    "axes": _gguf(tensors=1, rest=KEY + struct.pack("<I", 2**31)),
    "an axis": _gguf(tensors=1, rest=KEY + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_gguf_header_that_promises_too_much(tmp_path: Path, what: str):
    path = tmp_path / "a.gguf"
    path.write_bytes(HEADERS[what])
    assert_says(refusal(path), path, "damaged or truncated GGUF file")

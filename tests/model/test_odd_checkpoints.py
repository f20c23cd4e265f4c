"""Odd checkpoints that transformers loads: what is read, what is named and ignored, what stays refused.

Their logits and gradients are compared with those of transformers in test_checkpoints_parity.py.
"""

from __future__ import annotations

import ast
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from family_cases import CASES, GOLDEN_FOLDER, LINEAR, LLAMA, YARN
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onestep_jax import fit
from onestep_jax.errors import UserError
from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.families import FAMILIES, oracle, read_described
from onestep_jax.model.families.base import IGNORED, REQUIRED
from onestep_jax.model.families.wrappers import WRAPPERS
from onestep_jax.model.generation import generate
from onestep_jax.model.likelihood import text_nats

Config = dict[str, Any]
TRANSFORMERS = Path(transformers.__file__).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound Llama, to be made odd."""
    return Path(shutil.copytree(GOLDEN_FOLDER / "llama", tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def notes(**keys: Any) -> list[str]:
    """What is said about a Llama's config.json with more keys."""
    return read_described({"model_type": "llama", **LLAMA, **keys}).notes


# Keys


def test_one_warning_names_all_keys_without_effect(folder: Path):
    change_config(folder, unsloth_version="2025", unk_token_id=0, custom_pipelines={}, rope_parameters=YARN | {"x": 1})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(folder)
    (said,) = (str(warning.message) for warning in caught)
    reason = "keys without effect, since transformers does not read them for llama"
    assert said == (
        f"{folder / 'config.json'}: {reason}: unsloth_version, unk_token_id, custom_pipelines, rope_parameters.x"
    )


def test_unread_keys_change_nothing(folder: Path):
    change_config(folder, attention_bais=True)
    with pytest.warns(UserWarning, match="attention_bais"):
        model = load_model(folder)
    assert model.fingerprint == load_model(GOLDEN_FOLDER / "llama").fingerprint


@pytest.mark.parametrize(
    "key",
    ["is_causal", "text_config", "attention_chunk_size", "per_layer_config", "default_theta", "to_dict"],
)
def test_key_that_transformers_knows_is_refused(key: str):
    with pytest.raises(UserError, match=f"{key} = 3 is not supported: transformers knows it for llama"):
        notes(**{key: 3})


def test_alias_of_a_key_is_refused():
    gpt2 = {"model_type": "gpt2", **CASES["gpt2"]["tied"]}
    with pytest.raises(UserError, match="num_hidden_layers = 2 is not supported: transformers knows it for gpt2"):
        read_described(gpt2 | {"num_hidden_layers": 2})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_of_the_config_class_is_accounted_for(model_type: str):
    family = FAMILIES[model_type]
    known = IGNORED | REQUIRED.keys() | family.handled.keys() | family.required.keys() | set(family.ignored)
    assert oracle.own_keys(model_type) <= known


def names_read(path: Path) -> set[str]:
    """Names that a file of transformers takes from a configuration by `getattr`, or out of keyword arguments."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
        by_name = called in ("getattr", "hasattr") and "config" in first and len(node.args) > 1
        out_of = called in ("kwargs.pop", "kwargs.get") and path.name.startswith("configuration_")
        name = node.args[1] if by_name else node.args[0] if out_of else None
        if isinstance(name, ast.Constant):
            found.add(str(name.value))
    return found


# Options of `from_pretrained` and `save_pretrained`; what concerns training, other tasks, or heads that predict further
# tokens.
ELSEWHERE = set(
    """__class__ _configuration_file _from_auto _from_pipeline cache_dir commit_message experts_implementation
    force_download gguf_file local_files_only proxies repo_id return_unused_kwargs revision subfolder token
    trust_remote_code initializer_factor token_classification_bias logits_mup_width_multiplier chain_hidden_post_norm
    mtp_hidden_states_first first_k_dense_replace hidden_dropout init_std mtp_mlp_layer_types mtp_per_layer_config
    num_mtp_layers kv_sharing_modes number_of_conv_states summary_last_dropout""".split()
)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_that_transformers_reads_beside_its_fields_are_known(model_type: str):
    shared = ["configuration_utils", "modeling_utils", "masking_utils", "modeling_rope_utils", "modeling_layers"]
    place = TRANSFORMERS / "models" / model_type.removesuffix("_text")
    paths = [TRANSFORMERS / f"{name}.py" for name in shared]
    paths += [*place.glob("configuration_*.py"), *place.glob("modeling_*.py")]
    read = set().union(*map(names_read, paths)) - ELSEWHERE - IGNORED
    assert {name for name in read if not oracle.knows(model_type, name)} == set()


# Rotary positions


def test_a_note_is_only_about_what_is_not_read():
    assert notes(rope_parameters=YARN) == []
    assert notes(rope_parameters=YARN | {"attn_factor": 0.5})[0].endswith(": rope_parameters.attn_factor")
    assert notes(rope_parameters=None, rope_scaling=LINEAR | {"beta_fast": 1.0})[0].endswith(": rope_scaling.beta_fast")


def test_dynamic_rope_is_plain_within_the_context(folder: Path):
    plain = load_model(folder)
    change_config(folder, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0})
    dynamic = load_model(folder)
    assert dynamic.fingerprint == plain.fingerprint
    with pytest.raises(UserError, match="65 tokens, the model's context has room for 63"):
        fit(dynamic, [list(range(65))])


# A tokenizer with more ids than the table has rows


@pytest.fixture
def wide(folder: Path) -> Path:
    """Words w0 to w99 for a table of 97 rows; the last is the token before a text."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(100)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w99").save_pretrained(folder)
    return folder


def test_only_a_text_that_uses_an_id_without_a_row_is_refused(wide: Path):
    model = load_model(wide)
    results = fit(model, ["w3 w96", "w5 w6"], steps=2)
    assert [text.tokens.tolist() for text in results.texts] == [[3, 96], [5, 6]]
    with pytest.raises(UserError, match=r"text 1: token id 98 is not in the model's vocabulary of 97"):
        fit(model, ["w3", "w4 w98"], steps=2)
    with pytest.raises(UserError, match=r"prompt 0: token id 97 is not in the model's vocabulary of 97"):
        generate(model, ["w97"], count=1)


def test_a_token_before_the_text_without_a_row_is_left_out(wide: Path):
    model = load_model(wide)
    (nats,) = text_nats(model, [[3, 96, 4]])
    assert nats.nats.shape == (2,)
    assert np.isfinite(nats.total)


# Decoders that are part of a whole

WHOLE: Config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999}
WHOLE |= {"eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02}
WHOLE |= {"mm_tokens_per_image": 256, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0"}
WHOLE["vision_config"] = {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"}
WHOLE["text_config"] = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def test_gemma_3_4b_as_published():
    reading = read_described(WHOLE)
    c = reading.config
    assert (c.vocab_size, c.layers, c.heads, c.kv_heads, c.head_dim, c.tied) == (262208, 34, 8, 4, 256, True)
    assert [(layer.window, layer.rope.kind, layer.rope.factor) for layer in c.pattern[4:6] if layer.rope] == [
        (1024, "default", 1.0),
        (None, "linear", 8.0),
    ]
    said = "only the text decoder (gemma3_text) of this gemma3 is used, without what reads pictures"
    assert reading.notes == [said]
    assert reading.described["eos_token_id"] == [1, 106]


def test_a_whole_whose_decoder_is_not_supported():
    with pytest.raises(UserError, match="unsupported architecture 'cohere2'"):
        read_described({"model_type": "llava", "text_config": {"model_type": "cohere2"}})
    with pytest.raises(UserError, match="text_config = None: expected an object that describes the decoder of llava"):
        read_described({"model_type": "llava"})


@pytest.mark.parametrize("model_type", ["paligemma", "mllama", "qwen2_vl", "gemma3n"])
def test_a_whole_whose_decoder_sees_a_text_otherwise_is_refused(model_type: str):
    with pytest.raises(UserError, match=f"unsupported architecture '{model_type}'"):
        read_described({"model_type": model_type, "text_config": {"model_type": "llama"}})


def test_keys_of_a_whole():
    assert "frobnicate" in read_described(WHOLE | {"frobnicate": 1}).notes[1]
    with pytest.raises(UserError, match="is_causal = False is not supported for gemma3"):
        read_described(WHOLE | {"is_causal": False})
    with pytest.raises(UserError, match="quantised checkpoints are not supported"):
        read_described(WHOLE | {"quantization_config": {"bits": 4}})
    assert all(oracle.config_class(name) is not None for name in WRAPPERS)

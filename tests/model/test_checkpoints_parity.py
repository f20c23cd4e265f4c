"""Odd checkpoints that transformers loads: ours gives the same logits and gradients, and says what has no effect.

Needs torch (`pip install -e .[parity]`); what needs none is in test_odd_checkpoints.py.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import TOLERANCE
from family_cases import CASES, GEMMA3, LINEAR, LLAMA, PLAIN_ROPE, TWO_HEADS, UNTIED, YARN, longrope
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from onestep_jax.errors import UserError
from onestep_jax.model.checkpoint import load_model, save_model
from onestep_jax.model.decoder import Model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

import parity  # noqa: E402

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; the value `...` removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def written(model_type: str, options: Config, folder: Path) -> Path:
    return parity.save(parity.build(model_type, options), folder)


def read_by_transformers(folder: Path, kind: Any = AutoModelForCausalLM) -> Any:
    theirs = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return theirs.eval().requires_grad_(False)


def assert_same(ours: Model, theirs: Any) -> None:
    x_GTD, cotangent_GTV = parity.inputs(theirs)
    there, here = parity.run_theirs(theirs, x_GTD, cotangent_GTV), parity.run_ours(ours, x_GTD, cotangent_GTV)
    assert max(parity.by_text(here.logits, there.logits)) <= TOLERANCE
    assert max(parity.by_text(here.gradient, there.gradient)) <= TOLERANCE
    assert parity.embed_error(ours, theirs) == 0


def assert_read_alike(folder: Path, *said: str) -> Model:
    """Load a folder here and there; every warning of ours is one that says all of `said`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = load_model(folder, dtype="float32")
    told = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert len(told) == bool(said)
    assert all(words in told[0] for words in said), told
    assert_same(ours, read_by_transformers(folder))
    return ours


PLAIN = {model_type: next(iter(cases.values())) for model_type, cases in CASES.items()}


@pytest.mark.parametrize("model_type", PLAIN)
def test_keys_of_other_tools(model_type: str, tmp_path: Path):
    folder = written(model_type, PLAIN[model_type], tmp_path)
    change_config(folder, unsloth_fixed=True, unk_token_id=3, custom_pipelines={"x": {"impl": "y"}}, attention_bais=1)
    assert_read_alike(folder, "unsloth_fixed", "unk_token_id", "custom_pipelines", "attention_bais", model_type)


# Rotary positions


@pytest.mark.parametrize("rope_key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("rope", "unread"),
    [
        (YARN | {"attn_factor": 0.5, "finetuned": True}, ["attn_factor", "finetuned"]),
        (YARN | {"mscale": 0, "mscale_all_dim": 0.4, "beta_fast": 0}, []),
        (LINEAR | {"attention_factor": 3.0, "original_max_position_embeddings": 8}, ["attention_factor", "original"]),
        (PLAIN_ROPE | {"factor": 3.0, "beta_fast": 2.0}, ["factor", "beta_fast"]),
        ({"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}, []),
        ({"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 8}, ["original_max_position"]),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0}, []),
    ],
    ids=str,
)
def test_rotary_arguments_that_transformers_does_not_read(rope: Config, unread: list[str], rope_key: str, tmp_path):
    folder = written("llama", LLAMA | TWO_HEADS, tmp_path)
    change_config(folder, rope_parameters=..., rope_theta=10000.0)
    change_config(folder, **{rope_key: rope})
    assert_read_alike(folder, *unread)


@pytest.mark.parametrize("inside", [{}, {"original_max_position_embeddings": 16}], ids=str)
def test_context_before_stretching_that_stands_outside(inside: Config, tmp_path: Path):
    rope = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"} | inside
    folder = written("llama", LLAMA | TWO_HEADS, tmp_path)
    change_config(folder, rope_parameters=rope, original_max_position_embeddings=7)
    assert_read_alike(folder)


def test_dynamic_rope_up_to_the_end_of_the_context(tmp_path: Path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.5}
    options = PLAIN["gpt_neox"] | {"max_position_embeddings": parity.POSITIONS, "rope_parameters": rope}
    assert_read_alike(written("gpt_neox", options, tmp_path))


@pytest.mark.parametrize("scale", ["short", "long"])
def test_mscale_of_phi_3(scale: str, tmp_path: Path):
    original = {"short": 32, "long": 8}[scale]
    rope = longrope(4, original) | {"short_mscale": 1.3, "long_mscale": 1.7}
    options = PLAIN["phi3"] | {"original_max_position_embeddings": original, "rope_parameters": rope}
    assert_read_alike(written("phi3", options, tmp_path), "short_mscale", "long_mscale")


NESTED = {"full_attention": LINEAR, "sliding_attention": PLAIN_ROPE | {"rope_theta": 300.0}}


@pytest.mark.parametrize(
    ("keys", "unread"),
    [
        ({"rope_parameters": NESTED}, []),
        ({"rope_parameters": {"full_attention": LINEAR}, "rope_local_base_freq": 77.0}, []),
        ({"rope_parameters": NESTED, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, []),
        ({"rope_parameters": NESTED | {"chunked_attention": LINEAR}}, ["rope_parameters.chunked_attention"]),
        ({"rope_parameters": LINEAR}, ["rope_parameters.factor", "rope_parameters.rope_type"]),
        ({"rope_scaling": NESTED}, ["rope_scaling.full_attention", "rope_scaling.sliding_attention"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 500.0}, []),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}, "rope_theta": 500.0}, ["factor"]),
        ({"rope_parameters": NESTED | {"sliding_attention": LINEAR | {"rope_type": "dynamic"}}}, []),
    ],
    ids=str,
)
def test_rotary_positions_by_kind_of_layer(keys: Config, unread: list[str], tmp_path: Path):
    folder = written("gemma3_text", GEMMA3 | {"sliding_window_pattern": 3}, tmp_path)
    change_config(folder, rope_parameters=..., rope_scaling=...)
    change_config(folder, **keys)
    assert_read_alike(folder, *unread)


# Absent keys


@pytest.mark.parametrize(
    ("model_type", "absent"),
    [
        (model_type, key)
        for model_type in PLAIN
        for key in ("max_position_embeddings", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "hidden_act")
        if key in AutoConfig.for_model(model_type, **PLAIN[model_type]).to_dict()
        and (key != "max_position_embeddings" or model_type not in ("gpt_neo", "opt"))  # rows of a table
    ],
)
def test_absent_key(model_type: str, absent: str, tmp_path: Path):
    folder = written(model_type, PLAIN[model_type], tmp_path)
    change_config(folder, **{absent: ...})
    assert_read_alike(folder)


# Tied heads

HEADS = {"gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight")}
HEADS |= {"gpt2": ("transformer.wte.weight", "lm_head.weight"), "gpt_neo": ("transformer.wte.weight", "lm_head.weight")}
HEADS |= {"opt": ("model.decoder.embed_tokens.weight", "lm_head.weight")}


@pytest.mark.parametrize("stored", ["another head", "a copy", "the head alone"])
@pytest.mark.parametrize("model_type", PLAIN)
def test_tied_head_in_the_file(model_type: str, stored: str, tmp_path: Path):
    table, head = HEADS.get(model_type, ("model.embed_tokens.weight", "lm_head.weight"))
    folder = written(model_type, PLAIN[model_type] | {"tie_word_embeddings": True}, tmp_path / "model")

    def change(tensors: Tensors) -> Tensors:
        if stored == "the head alone":
            return {head if name == table else name: tensor for name, tensor in tensors.items()}
        return tensors | {head: tensors[table] * (0.5 if stored == "another head" else 1)}

    plain = load_model(folder, dtype="float32")
    change_weights(folder, change)
    ours = assert_read_alike(folder)
    assert ours.config.tied == (stored != "another head")
    assert (ours.fingerprint == plain.fingerprint) == ours.config.tied
    save_model(ours, tmp_path / "again")
    assert load_model(tmp_path / "again").fingerprint == ours.fingerprint
    assert read_by_transformers(tmp_path / "again").config.tie_word_embeddings == ours.config.tied


def test_buffers_of_rotary_positions(tmp_path: Path):
    folder = written("llama", LLAMA, tmp_path)
    names = ("model.layers.0.self_attn.rotary_emb.cos_cached", "model.layers.1.self_attn.rotary_emb.sin_cached")
    names += ("model.rotary_emb.inv_freq",)
    change_weights(folder, lambda tensors: tensors | {name: np.full((1, 1, 9, 8), 7, np.float32) for name in names})
    assert_read_alike(folder)


# Decoders that are part of a whole

VISION: Config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 8, "patch_size": 4}
CLIP, SIGLIP = VISION | {"model_type": "clip_vision_model"}, VISION | {"model_type": "siglip_vision_model"}
WHOLES: dict[str, tuple[str, Config]] = {
    "gemma3": ("gemma3_text", SIGLIP),
    "idefics3": ("llama", VISION),
    "internvl": ("qwen2", VISION | {"image_size": [8, 8], "patch_size": [4, 4]}),
    "llava": ("llama", CLIP),
    "llava_next": ("mistral", CLIP),
    "llava_onevision": ("qwen2", SIGLIP),
    "mistral3": ("mistral", VISION | {"model_type": "pixtral", "head_dim": 8}),
    "smolvlm": ("llama", VISION),
    "vipllava": ("llama", CLIP),
}


def whole(model_type: str, folder: Path, text: Config, **options: Any) -> Path:
    """Write a whole whose every weight is random."""
    text_type, vision = WHOLES[model_type]
    described = AutoConfig.for_model(
        model_type, text_config={"model_type": text_type, **text}, vision_config=vision, **options
    )
    theirs = AutoModelForImageTextToText.from_config(described).float().eval()
    generator = torch.Generator().manual_seed(0)
    mean = 0.0 if model_type == "gemma3" else 1.0
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            about = mean if weight.ndim == 1 and name.endswith("weight") else 0.0
            weight.copy_(about + parity.STD * torch.randn(weight.shape, generator=generator))
    return parity.save(theirs, folder)


def later_names(tensors: Tensors) -> Tensors:
    """The names of transformers 4.52 to 4.57."""

    def renamed(name: str) -> str:
        if name.startswith("language_model.lm_head"):
            return name.removeprefix("language_model.")
        if name.startswith("language_model.model."):
            return "model.language_model." + name.removeprefix("language_model.model.")
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

    return {renamed(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", WHOLES)
def test_decoder_of_a_whole(model_type: str, tied: bool, tmp_path: Path):
    text = GEMMA3 | {"sliding_window_pattern": 3, "final_logit_softcapping": 5.0} if model_type == "gemma3" else LLAMA
    folder = whole(model_type, tmp_path / "whole", text | UNTIED, tie_word_embeddings=tied)
    text_type = WHOLES[model_type][0]
    with pytest.warns(UserWarning, match=rf"only the text decoder \({text_type}\) of this {model_type}"):
        ours = load_model(folder, dtype="float32")
    assert ours.config.tied == tied
    assert_same(ours, read_by_transformers(folder, AutoModelForImageTextToText))
    save_model(ours, tmp_path / "decoder")
    assert load_model(tmp_path / "decoder").fingerprint == ours.fingerprint
    alone = read_by_transformers(tmp_path / "decoder")
    assert type(alone).__name__.endswith("ForCausalLM")
    assert_same(ours, alone)
    change_weights(folder, later_names)
    with pytest.warns(UserWarning, match="only the text decoder"):
        assert load_model(folder).fingerprint == ours.fingerprint


@pytest.mark.parametrize("model_type", ["llava", "llava_onevision"])
def test_decoder_that_says_that_its_head_is_tied(model_type: str, tmp_path: Path):
    folder = whole(model_type, tmp_path, LLAMA)
    change_config(folder, tie_word_embeddings=...)
    with pytest.warns(UserWarning, match="only the text decoder"):
        ours = load_model(folder, dtype="float32")
    assert ours.config.tied
    assert_same(ours, read_by_transformers(folder, AutoModelForImageTextToText))


def test_decoder_of_a_whole_whose_sizes_are_those_of_transformers(tmp_path: Path):
    """google/gemma-3-4b-it names few sizes; here only those that would make a large model are named."""
    text = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 97}
    folder = whole("gemma3", tmp_path, text)
    path = folder / "config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"text_config": {**text, "model_type": "gemma3_text"}}))
    with pytest.warns(UserWarning, match="only the text decoder"):
        ours = load_model(folder, dtype="float32")
    assert (ours.config.heads, ours.config.kv_heads, ours.config.head_dim) == (8, 4, 256)
    assert_same(ours, read_by_transformers(folder, AutoModelForImageTextToText))


def test_key_that_transformers_knows_stays_refused(tmp_path: Path):
    folder = written("llama", LLAMA | UNTIED, tmp_path)
    change_config(folder, is_causal=False)
    with pytest.raises(UserError, match=r"is_causal = False is not supported: transformers knows it for llama"):
        load_model(folder)

"""What a config.json means, in every family and in the spelling of every time; needs no torch."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from closeness import TOLERANCE
from family_cases import CASES, LAYER_TYPES, LINEAR, LLAMA3, PLAIN_ROPE, YARN, longrope
from hub_configs import HUB
from transformers import AutoConfig

from onestep_jax.errors import UserError
from onestep_jax.model.config import Layer, ModelConfig, Rope
from onestep_jax.model.decoder import parameter_shapes
from onestep_jax.model.families import FAMILIES, read_config

TABLE = Path(__file__).parents[2] / "docs" / "parity.md"

Config = dict[str, Any]


def described(model_type: str, case: str) -> Config:
    """What transformers writes as the config.json of a case."""
    return AutoConfig.for_model(model_type, **CASES[model_type][case]).to_dict()


def plain(model_type: str, **changes: Any) -> Config:
    """A family's plain config.json, changed."""
    return described(model_type, next(iter(CASES[model_type]))) | changes


def meaning(config: Config) -> ModelConfig | str:
    """The architecture, or the message of the refusal."""
    try:
        return read_config(config)[1]
    except UserError as error:
        return str(error)


def their_meaning(config: Config) -> ModelConfig | str:
    """What transformers makes of it, in our terms, or its refusal."""
    try:
        described = AutoConfig.for_model(**config).to_dict()
    except Exception as error:
        return str(error)
    return meaning(described)


def test_every_family_has_cases():
    assert CASES.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("model_type", "key"), [(name, key) for name in CASES for key in FAMILIES[name].handled if key in plain(name)]
)
def test_absent_key_means_what_transformers_takes_it_for(model_type: str, key: str):
    for case in CASES[model_type]:
        for dropped in ({key}, {key, "layer_types"}):  # which transformers derives from other keys
            rest = {name: value for name, value in described(model_type, case).items() if name not in dropped}
            ours, theirs = meaning(rest), their_meaning(rest)
            assert ours == theirs or (isinstance(ours, str) and isinstance(theirs, str)), case


@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        *((name, "head_dim") for name in ("llama", "mistral")),
        *((name, "num_key_value_heads") for name in ("llama", "qwen2", "qwen3", "olmo", "olmo2", "phi3")),
        *((name, "sliding_window") for name in ("mistral", "qwen2", "qwen3", "phi3")),
        *((name, "layer_types") for name in ("qwen2", "qwen3", "gemma2", "gemma3_text")),
        *((name, "rope_parameters") for name in CASES if "rope_parameters" in FAMILIES[name].handled),
        *((name, "attn_logit_softcapping") for name in ("gemma2", "gemma3_text")),
        *((name, "final_logit_softcapping") for name in ("gemma2", "gemma3_text")),
        ("olmo", "clip_qkv"),
        ("gpt2", "n_inner"),
        ("gpt_neo", "intermediate_size"),
    ],
)
def test_null_means_what_transformers_takes_it_for(model_type: str, key: str):
    for case in CASES[model_type]:
        config = described(model_type, case) | {key: None}
        assert meaning(config) == meaning(AutoConfig.for_model(**config).to_dict()), case


# Files of well-known checkpoints


@pytest.mark.parametrize("name", HUB)
def test_published_config_gives_the_published_number_of_weights(name: str):
    family, config = read_config(HUB[name].config)
    shapes = parameter_shapes(config)
    assert sum(math.prod(shape) for shape in shapes.values()) == HUB[name].weights
    assert sorted(row.path for row in family.weights(config)) == sorted(shapes)


def llama3(factor: float) -> Rope:
    return Rope(500000.0, "llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)


def phi_rope(share: float) -> Rope:
    scaling = HUB["microsoft/Phi-3-mini-128k-instruct"].config["rope_scaling"]
    short, long = tuple(scaling["short_factor"]), tuple(scaling["long_factor"])
    magnitude = math.sqrt(1 + math.log(131072 / 4096) / math.log(4096))
    return Rope(10000.0, "longrope", share, magnitude, original_context=4096, short_factors=short, long_factors=long)


def gemma3(layers: int) -> tuple[Layer, ...]:
    """Every sixth layer sees all, with positions of its own."""
    kinds = {True: Layer(Rope(1000000.0), None, 1 / 16), False: Layer(Rope(10000.0), 512, 1 / 16)}
    return tuple(kinds[i % 6 == 5] for i in range(layers))


PYTHIA: Config = {
    "pattern": (Layer(Rope(10000.0, fraction=0.25)),),
    "parallel": True,
    "norm": "layer",
    "qkv_bias": True,
    "gated": False,
    "activation": "gelu",
    "tied": False,
}
FIELDS: dict[str, Config] = {
    "EleutherAI/pythia-160m": PYTHIA,
    "EleutherAI/pythia-160m, later": PYTHIA,
    "EleutherAI/gpt-neox-20b": PYTHIA | {"activation": "gelu_tanh", "head_dim": 96},
    "openai-community/gpt2": {
        "pattern": (Layer(None, scale=1 / 8),),
        "ffn": 3072,
        "position_rows": 1024,
        "tied": True,
        "activation": "gelu_tanh",
        "out_bias": True,
    },
    "EleutherAI/gpt-neo-125m": {
        "pattern": (Layer(None, scale=1.0), Layer(None, 256, 1.0)) * 6,
        "ffn": 3072,
        "tied": True,
        "qkv_bias": False,
        "out_bias": True,
    },
    "facebook/opt-125m": {"norm_at": "input", "final_norm": True, "embed_width": None, "position_rows": 2050},
    "facebook/opt-350m": {"norm_at": "sum", "final_norm": False, "embed_width": 512, "position_offset": 2},
    "meta-llama/Llama-3.2-1B": {"pattern": (Layer(llama3(32.0)),), "tied": True, "kv_heads": 8, "context": 131072},
    "meta-llama/Llama-3.1-8B": {"pattern": (Layer(llama3(8.0)),), "tied": False, "head_dim": 128},
    "HuggingFaceTB/SmolLM2-135M": {"pattern": (Layer(Rope(100000.0)),), "heads": 9, "kv_heads": 3, "tied": True},
    "princeton-nlp/Sheared-LLaMA-1.3B": {"pattern": (Layer(Rope(10000.0)),), "kv_heads": 16, "norm_eps": 1e-5},
    "TinyLlama/TinyLlama_v1.1": {"pattern": (Layer(Rope(10000.0)),), "kv_heads": 4, "head_dim": 64},
    "mistralai/Mistral-7B-v0.1": {"pattern": (Layer(Rope(10000.0), 4096),), "kv_heads": 8, "tied": False},
    "Qwen/Qwen2.5-0.5B": {
        "pattern": (Layer(Rope(1000000.0)),) * 24,
        "qkv_bias": True,
        "out_bias": False,
        "tied": True,
        "qk_norm": None,
    },
    "Qwen/Qwen3-0.6B": {
        "pattern": (Layer(Rope(1000000.0)),) * 28,
        "qk_norm": "head",
        "head_dim": 128,
        "qkv_bias": False,
        "tied": True,
    },
    "google/gemma-2-2b": {
        "pattern": (Layer(Rope(10000.0), 4096, 1 / 16), Layer(Rope(10000.0), None, 1 / 16)) * 13,
        "score_cap": 50.0,
        "logit_cap": 30.0,
        "embed_scale": 48.0,
        "norm": "rms_plus_one",
        "norm_at": "both",
        "activation": "gelu_tanh",
        "tied": True,
    },
    "google/gemma-3-1b-pt": {
        "pattern": gemma3(26),
        "qk_norm": "head",
        "score_cap": None,
        "logit_cap": None,
        "tied": True,
        "embed_scale": math.sqrt(1152),
    },
    "google/gemma-3-270m": {"pattern": gemma3(18), "head_dim": 256, "heads": 4, "kv_heads": 1},
    "allenai/OLMo-1B-hf": {"norm": "layer_plain", "norm_eps": 1e-5, "clip_qkv": None, "tied": True},
    "allenai/OLMo-2-0425-1B": {
        "pattern": (Layer(Rope(500000.0)),),
        "norm_at": "output",
        "qk_norm": "all",
        "norm_eps": 1e-6,
        "tied": False,
    },
    "microsoft/Phi-3-mini-4k-instruct": {"pattern": (Layer(Rope(10000.0), 2047),), "head_dim": 96, "tied": False},
    "microsoft/Phi-3-mini-128k-instruct": {"pattern": (Layer(phi_rope(1.0), 262144),), "boundary": 4096},
    "microsoft/Phi-4-mini-instruct": {"pattern": (Layer(phi_rope(0.75), 262144),), "head_dim": 128, "tied": True},
}


@pytest.mark.parametrize("name", FIELDS)
def test_published_config_is_read_right(name: str):
    _, config = read_config(HUB[name].config)
    assert {field: getattr(config, field) for field in FIELDS[name]} == FIELDS[name]


def test_every_sixth_layer_of_gemma_3_sees_all_unless_told_otherwise():
    config = HUB["google/gemma-3-1b-pt"].config
    assert meaning({key: value for key, value in config.items() if key != "sliding_window_pattern"}) == meaning(config)
    assert meaning(config | {"sliding_window_pattern": 5}) != meaning(config)


def test_copies_of_the_rotary_settings_of_gpt_neox_say_nothing():
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    config = plain("gpt_neox", rope_parameters=rope)
    assert meaning(config | {"rope_theta": 500.0, "partial_rotary_factor": 0.5}) == meaning(config)


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_old_names_of_the_phi_3_rope_mean_the_same(name: str):
    config = HUB["microsoft/Phi-3-mini-128k-instruct"].config
    renamed = config | {"rope_scaling": config["rope_scaling"] | {"type": name}}
    assert meaning(renamed) == meaning(config)


# Refusals


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        ("gemma2", {"sliding_window": None}, "layers (layer_types) have no window"),
        ("gemma3_text", {"sliding_window": None}, "layers (layer_types) have no window"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True is not supported for qwen2; expected False"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias = True is not supported for phi3; expected False"),
        ("opt", {"scale_embeddings": True}, "scale_embeddings = True is not supported for opt; expected False"),
        (
            "llama",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor = 0.5 is not supported: transformers knows it",
        ),
        ("gemma2", {"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention' is not supported"),
        ("qwen2", {"layer_types": LAYER_TYPES}, "layers (layer_types) have no window"),
        ("qwen2", {"layer_types": LAYER_TYPES[:1]}, "layer_types: 1 entries; expected one for each of 2 layers"),
        ("gemma3_text", {"layer_types": LAYER_TYPES * 2}, "layer_types: 4 entries; expected one for each of 3 layers"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 2]]}, "attention_types = [[['global', 'local'], 2]]:"),
        ("gpt_neo", {"attention_types": [[["global", "sparse"], 1]]}, "of global and local for 2 layers"),
        ("gpt_neo", {"attention_types": ["global", "local"]}, "attention_types = ['global', 'local']: expected [[["),
        ("gpt_neo", {"attention_layers": ["local", "global"]}, "attention_layers = ['local', 'global'] disagrees"),
        ("llama", {"hidden_act": "gelu_fats"}, "hidden_act = 'gelu_fats' is not supported; supported: silu,"),
        ("gpt2", {"activation_function": "mish"}, "activation_function = 'mish' is not supported"),
        ("gemma2", {"hidden_activation": "tanh"}, "hidden_activation = 'tanh' is not supported"),
        ("gpt_neox", {"rope_theta": 500.0}, "rope_theta = 500.0 disagrees with 10000.0"),
        ("gpt_neox", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 disagrees with 0.25"),
        ("gpt_neo", {"num_heads": 3}, "num_heads = 3: expected a divisor of hidden_size = 32"),
        (
            "llama",
            {"num_key_value_heads": 3},
            "expected a multiple of num_key_value_heads = 3",
        ),
    ],
)
def test_option_that_is_not_supported(model_type: str, changes: Config, said: str):
    assert said in meaning(plain(model_type, **changes))


@pytest.mark.parametrize(
    ("model_type", "rope", "said"),
    [
        ("llama", {"rope_type": "proportional"}, "RoPE type 'proportional' is not supported; supported: default,"),
        ("llama", {"rope_type": "dynamic"}, "RoPE type 'dynamic' lacks factor"),
        ("qwen2", {"full_attention": LINEAR}, "settings for one kind of layer are not supported here"),
        ("llama", PLAIN_ROPE | {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported here"),
        ("llama", longrope(3, original=8), "short_factor = [1.0, 1.1, 1.2]: expected 4 positive numbers"),
        ("phi3", longrope(4, 8) | {"long_factor": [1.0] * 5}, "long_factor = [1.0, 1.0, 1.0, 1.0, 1.0]: expected 4"),
        ("phi3", longrope(4, 8) | {"short_factor": [1.0, 2.0, 0.0, 1.0]}, "expected 4 positive numbers"),
        (
            "phi3",
            {"rope_type": "longrope", "rope_theta": 10000.0},
            "RoPE type 'longrope' lacks long_factor, short",
        ),
        ("gpt_neox", PLAIN_ROPE | {"partial_rotary_factor": 0.2}, "3 of the 16 channels of a head turn"),
        ("phi3", PLAIN_ROPE | {"partial_rotary_factor": 1.25}, "10 of the 8 channels of a head turn"),
        ("gpt_neox", PLAIN_ROPE | {"partial_rotary_factor": 0.05}, "0 of the 16 channels of a head turn"),
        (
            "llama",
            LLAMA3 | {"low_freq_factor": 2.0},
            "expected high_freq_factor above low_freq_factor",
        ),
        ("llama", YARN | {"beta_fast": 0.1}, "expected beta_fast above beta_slow, got 0.1 and 0.25"),
        ("qwen2", YARN | {"truncate": 1}, "truncate = 1: expected true or false"),
        ("gemma3_text", {"full_attention": 10000.0}, "rope_parameters: full_attention = 10000.0: expected an object"),
        ("gemma3_text", {"full_attention": {"rope_type": "su"}}, "full_attention: RoPE type 'su' is not supported"),
    ],
)
def test_rotary_settings_that_are_not_supported(model_type: str, rope: Config, said: str):
    assert said in meaning(plain(model_type, rope_parameters=rope))


# docs/parity.md


def test_table_of_parity_lists_every_case_within_the_tolerance():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|")
    float32 = [header.index(name) for name in ("logits", "hidden", "gradient")]
    assert [tuple(row[:2]) for row in rows] == [(name, case) for name, cases in CASES.items() for case in cases]
    assert {row[header.index("embed")] for row in rows} == {"exact"}
    assert all(re.fullmatch(r"\d\.\de-\d\d", row[i]) and float(row[i]) <= TOLERANCE for row in rows for i in float32)

"""The tokenizer of a GGUF file: its tokens, what stands before a text, and special tokens that it does not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from gguf_writing import MIXED, write_gguf

from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.decoder import Model


def test_tokens(llama: Model, path: Path):
    tokenizer = load_model(write_gguf(path, llama)).tokenizer
    assert tokenizer.decode(tokenizer("abc de 🙂").input_ids) == "abc de 🙂"
    assert tokenizer("abc de<|end|>").input_ids == [260, 263, 1]
    assert (len(tokenizer), tokenizer.bos_token, tokenizer.eos_token) == (264, "<|start|>", "<|end|>")
    assert load_model(write_gguf(path, llama, vocabulary="llama")).tokenizer(" ab").input_ids[0] == 1
    assert load_model(write_gguf(path, llama, vocabulary="")).tokenizer is None


@pytest.mark.parametrize(
    ("vocabulary", "settings", "begun"),
    [
        ("gpt2", {}, False),
        ("gpt2", {"pre": "llama-bpe"}, True),
        ("gpt2", {"pre": "tekken"}, True),
        ("gpt2", {"pre": "llama-bpe", "add_bos_token": False}, False),
        ("gpt2", {"pre": "qwen2", "add_bos_token": True}, True),
        ("gpt2", {"pre": None}, False),
        ("gpt2", {"pre": "llama-bpe", "bos_token_id": None}, False),
        ("llama", {"pre": None}, True),
        ("llama", {"add_bos_token": False}, False),
    ],
    ids=str,
)
def test_what_a_text_begins_with_is_as_in_llama_cpp(
    vocabulary: str, settings: dict[str, Any], begun: bool, llama: Model, path: Path
):
    tokenizer = load_model(write_gguf(path, llama, vocabulary=vocabulary, tokenizer=settings)).tokenizer
    alone = tokenizer("abc", add_special_tokens=False).input_ids
    assert tokenizer("abc").input_ids == [tokenizer.bos_token_id] * begun + alone


@pytest.mark.parametrize("token", [264, 2**31, 2**32 - 1])
@pytest.mark.parametrize("key", ["bos", "eos", "unknown", "padding"])
def test_a_special_token_that_the_vocabulary_does_not_have(key: str, token: int, llama: Model, path: Path):
    """llama.cpp warns of it, and takes it as absent."""
    write_gguf(path, llama, vocabulary="llama", tokenizer={f"{key}_token_id": token})
    model = load_model(path)
    special = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>", "padding": "<unk>"} | {key: None}
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    assert {one: getattr(model.tokenizer, name) for one, name in names.items()} == special
    assert model.stop_tokens == (() if key == "eos" else (2,))
    assert (model.tokenizer("ab").input_ids[0] == 1) == (key != "bos")


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from onestep_jax import load_model
model = load_model(sys.argv[1])
print(model.fingerprint, model.tokenizer("abc").input_ids)
"""


@pytest.mark.long
def test_torch_is_not_needed(llama: Model, path: Path):
    write_gguf(path, llama, MIXED)
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [load_model(path).fingerprint, "[260]"]

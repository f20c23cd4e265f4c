"""GGUF files against transformers' own reader of them: logits, gradients and tokens.

Needs torch and gguf (`pip install -e .[parity]`); what needs no torch is in test_gguf.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from closeness import TOLERANCE
from transformers import AutoModelForCausalLM, AutoTokenizer

from onestep_jax.model.checkpoint import load_model, save_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
gguf = pytest.importorskip("gguf")

import parity  # noqa: E402
from gguf_writing import CASES, MIXED, described, random_model, write_gguf  # noqa: E402

Kind = gguf.GGMLQuantizationType


def read_by_transformers(path: Path) -> Any:
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    return theirs.eval().requires_grad_(False)


def assert_same(path: Path, theirs: Any) -> None:
    x_GTD, cotangent_GTV = parity.inputs(theirs)
    reference, here = parity.run_theirs(theirs, x_GTD, cotangent_GTV), parity.run_ours(load(path), x_GTD, cotangent_GTV)
    assert max(parity.by_text(here.logits, reference.logits)) <= TOLERANCE
    assert max(parity.by_text(here.gradient, reference.gradient)) <= TOLERANCE


def load(path: Path) -> Any:
    return load_model(path, dtype="float32", tokenizer=False)


@pytest.mark.parametrize("architecture", CASES)
def test_each_architecture_in_a_mixture_of_types(architecture: str, tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", random_model(described(architecture)), MIXED)
    assert_same(path, read_by_transformers(path))


@pytest.mark.parametrize("kind", [*MIXED, Kind.Q4_0, Kind.Q5_1, Kind.Q5_K], ids=lambda kind: kind.name)
def test_each_type(kind: Any, tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", random_model(described("llama", tie_word_embeddings=True)), [kind])
    assert_same(path, read_by_transformers(path))


@pytest.mark.parametrize("architecture", CASES)
def test_the_checkpoint_that_a_file_is_saved_as_opens_in_transformers(architecture: str, tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", random_model(described(architecture)), MIXED)
    save_model(load(path), tmp_path / "folder")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32, attn_implementation="eager")
    assert_same(path, again.eval().requires_grad_(False))


TEXTS = ["abc de abc", "  two  spaces\n\nab ab", "naïve 日本語 🙂", "<|start|>abc<|end|> <s>ab</s>", " ab", ""]


@pytest.mark.parametrize(
    ("architecture", "vocabulary"),
    [*((architecture, "gpt2") for architecture in ("llama", "qwen2", "qwen3", "gpt2"))]
    + [(architecture, "llama") for architecture in ("llama", "gemma2", "gemma3", "phi3")],
)
def test_tokens(architecture: str, vocabulary: str, tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", random_model(described(architecture)), vocabulary=vocabulary)
    ours, theirs = load_model(path).tokenizer, AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for text in TEXTS:
        for special in (True, False):
            ids = ours(text, add_special_tokens=special).input_ids
            assert ids == theirs(text, add_special_tokens=special).input_ids
            assert ours.decode(ids) == theirs.decode(ids)
    # transformers adds special tokens that its class has and the file lacks, beyond the rows of the table
    assert ours.get_vocab() == {token: i for token, i in theirs.get_vocab().items() if i < 264}

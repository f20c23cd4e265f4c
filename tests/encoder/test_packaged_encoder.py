"""The encoder in the package: what it is, how large, and that it does what docs/encoder.md says of it."""

import json
from pathlib import Path

import numpy as np
import pytest

import onestep_jax
from onestep_jax import decode, encode, load_encoder, load_model
from onestep_jax.encoder.encoding import evaluate

PACKAGE = Path(onestep_jax.__file__).parent
MOST_BYTES = 32_000_000


@pytest.fixture(scope="module")
def packaged_model():
    return load_model("default")


@pytest.fixture(scope="module")
def packaged(packaged_model):
    return load_encoder("default", packaged_model)


@pytest.fixture(scope="module")
def demo_tokens(packaged_model):
    texts = [json.loads(line)["text"] for line in (PACKAGE / "data" / "demo.jsonl").read_text().splitlines()]
    return [np.asarray(packaged_model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def test_the_package_is_small():
    """As installed, without what Python compiles."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_its_card_has_the_figures_of_its_training(packaged):
    figures = packaged.trained["figures"]
    for name in ("nats", "accuracy", "exact"):
        assert len(figures[name]) == packaged.design.corrections + 1
    card = (PACKAGE / "data" / "encoder" / "README.md").read_text()
    assert f"{figures['accuracy'][-1]:.1%}" in card
    assert "train.jsonl.xz" in card


def test_most_tokens_of_the_demo_are_exact_and_each_correction_helps(packaged_model, packaged, demo_tokens):
    rows = evaluate(packaged_model, packaged, [ids[: packaged.design.length] for ids in demo_tokens])
    assert rows[-1]["accuracy"] >= 0.8
    assert rows[0]["accuracy"] < rows[-1]["accuracy"]
    nats = [row["nats"] for row in rows]
    assert nats == sorted(nats, reverse=True)


@pytest.mark.long
def test_what_it_encodes_is_decoded(packaged_model, packaged, demo_tokens):
    results = encode(packaged_model, packaged, [ids[:4].tolist() for ids in demo_tokens])
    assert [text.accuracy for text in decode(packaged_model, results)] == results.accuracy.tolist()
    assert results.accuracy.mean() >= 0.9

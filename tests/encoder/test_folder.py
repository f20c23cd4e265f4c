"""An encoder on disk: what is saved is loaded, and whatever is wrong with it is told in one line with a cure."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from encoders import random_encoder
from safetensors.numpy import load_file, save_file

from onestep_jax import Design, UserError, load_encoder, save_encoder
from onestep_jax.encoder.design import Encoder
from onestep_jax.encoder.folder import fingerprint, make_encoder
from onestep_jax.errors import Damaged

FIGURES = {"nats": [3.25, 2.5, 1.125], "accuracy": [0.125, 0.25, 0.5], "exact": [0.0, 0.0, 0.25]}


@pytest.fixture(scope="module")
def encoder(little):
    return dataclasses.replace(random_encoder(little, prefix=(7,)), trained={"updates": 7, "figures": FIGURES})


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_encoder(encoder, folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copied")


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "parts",
    [{"reader": "lora", "rank": 2, "pooling": "queries"}, {"reader": "none", "step": "matrix"}, {"corrections": 0}],
    ids=str,
)
def test_parts_of_all_kinds(little, tmp_path, parts):
    made = random_encoder(little, **parts)
    save_encoder(made, tmp_path / "new" / "folder")
    loaded = load_encoder(tmp_path / "new" / "folder", little)
    assert loaded.design == made.design
    equal(loaded.weights, made.weights)


def test_what_is_saved_is_loaded(little, encoder, saved):
    loaded = load_encoder(str(saved), little)
    assert loaded == dataclasses.replace(encoder, weights=loaded.weights)
    equal(loaded.weights, encoder.weights)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded.weights))
    assert loaded.parameters == sum(leaf.size for leaf in jax.tree.leaves(encoder.weights)) > 10_000
    assert load_file(saved / "model.safetensors")["constant"].dtype == np.float32


def test_bfloat16_is_rounded_and_another_encoder(little, encoder, saved, tmp_path):
    save_encoder(encoder, tmp_path, "bfloat16")
    loaded = load_encoder(tmp_path, little)
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), encoder.weights)
    equal(loaded.weights, rounded)
    assert loaded.fingerprint == fingerprint(encoder.design, rounded) != encoder.fingerprint
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, saved)]
    assert sizes[0] < 0.6 * sizes[1]
    with pytest.raises(UserError, match="unknown dtype of an encoder 'float16'"):
        save_encoder(encoder, tmp_path, "float16")


def test_the_temperature(little, encoder, saved, tmp_path):
    """Of 1 it is not written; what an earlier version wrote has another one in its recipe, and another fingerprint."""
    path = tmp_path / "new" / "config.json"
    warm = dataclasses.replace(encoder.design, temperature=0.5)
    made = dataclasses.replace(make_encoder(little, warm, encoder.weights, {}), trained=encoder.trained)
    save_encoder(made, path.parent)
    assert json.loads(path.read_text())["design"]["temperature"] == 0.5
    assert load_encoder(path.parent, little).design == warm
    about = json.loads((saved / "config.json").read_text())
    assert "temperature" not in about["design"]
    old = shutil.copytree(saved, tmp_path / "old") / "config.json"
    for temperature, expected in ((1.0, encoder), (0.5, made)):
        old.write_text(json.dumps(about | {"trained": {"recipe": {"temperature": temperature}}}))
        loaded = load_encoder(old.parent, little)
        assert (loaded.design, loaded.fingerprint) == (expected.design, expected.fingerprint)
    assert made.fingerprint != encoder.fingerprint
    old.write_text(json.dumps(about | {"trained": {"recipe": {"temperature": "low"}}}))
    assert "temperature = 'low'" in refused(old.parent, little, "config.json")


def test_the_fingerprint_is_of_design_and_weights(little, encoder):
    prints = {encoder.fingerprint}
    flat = jax.tree.leaves_with_path(encoder.weights)
    for path, _ in flat:
        changed = jax.tree.map_with_path(lambda at, x, path=path: x + 0.5 if at == path else x, encoder.weights)
        prints.add(fingerprint(encoder.design, changed))
    prints.add(fingerprint(dataclasses.replace(encoder.design, prefix=(8,)), encoder.weights))
    assert len(prints) == len(flat) + 2
    assert fingerprint(encoder.design, encoder.weights) == encoder.fingerprint


def test_the_card(saved, encoder, little, tmp_path):
    card = (saved / "README.md").read_text()
    for words in ("two vectors", "'little' (fingerprint fedcba9876543210)", f"{encoder.parameters:,} weights"):
        assert words in card
    for row in ("| 0 | 3.250 | 12.5% | 0.0% |", "| 1 | 2.500 | 25.0% | 0.0% |", "| 2 | 1.125 | 50.0% | 25.0% |"):
        assert row in card
    save_encoder(random_encoder(little, arrangement="one-vector"), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "one vector " in card
    assert "**Training.** none is recorded." in card
    assert "not measured" in card


# --- what is refused ---


def refused(folder, model, file=None):
    """The one line of a refusal, which names the file."""
    with pytest.raises(UserError) as caught:
        load_encoder(folder, model)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    assert str(folder / file if file else folder) in said
    return said


def test_another_model(little, saved):
    other = dataclasses.replace(little, fingerprint="0" * 16, source="other")
    said = refused(saved, other)
    assert "belongs to model 'little' (fedcba9876543210), not to 'other' (0000000000000000)" in said
    assert "give that model, or train an encoder for this one" in said


def test_missing_files(little, copied, tmp_path):
    assert "give a folder that `onestep encoder train` wrote" in refused(tmp_path / "none", little)
    (copied / "model.safetensors").unlink()
    assert "copy or train the encoder again" in refused(copied, little, "model.safetensors")
    (copied / "config.json").unlink()
    (copied / "config.json").mkdir()
    assert "cannot be read (" in refused(copied, little, "config.json")
    with pytest.raises(UserError, match=r"source = 3, of type int: expected a folder"):
        load_encoder(3, little)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", "[" * 100_000, '{"kind": "encoder"}', '{"kind": "model", "design": {}}', b"\xff{}"],
    ids=lambda content: str(content)[:20],
)
def test_a_config_that_describes_no_encoder(little, copied, content):
    (copied / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(copied, little, "config.json")
    assert "describes no encoder; give a folder that `onestep encoder train` wrote" in said


def test_a_huge_config(little, copied, monkeypatch):
    path = copied / "config.json"
    path.write_text(path.read_text() + " " * 1000)
    load_encoder(copied, little)
    monkeypatch.setattr("onestep_jax.encoder.folder._MOST_BYTES", path.stat().st_size - 1)
    assert "describes no encoder" in refused(copied, little, "config.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "encoder format 2; this version reads 1"),
        ({"format": "x" * 10_000}, "this version reads 1"),
        ({"model": "y" * 10_000, "model source": "x" * 10_000}, "not to 'little'"),
        ({"fingerprint": None}, "config.json says None; copy or train it again"),
        ({"fingerprint": "z" * 10_000}, "copy or train it again"),
        ({"design": {"lenght": 4}}, "unknown key of an encoder's design 'lenght' (did you mean 'length'?)"),
        ({"design": {"length": "4"}}, "length = '4': expected a whole number"),
        ({"design": {"reader": {}}}, "reader {}: expected a name"),
        ({"design": {"prefix": 5}}, "prefix = 5"),
        ({"design": {"prefix": [[5]]}}, "prefix = [[5]]"),
        ({"design": {"prefix": [99]}}, "token id 99 is not in the model's vocabulary of 61"),
        (
            {"design": {"length": 1_000_000, "step": "diagonal", "corrections": 2}},
            "pool has shape (6, 64, 64), expected (1000002, 64, 64)",
        ),
        ({"design": {"step": "diagonal", "length": 4}}, "steps/diagonal has shape (2, 64), expected (8, 64)"),
        ({"design": {"step": "matrix", "length": 4}}, "missing weight 'steps/matrix'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_config_with_something_wrong(little, copied, changes, said):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    told = refused(copied, little)
    assert said in told


def with_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("query"), "missing weight 'query'"),
        (lambda tensors: tensors.update(qeury=tensors["query"]), "unknown weight 'qeury' (did you mean 'query'?)"),
        (lambda tensors: tensors.update(query=tensors["query"][:1]), "query has shape (1, 32), expected (2, 32)"),
        (lambda tensors: tensors["pool"].fill(np.nan), "pool holds a NaN or an infinity"),
        (lambda tensors: tensors["constant"].fill(np.inf), "constant holds a NaN or an infinity"),
        (lambda tensors: tensors.update(query=tensors["query"].astype(np.int32)), "query is stored as I32"),
        (lambda tensors: tensors.update(query=-tensors["query"]), "damaged encoder: its weights have the fingerprint"),
    ],
)
def test_weights_with_something_wrong(little, copied, change, said):
    with_weights(copied, change)
    told = refused(copied, little, "model.safetensors")
    assert said in told
    assert "again" in told


@pytest.mark.parametrize("at", [3, 40, -1, -5000])
def test_a_flipped_byte(little, copied, at):
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[at] ^= 64
    path.write_bytes(bytes(content))
    assert "again" in refused(copied, little, "model.safetensors")


def test_a_file_that_is_cut(little, copied):
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "copy or train the encoder again" in refused(copied, little, "model.safetensors")


def test_the_weights_of_another_encoder_are_damage(little, copied, tmp_path):
    save_encoder(random_encoder(little, 1, prefix=(7,)), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", copied)
    with pytest.raises(Damaged, match=r"config.json says"):
        load_encoder(copied, little)


def test_a_place_that_cannot_be_written(encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*move away what is in the way"):
        save_encoder(encoder, tmp_path / "file")
    with pytest.raises(UserError, match="expected an encoder"):
        save_encoder("default", tmp_path)  # pyright: ignore[reportArgumentType]


def test_an_encoder_is_made_of_host_arrays(little):
    made = make_encoder(little, Design(length=4, reader="none"), {"constant": jax.numpy.ones((2, 32))}, {})
    assert isinstance(made, Encoder)
    assert isinstance(made.weights["constant"], np.ndarray)
    assert (made.model, made.model_source) == (little.fingerprint, "little")

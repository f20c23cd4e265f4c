"""Distances of texts by hand and by brute force, their bins, and the sentence encoder."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.analysis.distances import Relations, nearer_by, relation_pairs
from onestep_jax.analysis.similarity import (
    agreement,
    binned,
    chance,
    gap,
    in_bins,
    retrieval,
    semantic_distances,
    token_distances,
)
from onestep_jax.texts.embeddings import sentence_embeddings

ALL = np.array(list(itertools.combinations(range(4), 2)))


def test_token_distance_of_equal_and_of_disjoint_texts():
    tokens = [[1, 2, 3], [3, 2, 1], [7, 8, 9, 9], [1, 2, 3]]
    got = token_distances(tokens, ALL)
    assert got[ALL.tolist().index([0, 3])] == 0
    np.testing.assert_allclose(got, [0, 1, 0, 1, 0, 1], atol=1e-15)


def test_token_distance_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onestep_jax.analysis.similarity.ROWS_AT_A_TIME", 8)
    # The copy of the first text must not count for how rare its tokens are: three distinct texts.
    texts = [[5, 5, 6], [5, 7], [6, 8, 8, 8], [5, 5, 6]]
    rarity = {5: 2, 6: 2, 7: 1, 8: 1}
    weight = {token: 1 + np.log(4 / (1 + count)) for token, count in rarity.items()}
    rows = np.array([[text.count(token) * weight[token] for token in rarity] for text in texts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [1 - rows[i] @ rows[j] for i, j in ALL]
    np.testing.assert_allclose(token_distances([np.array(text) for text in texts], ALL), expected, atol=1e-12)


def test_binned_curves_by_hand():
    text = {"same_context": np.array([0.0, 0.1, 0.9]), "different_contexts": np.array([0.2, 1.0, 0.5, 0.6])}
    vector = {"same_context": np.array([0.3, 0.5, 0.8]), "different_contexts": np.array([0.6, 1.0, 0.7, 0.9])}
    curves = binned(text, vector, bins=2)
    rows = [(bin.relation, bin.low, bin.high, bin.pairs) for bin in curves]
    assert rows == [
        ("same_context", 0.0, 0.5, 2),
        ("same_context", 0.5, 1.0, 1),
        ("different_contexts", 0.0, 0.5, 1),
        ("different_contexts", 0.5, 1.0, 3),
    ]
    np.testing.assert_allclose([bin.mean for bin in curves], [0.4, 0.8, 0.6, 2.6 / 3])
    np.testing.assert_allclose([bin.std for bin in curves], [0.1, 0, 0, np.std([1.0, 0.7, 0.9])], atol=1e-15)
    np.testing.assert_allclose([bin.text_distance for bin in curves], [0.05, 0.9, 0.2, 0.7])
    np.testing.assert_allclose(gap(curves), (0.2 + (2.6 / 3 - 0.8)) / 2)


def test_the_gap_of_the_curves_is_that_of_the_pairs():
    rng = np.random.default_rng(4)
    contexts, texts = np.repeat(np.arange(6), 4).tolist(), list(range(24))
    pairs = relation_pairs(contexts, texts)
    text, vector = (Relations(*(rng.random(len(of_relation)) for of_relation in pairs)) for _ in range(2))
    for bins in (1, 7):
        curves = binned(text, vector, bins=bins)
        strata = {name: in_bins(values, curves) for name, values in text._asdict().items()}
        found = nearer_by(vector, pairs, contexts, texts, strata=strata, draws=50)
        np.testing.assert_allclose(found.gap, gap(curves), rtol=1e-12)
        assert found.low < found.gap < found.high


def test_every_pair_is_in_one_bin():
    rng = np.random.default_rng(0)
    text = Relations(*(rng.random(count) for count in (0, 70, 500)))
    vector = Relations(*(rng.random(count) for count in (0, 70, 500)))
    curves = binned(text, vector, bins=11)
    for name in ("same_context", "different_contexts"):
        mine = [bin for bin in curves if bin.relation == name]
        assert sum(bin.pairs for bin in mine) == len(getattr(text, name))
        np.testing.assert_allclose(
            sum(bin.pairs * bin.mean for bin in mine), getattr(vector, name).sum(), err_msg="a pair was lost"
        )
        assert all(bin.low <= bin.text_distance <= bin.high for bin in mine)


def test_bins_of_texts_at_one_distance_and_of_none():
    (only,) = binned({"same_context": np.full(3, 0.4)}, {"same_context": np.arange(3.0)}, bins=5)
    assert (only.pairs, only.mean) == (3, 1.0)
    assert binned({"same_context": np.zeros(0)}, {"same_context": np.zeros(0)}) == []
    assert np.isnan(gap([only]))


def test_bins_of_other_pairs_are_refused():
    with pytest.raises(UserError, match="not of the same relations"):
        binned({"same_context": np.zeros(3)}, {"same_context": np.zeros(2)})
    with pytest.raises(UserError, match="bins = 0"):
        binned({"same_context": np.zeros(3)}, {"same_context": np.zeros(3)}, bins=0)


# --- sentence embeddings ---


def _varint(number: int) -> bytes:
    low = [number & 127]
    while number := number >> 7:
        low.append(number & 127)
    return bytes([*(byte | 128 for byte in low[:-1]), low[-1]])


def _field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _onnx_encoder(table_VD: np.ndarray) -> bytes:
    """An ONNX model whose hidden states are rows of a table: Gather(table, input_ids)."""
    dims = b"".join(_field(1, size) for size in table_VD.shape)
    table = dims + _field(2, 1) + _field(8, "table") + _field(9, table_VD.astype("<f4").tobytes())
    node = _field(1, "table") + _field(1, "input_ids") + _field(2, "last_hidden_state") + _field(4, "Gather")

    def value(name: str, kind: int, axes: tuple[str, ...]) -> bytes:
        shape = b"".join(_field(1, _field(2, axis)) for axis in axes)
        return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))

    ids, hidden = value("input_ids", 7, ("B", "T")), value("last_hidden_state", 1, ("B", "T", "D"))
    graph = _field(1, node) + _field(2, "g") + _field(5, table) + _field(11, ids) + _field(12, hidden)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


VOCABULARY = ("[PAD]", "red", "green", "blue", "[UNK]")
TABLE = np.random.default_rng(0).normal(size=(len(VOCABULARY), 384)).astype(np.float32)


@pytest.fixture(params=["model.onnx", "onnx/model.onnx"])
def encoder_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sentence encoder of five words, in the two layouts there are."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    for name, content in (
        ("tokenizer_config", {"model_max_length": 4, "pad_token": "[PAD]"}),
        ("config", {"pad_token_id": 0}),
        ("special_tokens_map", {"pad_token": "[PAD]"}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(_onnx_encoder(TABLE))
    return tmp_path


def expected_embedding(text: str) -> np.ndarray:
    ids = [VOCABULARY.index(word) if word in VOCABULARY else 4 for word in text.split()][:4]
    mean = TABLE[ids].astype(float).mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parity
def test_sentence_embeddings_are_masked_means_of_unit_length(encoder_folder: Path):
    pytest.importorskip("fastembed")
    texts = ["red", "red green", "blue blue blue red red", "blue violet"]
    got = sentence_embeddings(texts, folder=encoder_folder, batch=3)
    np.testing.assert_allclose(got, [expected_embedding(text) for text in texts], atol=1e-6)
    again = sentence_embeddings(texts[::-1], folder=encoder_folder, batch=1)
    np.testing.assert_allclose(again[::-1], got, atol=1e-6)


@pytest.mark.parity
def test_semantic_distances_are_of_the_rows_asked_for(encoder_folder: Path):
    pytest.importorskip("fastembed")
    texts = ["red", "blue", "red", "green red"]
    got = semantic_distances(texts, ALL, folder=encoder_folder)
    unit = np.stack([expected_embedding(text) for text in texts])
    np.testing.assert_allclose(got, [1 - unit[i] @ unit[j] for i, j in ALL], atol=1e-6)
    assert got[ALL.tolist().index([0, 2])] == 0


def test_without_fastembed_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "fastembed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastembed", None)
    with pytest.raises(UserError, match=r"pip install 'onestep_jax\[analysis\]'"):
        sentence_embeddings(["a text"])


@pytest.mark.parity
def test_a_folder_without_an_encoder_is_refused(tmp_path: Path):
    pytest.importorskip("fastembed")
    with pytest.raises(UserError, match=r"neither model\.onnx nor onnx/model\.onnx"):
        sentence_embeddings(["a text"], folder=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        sentence_embeddings(["a text"], folder=tmp_path / "absent")
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be loaded"):
        sentence_embeddings(["a text"], folder=tmp_path)


def test_agreement_is_of_ranks():
    angles = np.array([0.0, 0.1, 0.4, 1.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pairs = np.stack(np.triu_indices(4, k=1), axis=-1)
    assert agreement(3 * vectors, vectors, pairs) == pytest.approx(1)
    order = np.array([0, 2, 1, 3])
    assert agreement(vectors[order], vectors, pairs) < 0.9
    assert np.isnan(agreement(vectors, np.ones((4, 2)), pairs))


def test_retrieval_counts_rows_that_have_something_to_find():
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.9, 0.2], [-1, 0]])
    # Rows 0 and 1 find each other, row 2 finds row 3, and row 3 finds row 1. The last has a label of its own.
    assert retrieval(vectors, ["a", "a", "b", "b", "c"]) == 0.75
    assert retrieval(vectors[:2], ["a", "a"]) == 1
    assert np.isnan(retrieval(vectors[:2], ["a", "b"]))
    assert chance(["a", "a", "b", "b", "c"]) == 0.25
    assert chance(["a", "a", "a", "b"]) == pytest.approx(2 / 3)
    assert np.isnan(chance(["a", "b"]))

"""Embeddings by a teacher: the frozen model's own hidden states, and rows of a file."""

import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.model.hidden_states import mean_hidden_states
from onestep_jax.texts.embeddings import text_embeddings


def test_means_of_hidden_states_do_not_depend_on_the_batch(tiny, token_lists):
    texts = [np.array(ids[: 3 + i % 5], np.int32) for i, ids in enumerate(token_lists)]
    found = mean_hidden_states(tiny, texts)
    for row, ids in zip(found, texts, strict=True):
        h_TD = tiny.hidden(tiny.params, tiny.embed(tiny.params, ids))
        np.testing.assert_allclose(row, np.asarray(h_TD, np.float64).mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(row, mean_hidden_states(tiny, [ids])[0], atol=1e-5)
    by_model = text_embeddings(tiny, texts, "model")
    np.testing.assert_allclose(by_model, found - found.mean(axis=0), atol=1e-12)


def test_rows_of_a_file(tiny, token_lists, tmp_path):
    texts = [np.array(ids, np.int32) for ids in token_lists[:3]]
    np.save(tmp_path / "rows.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    found = text_embeddings(tiny, texts, str(tmp_path / "rows.npy"))
    assert (found.dtype, found.tolist()) == (np.float64, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 4)), "2 rows for 3 texts"),
        (np.zeros(3), r"holds float64 \(3,\); expected numbers of shape \(texts, features\)"),
        (np.array([["a"], ["b"], ["c"]]), r"holds <U1 \(3, 1\)"),
        (np.array([{}, {}, {}], object), "cannot be read"),
        (b"no array", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_refused(tiny, token_lists, tmp_path, rows, message):
    path = tmp_path / "rows.npy"
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif rows is not None:
        np.save(path, rows, allow_pickle=True)
    texts = [np.array(ids, np.int32) for ids in token_lists[:3]]
    with pytest.raises(UserError, match=rf"rows\.npy: {message}"):
        text_embeddings(tiny, texts, str(path))


def test_a_sentence_encoder_reads_strings(tiny, token_lists):
    with pytest.raises(UserError, match="model 'tiny' has no tokenizer"):
        text_embeddings(tiny, [np.array(token_lists[0], np.int32)], "minilm")

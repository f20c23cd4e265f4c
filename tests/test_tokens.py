"""Token ids, identities of texts, and batches of equal padded length."""

import hashlib

import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.tokens import batches, check_tokens, id_words, padded_lengths, plain_id, text_ids, tokenise


def test_tokens_are_cut_and_have_no_special_ones():
    class Tokenizer:
        def __call__(self, texts, add_special_tokens, verbose):
            assert add_special_tokens is False
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    assert [ids.tolist() for ids in tokenise(Tokenizer(), ["a bb ccc", "dddd"], 2)] == [[1, 2], [4]]
    with pytest.raises(UserError, match="text 1: empty text"):
        tokenise(Tokenizer(), ["a", " "], None)


def test_identity_is_the_hash_of_the_tokens():
    tokens = check_tokens([[1, 2], [3], [1, 2], [1, 2]], None, None)
    ids = text_ids(tokens)
    digest = hashlib.sha256(np.array([1, 2], "<i4").tobytes()).hexdigest()[:16]
    assert ids == [digest, ids[1], f"{digest}-1", f"{digest}-2"]
    assert [plain_id(name) for name in ids] == [digest, ids[1], digest, digest]
    assert id_words(ids[2], 5).tolist() == [int(digest[:8], 16), int(digest[8:], 16), 1, 5]


def test_padding_is_little():
    lengths = list(range(1, 700))
    padded = padded_lengths(lengths)
    assert all(length <= full <= max(lengths) for length, full in zip(lengths, padded, strict=True))
    assert sum(padded) / sum(lengths) < 1.08
    assert max(full / length for length, full in zip(lengths, padded, strict=True) if length > 56) < 1.15
    assert len(set(padded)) < 40
    assert padded_lengths([45, 45, 45]) == [45, 45, 45]
    assert padded_lengths([]) == []


def test_with_room_calls_of_growing_lengths_share_padded_lengths():
    assert [padded_lengths([length], room=40)[0] for length in (1, 8, 9, 33, 40)] == [8, 8, 16, 40, 40]
    assert [padded_lengths([length], room=12)[0] for length in (5, 8, 9, 12, 13)] == [8, 8, 12, 12, 13]
    assert [batch.positions for length in (17, 20) for batch in batches([length], 2, room=64)] == [24, 24]


def test_padding_leads_over_no_boundary():
    assert padded_lengths([9, 10, 11, 16], boundary=10) == [10, 10, 16, 16]
    assert padded_lengths([8, 9, 10, 16], boundary=10, extra=1) == [8, 9, 16, 16]


LENGTHS = [5, 12, 3, 8, 16, 1, 7, 20]  # padded to 8, 16, 8, 8, 16, 8, 8, 20


def test_every_text_is_in_one_batch():
    found = list(batches(LENGTHS, 2))
    assert [batch.positions for batch in found] == [8, 8, 8, 16, 20]
    assert [batch.texts for batch in found] == [[0, 2], [3, 5], [6], [1, 4], [7]]


def test_batches_of_one_length_have_one_shape():
    """The last batch of a length is filled up by repeats, so that nothing is compiled for it."""
    assert [batch.rows.tolist() for batch in batches(LENGTHS, 3)] == [[0, 2, 3], [5, 6, 5], [1, 4], [7]]
    assert [batch.used for batch in batches(LENGTHS, 3)] == [3, 2, 2, 1]
    full = [batch.rows.tolist() for batch in batches(LENGTHS, 3, full=True)]
    assert full == [[0, 2, 3], [5, 6, 5], [1, 4, 1], [7, 7, 7]]


def test_a_batch_pads_what_belongs_to_its_texts():
    tokens = [np.arange(length, dtype=np.int32) for length in LENGTHS]
    vectors = [np.stack([ids, -ids], axis=1).astype(np.float16) for ids in tokens]
    for batch in batches(LENGTHS, 3):
        padded, both = batch.pad(tokens), batch.pad(vectors)
        assert (padded.shape, padded.dtype) == ((len(batch.rows), batch.positions), np.int32)
        assert (both.shape, both.dtype) == ((*padded.shape, 2), np.float16)
        assert batch.lengths.tolist() == [LENGTHS[i] for i in batch.rows]
        for row, i in enumerate(batch.rows):
            np.testing.assert_array_equal(padded[row, : LENGTHS[i]], tokens[i])
            assert not padded[row, LENGTHS[i] :].any()
            np.testing.assert_array_equal(both[row, : LENGTHS[i]], vectors[i])


def test_no_text_is_no_batch():
    assert list(batches([], 4, full=True)) == []

"""Windows: within one text, each place as likely as any other, and the same for the same generator."""

import dataclasses

import numpy as np
import pytest

from onestep_jax import UserError, load_model
from onestep_jax.encoder import windows
from onestep_jax.encoder.windows import Pool, divide, make_pool

# Texts of 5, 2, 0, 9 and 3 tokens; no token is there twice, so that a window tells where it lies.
LENGTHS = np.array([5, 2, 0, 9, 3])
POOL = Pool(np.arange(LENGTHS.sum()).astype(np.uint16), np.cumsum(LENGTHS))


def places(length):
    """First tokens of all windows that lie within one text."""
    ends = np.cumsum(LENGTHS)
    return [i for end, size in zip(ends, LENGTHS, strict=True) for i in range(end - size, end - length + 1)]


@pytest.mark.parametrize("length", [1, 3, 5, 9])
def test_every_place_is_as_likely(length):
    count = 4000
    drawn = POOL.windows(np.random.default_rng(0), count, length)
    assert (drawn.shape, drawn.dtype) == ((count, length), np.int32)
    assert (np.diff(drawn, axis=1) == 1).all()
    found, times = np.unique(drawn[:, 0], return_counts=True)
    assert found.tolist() == places(length)
    expected = count / len(found)
    assert np.abs(times - expected).max() < 5 * np.sqrt(expected)


def test_the_generator_says_which():
    first, again, other = (POOL.windows(np.random.default_rng(seed), 20, 3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("pool", [POOL, Pool(np.zeros(0, np.uint16), np.zeros(0, np.int64))])
def test_texts_that_are_too_short(pool):
    with pytest.raises(UserError, match="no text has 10 tokens: give longer texts, or a smaller --length"):
        pool.windows(np.random.default_rng(0), 4, 10)


def test_the_digest_of_a_tokenizer(tiny_folder):
    """It is that of another object of the same, also of one without a backend, whose model is in it as well."""
    model, again = load_model(tiny_folder), load_model(tiny_folder)
    assert len(windows.tokenizer_digest(model)) == 16
    assert windows.tokenizer_digest(model) == windows.tokenizer_digest(again)

    class Slow:
        def __init__(self, words):
            self.get_vocab = lambda: {word: i for i, word in enumerate(words)}

    slow = [dataclasses.replace(model, tokenizer=Slow(words)) for words in (["a", "b"], ["a", "b"], ["b", "a"])]
    slow.append(dataclasses.replace(slow[0], fingerprint="0" * 16))
    slow.append(dataclasses.replace(slow[0], tokenizer=None))
    digests = [windows.tokenizer_digest(one) for one in (model, *slow)]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 5


def test_texts_become_a_pool(tiny_folder, tiny, monkeypatch):
    """Without special tokens; a long text is tokenised in pieces, some of them at a time."""
    monkeypatch.setattr(windows, "_TOGETHER", 2)
    model = load_model(tiny_folder)
    texts = ["w0 w1 w2 w3", "", "w5"]
    for piece in (windows._PIECE, 6):  # "w0 w1 " is one
        monkeypatch.setattr(windows, "_PIECE", piece)
        pool = make_pool(model, texts)
        assert pool.tokens_M.tolist() == [1, 2, 3, 4, 6]
        assert pool.ends.tolist() == [4, 4, 5]
        assert pool.tokens_M.dtype == np.uint16
    with pytest.raises(UserError, match="'tiny' has no tokenizer, which training on texts needs"):
        make_pool(tiny, texts)
    small = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_size=6))
    with pytest.raises(UserError, match="token id 6 has no row in the model's table of 6"):
        make_pool(small, texts)


def test_special_tokens_are_left_out(little):
    def tokenizer(texts, add_special_tokens=True, **others):
        return {"input_ids": [[60] * add_special_tokens + [int(word) for word in text.split()] for text in texts]}

    assert make_pool(dataclasses.replace(little, tokenizer=tokenizer), ["3 4", "5"]).tokens_M.tolist() == [3, 4, 5]


def test_held_out_texts():
    assert divide(["0123456789" * 2]) == (["012345678901234567"], ["89"])
    assert divide(list("ab")) == (["a"], ["b"])
    assert divide(list("abcde")) == (list("abcd"), ["e"])
    many = [str(i) for i in range(100)]
    train, held = divide(many)
    assert held == ["19", "39", "59", "79", "99"]
    assert train == [text for text in many if text not in held]

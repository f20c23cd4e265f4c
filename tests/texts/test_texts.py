"""Sources, tokens, identities and buckets."""

import gzip
import hashlib
import json
import lzma

import datasets
import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.texts.files import read_source
from onestep_jax.tokens import buckets, check_tokens, id_words, text_ids, tokenise

TWO = ["one text\nof two lines", "zwei Übungen"]


@pytest.fixture
def sources(tmp_path):
    """The same two texts in every kind of file."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TWO))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    table = datasets.Dataset.from_dict({"text": TWO})
    table.to_csv(tmp_path / "a.csv")
    table.to_parquet(tmp_path / "a.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_tables(sources, name):
    assert read_source(str(sources / name)) == TWO
    assert read_source(str(sources / name), limit=1) == TWO[:1]


def test_text_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first line\n\nsecond line\n")
    assert read_source(str(path)) == ["first line\n\nsecond line\n"]
    assert read_source(str(path), split="lines") == ["first line", "second line"]


def test_hub_source_names_its_split_and_column(monkeypatch):
    asked = []

    def load(name, **arguments):
        asked.append((name, arguments["split"]))
        return [{"text": "a", "chunk": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_source("hf:org/name") == ["a"]
    assert read_source("hf:org/name:test:chunk") == ["b"]
    assert asked == [("org/name", "train"), ("org/name", "test")]
    with pytest.raises(UserError, match="expected hf:NAME"):
        read_source("hf:a:b:c:d")


def test_hub_that_cannot_be_reached():
    with pytest.raises(UserError, match="hf:no-such-org/no-such-name: cannot be read"):
        read_source("hf:no-such-org/no-such-name")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no such file"),
        ("a.pdf", b"x", r"unknown kind of file '.pdf'; expected .txt"),
        ("empty.txt", b"", "empty text"),
        ("latin.txt", "für".encode("latin-1"), "not UTF-8: byte 1 is 0xfc; convert"),
        ("latin.jsonl", '{"text": "für"}'.encode("latin-1"), "not UTF-8"),
        ("empty.jsonl", b'{"text": "a"}\n{"text": ""}\n', "text 1 is empty"),
        ("null.jsonl", b'{"text": "a"}\n{"text": null}\n', "text 1 is empty"),
        ("column.jsonl", b'{"texts": "a"}\n', "no column 'text'.*did you mean 'texts'"),
        ("broken.jsonl", b'{"text": \n', "cannot be read"),
        ("blank.txt", b"\n\n", None),
    ],
)
def test_bad_sources(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if message is None:
        with pytest.raises(UserError, match="no text in it"):
            read_source(str(tmp_path / name), split="lines")
        return
    with pytest.raises(UserError, match=message):
        read_source(str(tmp_path / name))


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown value of --split 'line'.*did you mean 'lines'"):
        read_source("a.txt", split="line")


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
    assert id_words(ids[2], 5).tolist() == [int(digest[:8], 16), int(digest[8:], 16), 1, 5]


def test_buckets_pad_little():
    lengths = list(range(1, 700))
    padded = buckets(lengths)
    assert all(length <= bucket <= max(lengths) for length, bucket in zip(lengths, padded, strict=True))
    assert sum(padded) / sum(lengths) < 1.08
    assert max(bucket / length for length, bucket in zip(lengths, padded, strict=True) if length > 56) < 1.15
    assert len(set(padded)) < 40
    assert buckets([45, 45, 45]) == [45, 45, 45]

"""Texts from files and from the hub."""

import gzip
import json
import lzma

import datasets
import pytest

from onestep_jax import UserError
from onestep_jax.texts.files import read_source

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


@pytest.mark.parametrize("split", ["file", "lines"])
def test_lines_are_of_text_files_alone(tmp_path, split):
    """A blank cell of a table is a text, and a cell that is none is one line of error."""
    (tmp_path / "a.jsonl").write_text('{"text": " ", "n": 1}\n{"text": "b", "n": 2}\n')
    (tmp_path / "a.csv").write_text("text\n b\n \n")
    assert read_source(str(tmp_path / "a.jsonl"), split=split) == [" ", "b"]
    assert read_source(str(tmp_path / "a.csv"), split=split) == [" b", " "]
    with pytest.raises(UserError, match="text 0 is 1, of type int; expected a text"):
        read_source(str(tmp_path / "a.jsonl"), split=split, column="n")


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
        ("latin.txt", "für".encode("latin-1"), "not UTF-8: byte 1 is 0xfc, in line 1; convert"),
        ("latin.jsonl", '{"text": "a"}\n{"text": "für"}\n'.encode("latin-1"), "byte 25 is 0xfc, in line 2"),
        ("latin.csv", 'text\r\na\r\n"für"\r\n'.encode("latin-1"), "byte 11 is 0xfc, in line 3"),
        ("mark.txt", b"\xef\xbb\xbfa\xff", "byte 4 is 0xff, in line 1"),
        ("half.jsonl", b'{"text": "a\\ud83d"}\n', r"text 0 has half a character, \\ud83d, at character 1"),
        ("number.jsonl", b'{"text": 5}\n', "text 0 is 5, of type int; expected a text"),
        ("list.jsonl", b'["a"]\n', "line 1 is .*; expected an object"),
        ("cells.csv", b"text,n\na,b,c\n", "line 2 has 3 cells, the header 2; put quotation marks"),
        ("quotes.csv", b'text\n"a"b\n', "line 2: .*; expected a CSV"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:-9], "cannot be read"),
        ("wrong.jsonl.xz", b"not packed", "cannot be read"),
        ("wrong.jsonl.zst", b"not packed", "cannot be read"),
        ("wrong.parquet", b"PAR1 and no more", "cannot be read .*is it a parquet file"),
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

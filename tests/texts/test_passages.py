"""Random words, halves of chunks and excerpts as strings; the packaged word list."""

from __future__ import annotations

import dataclasses
import itertools
import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onestep_jax import UserError
from onestep_jax.texts import named_sources as passages
from onestep_jax.texts.named_sources import (
    DATA,
    Request,
    excerpts,
    halves,
    random_words,
    read_words,
    sentence_start,
    whole,
)

SCRIPT = Path(__file__).parents[2] / "experiments" / "packaged" / "word_list.py"


def jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def book(sentences: int, line: int = 1) -> str:
    """Sentences of about the same length, each with its number; a line break after every few."""
    ends = itertools.cycle([*[" "] * (line - 1), "\n"])
    return "".join(f"It was the day number {i} of all.{next(ends)}" for i in range(1000, 1000 + sentences))


@pytest.fixture
def twenty(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"v{i}\n" for i in range(20)))
    return str(path)


def chi_square(counts: list[int], cells: int) -> float:
    expected = sum(counts) / cells
    return sum((count - expected) ** 2 for count in counts) / expected + (cells - len(counts)) * expected


def test_random_words_are_uniform_and_independent(twenty: str):
    drawn = [text.text.split(" ") for text in random_words(Request(twenty, 20, 100))]
    assert [len(words) for words in drawn] == [200] * 20
    words = list(itertools.chain(*drawn))
    pairs = [pair for words in drawn for pair in itertools.pairwise(words)]
    # 19 and 399 degrees of freedom: four standard deviations of chi-square on either side, none below zero.
    assert 3 < chi_square(list(Counter(words).values()), 20) < 19 + 4 * np.sqrt(2 * 19)
    assert abs(chi_square(list(Counter(pairs).values()), 400) - 399) < 4 * np.sqrt(2 * 399)


def test_random_texts_hang_on_seed_and_number_alone(twenty: str):
    request = Request(twenty, 6, 30, seed=5)
    texts = list(random_words(request))
    assert list(random_words(dataclasses.replace(request, count=3))) == texts[:3]
    for short, long in zip(random_words(dataclasses.replace(request, length=10)), texts, strict=True):
        assert long.text.startswith(short.text + " ")
    other = list(random_words(dataclasses.replace(request, seed=6)))
    assert len({string for passage in [*texts, *other] for string in passage}) == 4 * 6


def test_glove_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "glove.txt"
    path.write_text("the 0.418 -0.25\n, 0.013 1e-05\n\x85 1 2\nthe 3 4\nÜbung 0.1 0.2\nlast 0 0\n", encoding="utf-8")
    assert read_words(path) == ["the", ",", "\x85", "Übung", "last"]
    assert passages.MOST_FREQUENT == 100_000
    monkeypatch.setattr(passages, "MOST_FREQUENT", 3)
    assert read_words(path) == ["the", ",", "\x85"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no list of words can be read there"),
        (b"", "no word in it"),
        (b"\n\n", "no word in it"),
        (b"one\ntwo words\n", "line 2 is 'two words'; expected one word"),
        (b"the\t0.1\t0.2\n", "line 1 is .*separated by spaces"),
        (b"PK\x03\x04\xff\xfe", "not UTF-8.*unpack it"),
    ],
)
def test_bad_lists(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_words(tmp_path / "a.txt")


def test_packaged_list():
    words = read_words(DATA / "words.txt.xz")
    assert len(words) == 10_000
    assert words[:5] == ["the", "and", "of", "to", "a"]
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


def test_a_packed_list_that_was_cut_is_told(tmp_path: Path):
    (tmp_path / "a.txt.xz").write_bytes((DATA / "words.txt.xz").read_bytes()[:-200])
    with pytest.raises(UserError, match=r"a\.txt\.xz: no list of words can be read there \(Compressed file ended"):
        read_words(tmp_path / "a.txt.xz")


def test_word_list_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    source = jsonl(
        tmp_path / "a.jsonl", ["The cat's hat: the hat! Don't, don’t.", "A hat; the bee, a Bee. Émile 3rd x2"]
    )
    arguments = ["--texts", source, "--size", "4", "--out", str(tmp_path / "words.txt")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (tmp_path / "words.txt").read_text() == "hat\nthe\na\nbee\n"
    assert "4 of 6 words, 83.3% of the 12 counted" in capsys.readouterr().out


def test_second_half_of_the_sentences(tmp_path: Path):
    chunk = 'Mr. Smith went home.  "Was it\nlate?" he asked. It was.\n\nHe slept! The day was 3.5 hours old. '
    source = jsonl(tmp_path / "a.jsonl", [chunk, "Only one."])
    first, second = halves(Request(source, 2, 8))
    assert first.before == 'Mr. Smith went home. "Was it\nlate?" he asked.'
    assert first.text == "It was. He slept! The day was 3.5 hours old."
    assert second == ("Only one.", "")


@pytest.mark.parametrize("line", [1, 5, 1000])
def test_excerpts_begin_where_sentences_do(line: int):
    text = book(60, line)
    starts = [i for i in range(1, len(text)) if text.startswith("It was", i)]
    for place in range(len(text)):
        following = [start for start in starts if start >= place and text.rfind("\n", 0, place) + 1 < start]
        assert sentence_start(text, place) == (following[0] if following else None)


def test_no_sentence_within_reach():
    assert sentence_start("a" * 5000 + ". Then it ends.", 10) is None
    assert sentence_start("a" * 5000 + ". Then it ends.", 4000) == 5002
    assert sentence_start("No end", 0) is None


def test_excerpts_are_spread_over_the_books(tmp_path: Path):
    books = [book(200, 4).replace("It", name) for name in ("Alpha", "Beta", "Gamma")]
    source = jsonl(tmp_path / "a.jsonl", books)
    taken = list(itertools.islice(excerpts(Request(source, 24, 20, seed=1)), 24))
    names = [passage.text.split()[0] for passage in taken]
    assert len(set(names[:3])) == 3
    assert names == names[:3] * 8
    for name, whole_book in zip(("Alpha", "Beta", "Gamma"), books, strict=True):
        places = sorted(len(whole_book) - len(passage.text) for passage in taken if passage.text.startswith(name))
        # The golden section keeps 8 points at least 0.38 / 8 of eight tenths apart; a sentence is 0.005 of the book.
        assert np.diff(places).min() > (0.8 * 0.38 / 8 - 0.01) * len(whole_book)
        assert 0.1 * len(whole_book) <= min(places) < 0.3 * len(whole_book)
        assert 0.7 * len(whole_book) < max(places) < 0.91 * len(whole_book)
    for passage in taken:
        assert any(whole_book.endswith(passage.text) for whole_book in books)
        assert any(whole_book.startswith(f"{passage.before}") for whole_book in books)
        assert passage.before is not None
        assert passage.before.endswith("of all.")


def test_excerpts_hang_on_the_seed(tmp_path: Path):
    source = jsonl(tmp_path / "a.jsonl", [book(100), book(50)])
    first, again, other = (list(itertools.islice(excerpts(Request(source, 9, 20, seed)), 9)) for seed in (0, 0, 1))
    assert first == again
    assert not set(first) & set(other)
    shorter = [next(excerpts(Request(source, 1, 20, seed))).text in book(50) for seed in range(8)]
    assert len(set(shorter)) == 2


def test_excerpts_of_a_short_text_come_to_an_end(tmp_path: Path):
    source = jsonl(tmp_path / "a.jsonl", [book(6)])
    found = list(excerpts(Request(source, 100, 4)))
    assert 3 <= len(found) == len(set(found)) <= 5


def test_texts_are_read_as_far_as_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [f"text {i}" for i in range(100)]
    source, limits = jsonl(tmp_path / "a.jsonl", texts), []

    def reading(source: str, **options):
        limits.append(options["limit"])
        return read_source(source, **options)

    read_source = passages.read_source
    monkeypatch.setattr(passages, "read_source", reading)
    assert [passage.text for passage in itertools.islice(whole(Request(source, 2, 4)), 5)] == texts[:5]
    assert limits == [8]
    assert [passage.text for passage in itertools.islice(whole(Request(source, 2, 4)), 9)] == texts[:9]
    assert limits == [8, 8, 64]
    assert [passage.text for passage in whole(Request(source, 2, 4))] == texts

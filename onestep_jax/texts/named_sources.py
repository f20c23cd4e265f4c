"""The named sources of the paper as strings: random words, halves of chunks, excerpts of books."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]  (compiled, without stubs)

from onestep_jax.errors import UserError, one_line
from onestep_jax.texts.files import read_source
from onestep_jax.texts.local_files import DAMAGED, decoded_lines, opened

DATA = Path(__file__).parent.parent / "data"
LANGUAGE = "en"
MOST_FREQUENT = 100_000  # words of GloVe, as in the paper
# Successive multiples of the golden ratio, modulo one, are spread evenly over [0, 1) for any number of them.
GOLDEN = (5**0.5 - 1) / 2


class Passage(NamedTuple):
    """A text and its context.

    Attributes:
      text: the text itself.
      before: the text before it; None where the source has none.
    """

    text: str
    before: str | None


@dataclasses.dataclass(frozen=True)
class Request:
    """What a source is to give.

    Attributes:
      argument: the part after the colon, or the source's own default.
      count: texts that will be taken; a source may give more, since some are too short.
      length: tokens of each; a source gives longer texts where it can.
      seed: of all that the source draws.
      column, split: as for `files.read_source`.
    """

    argument: str
    count: int
    length: int
    seed: int = 0
    column: str = "text"
    split: str = "file"


class Source(NamedTuple):
    """A named source.

    Attributes:
      about: a line for --help.
      passages: gives its passages; the first ones do not depend on `count`.
      default: its argument if none is given; None if an argument is required.
      open: whether an argument may be given.
      size: how many texts it has; None for as many as are asked for, or as its file has.
    """

    about: str
    passages: Callable[[Request], Iterator[Passage]]
    default: str | None
    open: bool = True
    size: int | None = None


def random_words(request: Request) -> Iterator[Passage]:
    """Texts of independent, uniformly drawn words, joined by spaces.

    The k-th text depends on the seed and k only, and a text of a smaller length is its beginning. A token may hold more
    than one word, so twice as many words are drawn as tokens are wanted.
    """
    words = np.array(read_words(Path(request.argument)), object)

    def draw(*identity: int) -> str:
        places = np.random.default_rng(identity).integers(len(words), size=2 * request.length)
        return " ".join(words[places])

    for k in range(request.count):
        yield Passage(draw(request.seed, k, 0), draw(request.seed, k, 1))


def read_words(path: Path) -> list[str]:
    """The first 100,000 words of a file with one word in each line, or of a GloVe file with a word and its vector.

    The file may be packed, as the package's own is.

    Raises:
      UserError: if there is no such file, or it is damaged or has another form.
    """
    words: dict[str, None] = {}
    try:
        with opened(path) as file:
            for number, line in enumerate(decoded_lines(path, file), 1):
                word, space, vector = line.rstrip("\r\n").partition(" ")
                if "\t" in line or (space and not _is_number(vector.rpartition(" ")[2])):
                    expected = "expected one word, or a word and its GloVe vector, separated by spaces"
                    raise UserError(f"{path}: line {number} is {line.strip()[:40]!r}; {expected}")
                if word:
                    words[word] = None
                if len(words) == MOST_FREQUENT:
                    break
    except UserError:
        raise
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{path}: no list of words can be read there ({reason})") from error
    if not words:
        raise UserError(f"{path}: no word in it")
    return list(words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def halves(request: Request) -> Iterator[Passage]:
    """Second halves of chunks, counted in sentences; the context of each is the first half of its chunk.

    Sentences are joined by single spaces, as in the public code of arXiv:2502.13063; that code splits them with NLTK.
    """
    for chunk in _texts(request):
        sentences = [sentence.strip() for sentence in segment(LANGUAGE, chunk) if sentence.strip()]
        middle = len(sentences) // 2
        yield Passage(" ".join(sentences[middle:]), " ".join(sentences[:middle]))


def excerpts(request: Request) -> Iterator[Passage]:
    """Places in one book after the other, in an order drawn once; in each book a place is far from earlier ones.

    The first and the last tenth of a book are not used: they hold title pages and indexes, and a place there has too
    little text before or after it.
    """
    books = read_source(request.argument, split=request.split, column=request.column)
    generator = np.random.default_rng(request.seed)
    order, offsets = generator.permutation(len(books)), generator.random(len(books))
    seen: set[tuple[int, int]] = set()
    # A book of C characters gets C / length turns, which is more than the number of its disjoint excerpts.
    for turn in range(max(map(len, books)) // request.length + 1):
        for book in order:
            text = books[book]
            if turn * request.length > len(text):
                continue
            fraction = 0.1 + 0.8 * ((offsets[book] + turn * GOLDEN) % 1)
            start = sentence_start(text, int(fraction * len(text)))
            if start is not None and (book, start) not in seen:
                seen.add((book, start))
                yield Passage(text[start:], text[:start].rstrip())


def sentence_start(text: str, place: int, reach: int = 2000) -> int | None:
    """Start of the first sentence that begins at `place` or later; None if none does within `reach` characters."""
    # Segmentation begins at the start of the line, so that quotation marks are seen in pairs.
    at = begin = max(text.rfind("\n", 0, place) + 1, place - reach)
    for sentence in segment(LANGUAGE, text[begin : place + reach]):
        first = at + len(sentence) - len(sentence.lstrip())
        # The first segment may be the rest of a sentence.
        if at > begin and first >= place and sentence.strip():
            return first
        at += len(sentence)
    return None


def whole(request: Request) -> Iterator[Passage]:
    """Whole texts, without contexts."""
    return (Passage(text, None) for text in _texts(request))


def _texts(request: Request) -> Iterator[str]:
    """Texts of a file or of the hub; a few are read first, and more when they are wanted."""
    given, limit = 0, 4 * request.count
    while True:
        texts = read_source(request.argument, split=request.split, column=request.column, limit=limit)
        yield from texts[given:]
        if len(texts) < limit:
            return
        given, limit = limit, 8 * limit


SOURCES = {
    "random": Source(
        "words drawn uniformly from a packaged list, or from random:FILE (a word a line, or GloVe vectors)",
        random_words,
        str(DATA / "words.txt.xz"),
    ),
    "fanfics": Source(
        "second halves of chunks of fan fiction, from the hub, or fanfics:COPY",
        halves,
        "hf:yurakuratov/fanfics_1k_chunks",
    ),
    "pg19": Source(
        "second halves of chunks of PG-19 books, from the hub, or pg19:COPY",
        halves,
        "hf:yurakuratov/pg19_valid_1k_chunks",
    ),
    "excerpts": Source("excerpts:SOURCE, pieces of long texts that begin with a sentence", excerpts, None),
    "demo": Source("the eight packaged texts", whole, str(DATA / "demo.jsonl"), open=False, size=8),
}

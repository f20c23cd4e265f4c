"""The packaged word list: the most frequent words of any texts, most frequent first, ties by the alphabet.

The source `random` of `onestep_jax.texts.corpora` draws from it. The paper draws from the 100,000 most frequent words
of GloVe, which `random:glove.6B.50d.txt` reads; the packaged list is for machines that have no such file.

    python experiments/packaged/word_list.py --texts FILE --out words.txt

FILE is any source of `onestep fit`, such as a .jsonl with one text a line in the column "text". The packaged list was
made from books/train.jsonl.xz: the 157 public-domain books on which the packaged model was trained. They are not in the
repository. `xz -9e words.txt` made `onestep_jax/data/words.txt.xz` of it.

A word is a run of letters with its apostrophes, lower-cased. Only words of the letters a to z are counted, so "don't"
is left out whole and not counted as "don" and "t". On those books this takes 15 seconds on one core. The list has
10,000 of 92,732 words, which are 94.9 % of the 15,128,400 counted. The last of them occurs 83 times.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from onestep_jax.texts import read_source

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word of plain letters occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text.lower()))
    return Counter({word: count for word, count in counts.items() if word.isascii() and word.isalpha()})


def most_frequent(counts: Counter[str], size: int) -> list[str]:
    """The `size` most frequent words, by falling frequency, then by the alphabet."""
    return sorted(counts, key=lambda word: (-counts[word], word))[:size]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", required=True, help="any source that onestep_jax.texts.files.read_source reads")
    parser.add_argument("--size", type=int, default=10_000, help="words in the list")
    parser.add_argument("--out", type=Path, required=True, help="file to write, a word a line")
    args = parser.parse_args()
    counts = count_words(read_source(args.texts))
    words = most_frequent(counts, args.size)
    args.out.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    share = sum(counts[word] for word in words) / counts.total()
    print(f"{len(words):,} of {len(counts):,} words, {share:.1%} of the {counts.total():,} counted")
    print(f"the last of them, {words[-1]!r}, {counts[words[-1]]} times")


if __name__ == "__main__":
    main()

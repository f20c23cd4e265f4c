"""Make a gallery of a finished run: a small run directory of solved texts, which a repository can hold.

    onestep fit --model smollm2-135m --texts excerpts:BOOKS --length 32 --limit 12 --run runs/gallery
    python experiments/packaged/gallery.py runs/gallery --books BOOKS --out experiments/results/gallery/smollm2-135m

The gallery has the vectors, rows and curves of the solved texts, numbered anew, and a page that shows them. It is the
run that the same fit makes of these texts alone. It names no machine and holds no lock, and every command that reads a
run reads it: `onestep decode experiments/results/gallery/smollm2-135m --model smollm2-135m`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep_jax import Results, UserError, read_results
from onestep_jax.report.dataset_card import code, fenced
from onestep_jax.report.token_strings import find_tokenizer
from onestep_jax.store.reading import read_config
from onestep_jax.store.results import TextResult
from onestep_jax.store.sharing.packing import public_config, write_run
from onestep_jax.texts.local_files import read_rows
from onestep_jax.tokens import as_text, text_ids, texts_digest

_PAGE = """# Solved texts of {model}

`onestep fit` found two vectors for each of these {count} pieces of books in the public domain, of {length} tokens.
With them the frozen model emits the piece in one forward pass, token for token. This folder is a run directory; the
page is made from it by `experiments/packaged/gallery.py`.

{command}

Of {tried} pieces that were fitted, these are the ones that came out exactly. The model is the one whose fingerprint is
{fingerprint}.{note}

{texts}"""


def solved_texts(results: Results) -> list[TextResult]:
    """The solved texts, numbered and named anew."""
    kept = [text for text in results if text.accuracy == 1]
    names = text_ids([text.tokens for text in kept])
    return [dataclasses.replace(text, index=i, text_id=names[i]) for i, text in enumerate(kept)]


def write_gallery(run: Path, out: Path) -> list[TextResult]:
    """Write the solved texts of a run as a run directory."""
    config, texts = read_config(run), solved_texts(read_results(run))
    if not texts:
        raise UserError(f"{run}: no solved text")
    if "prefixes" in config["identity"]:
        raise UserError(f"{run}: each text has a prefix of its own; expected one for all, or none")
    public = public_config(config)
    identity = {**public["identity"], "texts": texts_digest(text.text_id for text in texts)}
    order = [(text.text_id, text.tokens) for text in texts]
    write_run(out, identity, public["settings"], order, (), [texts])
    for empty in ("state", "claims"):  # git keeps no empty folder
        (out / empty).rmdir()
    for note in out.glob("embeddings/*/commit_success.txt"):  # Orbax's, read in a bucket only; it names this folder
        note.unlink()
    return texts


def books_of(strings: Sequence[str], file: Path | None) -> list[str]:
    """Title, author and year of the book that each string is from, as Markdown; as of `--books`."""
    found = ["a book"] * len(strings)
    for book in [] if file is None else read_rows(file):
        told = f"{code(book['title'])} by {book['author']} ({book['year']})"
        found = [
            told if string.strip() in book["text"] else known for string, known in zip(strings, found, strict=True)
        ]
    return found


def page(
    config: Mapping[str, Any],
    texts: Sequence[TextResult],
    strings: Sequence[str],
    books: Sequence[str],
    *,
    tried: int,
    note: str,
) -> str:
    """The page of a gallery.

    Args:
      config: its config.json.
      texts: its results.
      strings: of the texts.
      books: that they are from, as Markdown.
      tried: texts of the run that it was made from.
      note: a sentence about the model, in Markdown.
    """
    model = str(config["settings"]["model"]).removeprefix("./")
    out = f"experiments/results/gallery/{model}"
    pieces = []
    for text, string, book in zip(texts, strings, books, strict=True):
        told = f"{text.steps:,} evaluations, {text.h_lm:.0f} nats, seed {text.seed}"
        pieces.append(f"{code(text.text_id)}, {book}: {told}\n\n{fenced(string, 'text')}\n")
    return _PAGE.format(
        model=code(model),
        count=len(texts),
        length=config["identity"]["length"],
        command=fenced(shlex.join(["onestep", "decode", out, "--model", model]), "sh"),
        fingerprint=code(config["identity"]["model"]),
        tried=tried,
        note=f"\n{note}" if note else "",
        texts="\n".join(pieces),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path, metavar="RUN", help="the finished run")
    parser.add_argument("--books", type=Path, metavar="FILE", help="the texts' source, with title and author of each")
    parser.add_argument("--note", default="", metavar="TEXT", help="a sentence about the model, for the page")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out}: is there already")
    try:
        config = read_config(args.run)
        tokenizer, reason = find_tokenizer(config["settings"]["model"])
        if tokenizer is None:
            parser.error(reason)
        texts = write_gallery(args.run, args.out)
    except UserError as error:
        parser.error(str(error))
    strings = [as_text(tokenizer, text.tokens) for text in texts]
    books, tried = books_of(strings, args.books), len(read_results(args.run))
    told = page(read_config(args.out), texts, strings, books, tried=tried, note=args.note)
    (args.out / "README.md").write_text(told, encoding="utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

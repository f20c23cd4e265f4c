"""`onestep push`: a run as a data set of the hub."""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onestep_jax.cli.options import add_run, option
from onestep_jax.cli.terminal import say
from onestep_jax.errors import UserError
from onestep_jax.model.untrained import PREFIX as UNTRAINED
from onestep_jax.store.reading import read_config, read_results
from onestep_jax.store.records import json_text
from onestep_jax.store.results import Results
from onestep_jax.store.sharing.hub import check_login, repository, upload
from onestep_jax.store.sharing.layout import configurations
from onestep_jax.store.sharing.packing import check_finished, pack, public_config
from onestep_jax.store.storage import writing
from onestep_jax.tokens import as_text

SUMMARY = "Send a run to the Hugging Face hub as a data set; onestep pull makes the run of it again."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("name", type=option(repository), metavar="hf:OWNER/NAME", help="the data set, made if need be")
    parser.add_argument(
        "--private", action="store_true", help="only its owner sees it; one that is public already is refused"
    )
    parser.add_argument("--branch", metavar="NAME", help="branch, made if need be (default: the hub's, main)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit (default: how many texts there are)")
    parser.add_argument("--license", type=option(_license), metavar="ID", help="for the card, such as cc0-1.0 or other")
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="model whose tokenizer makes the column text (default: the run's)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "The login is that of `hf auth login`, or HF_TOKEN. What is sent: all texts of the run, and settings."
    )


def _license(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}", text):
        raise UserError(f"{text!r}: expected the id of a licence, such as apache-2.0, cc-by-4.0 or other")
    return text


def run(args: argparse.Namespace) -> int:
    from onestep_jax.report.dataset_card import dataset_card

    check_login(args.name)
    left = check_finished(args.run)
    config, results = read_config(args.run), read_results(args.run)
    public, planned = public_config(config), len(results) + left
    card = dataset_card(args.name, public, results, planned, license=args.license, tables=configurations())
    with _scratch() as folder:
        files = pack(args.run, results, _strings(results, args.tokenizer), card, folder)
        where = upload(
            args.name,
            folder,
            files,
            config["identity"],
            private=args.private,
            branch=args.branch,
            message=args.message or f"{len(results):,} texts, {results.solved:,} of them exact",
        )
    if args.json:
        print(json_text({"url": where, "texts": len(results), "solved": results.solved, "left": left}))
        return 0
    missing = f"; {left} texts without a result are listed in it, and what was saved of them is not" if left else ""
    say(f"{len(results)} texts, {results.solved} of them exact, sent to {where}{missing}")
    return 0


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for files that are sent; a full disk there is told in one line."""
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="onestep-") as folder:
        yield Path(folder)


def _strings(results: Results, source: str | None) -> list[str | None]:
    """The texts as strings, of which there are none without a tokenizer."""
    from onestep_jax.report.token_strings import find_tokenizer

    named, revision = (source, None) if source else (results.source, results.revision)
    if named.startswith(UNTRAINED):  # "untrained:KIND:SEED:SOURCE"
        named = named.split(":", 3)[-1]
    tokenizer, reason = find_tokenizer(named, revision)
    if tokenizer is None:
        warnings.warn(f"the column text stays empty: {reason}; name another model by --tokenizer", stacklevel=1)
        return [None] * len(results)
    return [as_text(tokenizer, text.tokens) for text in results]

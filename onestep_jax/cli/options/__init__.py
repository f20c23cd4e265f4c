"""What several commands share: options of a run and of a model, loading it, unknown options, the last line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from jax.sharding import Mesh

from onestep_jax.cli.terminal import loading_bar, say
from onestep_jax.devices.compile_cache import use_cache
from onestep_jax.devices.placement import local_devices
from onestep_jax.errors import COUNT, Real, UserError, Whole, redacted
from onestep_jax.model.decoder import Model
from onestep_jax.model.untrained import load_any
from onestep_jax.store.records import json_text
from onestep_jax.store.results import Results
from onestep_jax.store.storage import run_path

_T = TypeVar("_T")
Group: TypeAlias = argparse._ActionsContainer  # a parser, or a group of its options


def option(convert: Callable[[str], _T]) -> Callable[[str], _T]:
    """A type of options: argparse shows the message of a `UserError` only where it is raised as its own error."""

    def converted(value: str) -> _T:
        try:
            return convert(value)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return converted


def local_folder(address: str) -> Path:
    """A path that must be local, or a UserError for an address with "://"."""
    if "://" in address:
        raise UserError(f"{address}: expected a local folder; give one with --out or --run")
    return Path(address)


def local_file(address: str) -> Path:
    """A path that a new local file can have.

    Raises:
      UserError: for an address with "://", and for a folder.
    """
    path = local_folder(address)
    if not path.name or path.is_dir():
        raise UserError(f"{address!r}: expected the name of a file; a folder is there")
    return path


def numbers(bounds: Whole) -> Callable[[str], tuple[int, ...]]:
    """A type of options: whole numbers with commas between."""
    return option(lambda text: tuple(bounds.parse(part) for part in text.split(",")))


run_option, local_option, file_option = option(run_path), option(local_folder), option(local_file)


def add_number(group: Group, flag: str, bounds: Whole | Real, **how: Any) -> None:
    """An option that is one number; `how` is as of `add_argument`."""
    group.add_argument(flag, type=option(bounds.parse), **how)


def add_run(parser: argparse.ArgumentParser) -> None:
    """DIR, the run directory that a command reads."""
    parser.add_argument(
        "run", type=run_option, metavar="DIR", help="run directory or its address, such as gs://bucket/run"
    )


def add_texts_options(parser: argparse.ArgumentParser, *, limit: bool = True) -> None:
    """--texts, --split and --column, and --limit of a command that reads a source from its beginning."""
    texts = parser.add_argument_group("texts")
    texts.add_argument("--texts", required=True, metavar="SOURCE", help="as of onestep fit")
    texts.add_argument("--split", default="file", metavar="HOW", help="a .txt is one text (file) or one a line (lines)")
    texts.add_argument("--column", default="text", help="column of a table (default: text)")
    if limit:
        add_number(texts, "--limit", COUNT, metavar="K", help="use only the first K texts")


def count_of(args: argparse.Namespace) -> int:
    """How many texts of a named source a command takes: --limit, or all where the source has an end.

    Raises:
      UserError: for a source without one.
    """
    from onestep_jax.texts.corpora import size_of

    count = args.limit or size_of(args.texts)
    if count is None:
        raise UserError(f"--texts {args.texts} has no end: say how many texts with --limit")
    return count


def add_model_options(parser: argparse.ArgumentParser, default: str | None, default_text: str) -> None:
    """--model, --revision and --dtype."""
    parser.add_argument(
        "--model", default=default, help=f"default, a folder, a GGUF file or a hub id (default: {default_text})"
    )
    add_revision_and_dtype(parser)


def add_model_of_run(parser: argparse.ArgumentParser, when: str = "") -> None:
    """--model, --revision and --dtype of a command that reads a run, see `load_of_run`; `when` says when it does."""
    parser.add_argument("--model", help=f"default, a folder, a GGUF file or a hub id (default: the run's{when})")
    add_revision_and_dtype(parser, "that of the run")


def add_revision_and_dtype(parser: argparse.ArgumentParser, default: str = "float32 on a CPU, else bfloat16") -> None:
    """--revision and --dtype."""
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    parser.add_argument("--dtype", metavar="DTYPE", help=f"float32 or bfloat16 (default: {default})")


def load(
    source: str,
    dtype: str | None,
    revision: str | None,
    *,
    mesh: Mesh | None = None,
    scan_layers: bool | None = None,
    tokenizer: bool = True,
) -> Model:
    """A model, trained or untrained ("untrained:KIND:SEED:SOURCE"), with a bar while it is read; see `load_model`."""
    use_cache()
    local_devices()
    with loading_bar() as progress:
        return load_any(
            source,
            dtype=dtype,
            revision=revision,
            mesh=mesh,
            scan_layers=scan_layers,
            tokenizer=tokenizer,
            progress=progress,
        )


def load_of_run(args: argparse.Namespace, config: Mapping[str, Any]) -> Model:
    """The model of a run by its config.json, where --model, --revision and --dtype do not name another."""
    settings = config["settings"]
    usual = None if args.model else settings.get("revision")
    revision = args.revision or usual
    return load(args.model or settings["model"], args.dtype or config["identity"]["dtype"], revision)


def unknown_options(rest: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """(word, name, value) of each "--name value" or "--name=value" that argparse does not know.

    A dash within a name becomes an underscore. A value that is not given is None. The name of a word that is no option
    is empty.
    """
    waiting = list(rest)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        given = value if equals else None
        if not equals and waiting and not waiting[0].startswith("--"):
            given = waiting.pop(0)
        yield word, name.replace("-", "_") if word.startswith("--") else "", given


def stated(word: str, value: str | None) -> str:
    """The value of an option.

    Raises:
      UserError: if none is given.
    """
    if value is None:
        raise UserError(f"option {word} needs a value")
    return value


def tell_results(run: Path, results: Results, seconds: float, *, as_json: bool, margin: float = 0.0) -> None:
    """Say what a command has put into a run directory, in one line or as JSON."""
    solved = results.status.count("solved") if margin else results.solved
    summary = {
        "run": redacted(str(run)),
        "texts": len(results),
        "solved": solved,
        **({"exact": results.solved} if margin else {}),
        "accuracy": float(results.accuracy.mean()),
        "steps": float(results.steps.mean()),
        "seconds": seconds,
    }
    if as_json:
        print(json_text(summary))
        return
    told = f"{solved} solved with a margin of {margin:g}, {results.solved} exact" if margin else f"{solved} solved"
    say(
        f"{len(results)} texts: {told}, mean accuracy {summary['accuracy']:.4f}, "
        f"mean steps {summary['steps']:.0f}, {seconds:.0f} s; run directory {summary['run']}"
    )

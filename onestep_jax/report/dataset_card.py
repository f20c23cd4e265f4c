"""The card of a run as a data set of the hub, made from the run's records.

Names, paths and settings may hold anything. They enter the head as values of YAML, and the text in code only, between
more backticks than they have themselves.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep_jax.errors import redacted
from onestep_jax.report.wording import accuracy, fit_command, model_name, model_options, notation, number
from onestep_jax.store.results import Results

_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|[\ud800-\udfff]")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_BODY = """
# {title}

A frozen language model emits each of these texts in one forward pass, token for token, from learned input vectors
([arXiv:2505.21189](https://arxiv.org/abs/2505.21189)). The vectors were found by `onestep fit`, and `onestep push` made
this page from the records of the run. They belong to one model and mean nothing to another.

* **Texts:** {count} of {planned} recorded, {exact} of them exact. By their ends: {ends}.
* **Tokens:** {lengths} a text; mean accuracy {accuracy}.
* **Work:** {steps} gradient evaluations a text on average.
* **Model:** {model}, fingerprint {fingerprint}, in {dtype}.
* **Arrangement:** {scheme}. **Preset:** {preset}.

## Use

Fetch the run and decode its texts; `--model` takes a folder or hub id with the weights of that model:

{decode}

Or read the table, in which a row is a text with its vectors; the second configuration, `trials`, has the curves:

{table}

## How it was made

{command}
"""


def dataset_card(
    name: str,
    config: Mapping[str, Any],
    results: Results,
    planned: int,
    *,
    license: str | None = None,
    tables: Sequence[Mapping[str, Any]],
) -> str:
    """The README of a data set.

    Args:
      name: OWNER/NAME.
      config: config.json of the run, as it is published.
      results: what is recorded.
      planned: texts of the run.
      license: id of a licence on the hub.
      tables: the configurations of the data set.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    head = DatasetCardData(
        license=license,
        pretty_name=_plain(redacted(name)),
        tags=["onestep-jax", "proto-tokens"],
        size_categories=[next((size for most, size in _SIZES if len(results) < most), "n>1M")],
        configs=[dict(table) for table in tables],
    )
    body = _BODY.format(title=code(name), planned=f"{planned:,}", **_figures(results), **_settings(name, config))
    return str(DatasetCard(f"---\n{head.to_yaml()}\n---\n{redacted(body)}"))


def _figures(results: Results) -> dict[str, str]:
    """Numbers of the results, as words."""
    lengths = sorted({len(text.tokens) for text in results})
    return {
        "count": f"{len(results):,}",
        "exact": f"{results.solved:,}",
        "ends": ", ".join(f"{count:,} {status}" for status, count in Counter(results.status).most_common()),
        "lengths": f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}",
        "accuracy": accuracy(float(results.accuracy.mean())),
        "steps": number(float(results.steps.mean()), 1),
    }


def _settings(name: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Settings of the run and commands, as Markdown."""
    identity, settings = config["identity"], config["settings"]
    run = Path("runs") / name.partition("/")[2]
    fetch = [["onestep", "pull", f"hf:{name}", str(run)], ["onestep", "decode", str(run), *model_options(settings)]]
    read = f'from datasets import load_dataset\n\ntexts = load_dataset("{name}", split="train")'
    command = fit_command(run, identity, settings)
    told = "Its settings are in `config.json`; no single command line has them."
    return {
        "model": code(model_name(settings)),
        "fingerprint": code(identity["model"]),
        "dtype": code(identity.get("dtype", "float32")),
        "scheme": _scheme(identity["scheme"]),
        "preset": code(settings.get("preset") or "none"),
        "decode": fenced("\n".join(map(shlex.join, fetch)), "sh"),
        "table": fenced(read, "python"),
        "command": told if command is None else "`SOURCE` stands for the texts:\n\n" + fenced(command, "sh"),
    }


def _scheme(description: Mapping[str, Any]) -> str:
    try:
        return code(notation(description))
    except ValueError:  # one made in Python
        return code(description.get("arrangement") or "made in Python")


def code(text: object) -> str:
    """A string as code within a line of Markdown."""
    plain = " ".join(_plain(str(text)).split())
    fence = "`" * (_longest_run(plain) + 1)
    padding = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{fence}{padding}{plain}{padding}{fence}"


def fenced(text: str, language: str) -> str:
    """A string as a block of code in Markdown."""
    plain = _plain(text)
    fence = "`" * max(3, _longest_run(plain) + 1)
    return f"{fence}{language}\n{plain}\n{fence}"


def _longest_run(text: str) -> int:
    """Backticks that follow each other."""
    return max(map(len, re.findall("`+", text)), default=0)


def _plain(text: str) -> str:
    """A string without control characters and halves of characters."""
    return _CONTROLS.sub("\ufffd", text)

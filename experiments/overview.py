"""Make experiments/README.md from the recorded results: every card, the paper's finding, ours on each model, commands.

    python experiments/overview.py
    python experiments/overview.py runs/experiments    (first copies new results from there to experiments/results)

A result is a folder experiments/results/MODEL/NAME with the tables, figures and config.json of one run of the card.
Hours at the paper's size are computed: fits times the paper's own seconds a text on one A100 or H100 (Table 4,
Llama-3.2-1B; below 32 tokens as at 32, beyond 256 in proportion to the length).
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bounds import RUN, Tables
from findings import CLAIMS, section
from question_findings import QUESTIONS
from summaries import ITEMS, paper_hours

from onestep_jax.experiment import cards as experiment

HERE = Path(__file__).parent
MODELS = {"smollm2-135m": "SmolLM2-135M", "packaged": "packaged model"}
"""Folder of a model's results → its name."""

HEAD = """# Experiments

Each file in [`cards/`](cards) is a *recipe card*: one table or figure of the paper, of its predecessor, or a question
of its successors. Its docstring says what is done and what the paper found. [How to run them](../docs/reproducing.md).
This page is made by `python experiments/overview.py` from the tables in [`results/`](results).

* **Two models** are measured on two cores of a CPU. SmolLM2-135M-Instruct has 134.5 million parameters and was trained
  by others; [`real_model.py`](packaged/real_model.py) gets it. The packaged model has 6.56 million. The number of texts
  is small everywhere. Each number is made by the command [below](#commands).
* **The paper** has models of 0.16 to 8 billion parameters, and texts of up to 1,448 tokens.

The measurements about the package itself are in [`studies/`](studies). What made the packaged model and its list of
words, and the command that gets SmolLM2-135M, are in [`packaged/`](packaged).
"""

VERDICTS = """## What holds

[`findings.py`](findings.py) judges sentences of the paper from the same tables. What does not hold on these models may
hold on larger ones, and what holds here may not.

* A capacity with ≥ is a lower bound, since some texts held the longest length tried. One with < is that of texts that
  held not even the shortest. *Cannot be told* stands where this could turn the answer, and at a tie.
* A range in brackets after a difference of distances is its 95 % interval, by drawing contexts, and texts within them.
  *No* stands only where it excludes a difference of 0.02, and at least five contexts are asked for.
"""

QUESTION_VERDICTS = """## What the field asked

[`question_findings.py`](question_findings.py) judges sentences of the paper's successors, most of them about the
autoregressive case, and guesses that lie near. Few texts were fitted for each, so a *yes* is a hint.
"""

COMMANDS = """## Commands

`books/validation.jsonl.xz` in the commands holds the 15 public-domain books that were held out when the packaged model
was trained. It is not in the repository. `code.txt` is the top folder of Python 3.11's own library, in one file.
`--texts excerpts:FILE` takes any file of long texts. Without `--texts`, `--packaged` uses texts that the package makes,
and the numbers differ. Minutes are wall-clock as measured, beside other
work on the same machine. *Paper's size* is what the card takes at its full size, computed from the paper's own seconds
a text on one A100 or H100; it is not measured.

*Protocol* is how the vectors were optimised, as the runs recorded it. Records of before 2026-11-26 do not say it; they
were made with AdamW. A command with `--runs` reads the fits of another record and has no protocol of its own.
"""


def read_tables(folder: Path) -> Tables:
    """Rows of every CSV of a result, by name; and under `RUN` one of its settings and protocols, lists with commas."""
    tables = {}
    config = folder / "config.json"
    if config.exists():
        record = json.loads(config.read_text(encoding="utf-8"))
        found = record["settings"] | {"protocols": record.get("protocols", [])}
        joined = {name: ",".join(map(str, one)) if isinstance(one, list) else str(one) for name, one in found.items()}
        tables[RUN] = [joined]
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            tables[path.stem] = list(csv.DictReader(file))
    return tables


def recorded(model: str, name: str) -> tuple[dict[str, Any], Path] | None:
    """config.json and folder of a card's result on a model; None where there is none."""
    folder = HERE / "results" / model / name
    path = folder / "config.json"
    return (json.loads(path.read_text(encoding="utf-8")), folder) if path.exists() else None


def row(name: str) -> str:
    """What was found, of one card: by the paper and on each model."""
    item = ITEMS[name]
    cells = [f"[{name}](cards/{name}.py): {experiment.title(experiment.load_card(name)).rstrip('.')}", item.paper]
    for model in MODELS:
        found = recorded(model, name)
        if found is None:
            cells.append("not yet recorded")
            continue
        figures = [f"[{path.stem}](results/{model}/{name}/{path.name})" for path in sorted(found[1].glob("*.png"))]
        try:
            said = item.ours(read_tables(found[1]))
        except KeyError as missing:  # a record of an earlier card
            said = f"the record has no column {missing}"
        cells.append(" ".join([f"{said}.", *figures]))
    return f"| {' | '.join(cells)} |"


def commands() -> Iterator[str]:
    """A row for each recorded result."""
    for name in ITEMS:
        hours = paper_hours(ITEMS[name], experiment.load_card(name).config(False))
        for model, label in MODELS.items():
            found = recorded(model, name)
            if found is None:
                continue
            record = found[0]
            texts = record["settings"].get("count", "–")
            minutes = f"{experiment.seconds_of(record) / 60:.0f} min"
            protocol = "; ".join(record.get("protocols", [])) or "–"
            cells = [name, label, f"`{record['command']}`", str(texts), minutes, protocol, f"{hours:,.1f} h"]
            yield f"| {' | '.join(cells)} |"


def copy_results(source: Path) -> None:
    """Take the tables, figures and config.json of finished runs over into results/."""
    for config in sorted(source.glob("*/config.json")):
        record = json.loads(config.read_text(encoding="utf-8"))
        if "files" not in record:
            continue
        folder = HERE / "results" / _label(record["settings"]["model"]) / config.parent.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in [config, *config.parent.glob("*.csv"), *config.parent.glob("*.png")]:
            shutil.copy(path, folder)


def _label(model: str) -> str:
    """Folder of a model's results, by what `--model` was given."""
    return "packaged" if model == "default" else re.sub(r"[^a-z0-9.]+", "-", Path(model).name.lower())


def page() -> str:
    """The whole page."""
    names = list(MODELS.values())
    found = [f"| card | paper | {' | '.join(names)} |", "|---|---|" + "---|" * len(names), *map(row, ITEMS)]

    def tables_of(model: str, name: str) -> Tables:
        return read_tables(HERE / "results" / model / name)

    verdicts, answers = (section(claims, tables_of, MODELS) for claims in (CLAIMS, QUESTIONS))
    run = ["| card | model | command | texts | took | protocol | paper's size |", "|---" * 7 + "|", *commands()]
    return "\n".join([HEAD, *found, "", VERDICTS, verdicts, QUESTION_VERDICTS, answers, COMMANDS, *run, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, nargs="?", help="folder of finished experiments to take over first")
    args = parser.parse_args()
    if args.source:
        copy_results(args.source)
    (HERE / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

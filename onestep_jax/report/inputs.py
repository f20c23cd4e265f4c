"""The inputs of a report: run directories, folders of a growth, and folders of experiment results."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from onestep_jax.analysis.growth import KIND
from onestep_jax.analysis.prefix_table import PrefixTable, read_prefix_table, round_folder, table_settings
from onestep_jax.errors import UserError, redacted
from onestep_jax.report.token_strings import find_tokenizer
from onestep_jax.store.listing import no_folder
from onestep_jax.store.reading import read_config, read_results, read_texts
from onestep_jax.store.records import checked, read_json
from onestep_jax.store.records.kinds import ExperimentKind
from onestep_jax.store.results import Results
from onestep_jax.store.storage import entries, run_path

_Tokenizers: TypeAlias = dict[tuple[str, str | None], tuple[Any, str]]
"""Source and revision of a model → its tokenizer, and why there is none."""
_CURE = "put it back from a copy, or give another folder"
Progress = Callable[[int, int], None]
"""Called with the numbers of folders read and in all."""


@dataclasses.dataclass(frozen=True)
class FittedRun:
    """The contents of a run directory.

    Attributes:
      name: in the report, and unique there.
      folder: the run directory.
      config: its config.json.
      results: of its recorded texts, at least one.
      planned: texts that the run was given, recorded or not.
      tokenizer: of its model, or None.
      without: why there is no tokenizer, else empty.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    results: Results = dataclasses.field(repr=False)
    planned: int
    tokenizer: Any = dataclasses.field(default=None, repr=False)
    without: str = ""

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.config["identity"]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.config["settings"]


@dataclasses.dataclass(frozen=True)
class GrownTexts:
    """The contents of the folder of a growth (`analysis.grow`).

    Attributes:
      name: in the report, and unique there.
      folder: of the growth.
      settings: of `prefix_table.table_settings`.
      config: config.json of its first stage.
      table: with the result of at least one stage.
      tokenizer: of its model, or None.
      without: why there is no tokenizer, else empty.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    table: PrefixTable = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(default=None, repr=False)
    without: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Results of an experiment.

    Attributes:
      title: of the experiment.
      folder: of its results.
      config: its config.json, with the key "experiment", and perhaps "captions": file name → sentence.
      tables: its CSV files.
      figures: its PNG files.
    """

    title: str
    folder: Path
    config: Mapping[str, Any]
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]

    def caption(self, path: Path) -> str:
        """Caption of a table or figure; without one, the words of its file name."""
        captions = self.config.get("captions")
        given = captions.get(path.name) if isinstance(captions, Mapping) else None
        return str(given or path.stem.replace("_", " ").replace("-", " "))


@dataclasses.dataclass(frozen=True)
class Found:
    """All runs, growths and experiments of a report.

    Attributes:
      runs: in the order given; those inside an experiment's folder are at its place.
      experiments: in the order given.
      notes: a sentence for each run or growth that was left out.
      growths: in the order given, like the runs.
    """

    runs: tuple[FittedRun, ...]
    experiments: tuple[Experiment, ...]
    notes: tuple[str, ...] = ()
    growths: tuple[GrownTexts, ...] = ()


def read_folders(folders: Sequence[Path], progress: Progress | None = None) -> Found:
    """Read run directories, folders of a growth or of experiment results, and folders that hold any of them.

    Args:
      folders: at least one; runs and growths inside an experiment's folder are read too.
      progress: called after each folder.

    Raises:
      UserError: for a folder that is none of them, a damaged one, or a run or growth without a recorded text.
    """
    if not folders:
        raise UserError("no folder: expected at least one run directory or folder of experiment results")
    given = [run_path(folder) for folder in folders]
    places = list(dict.fromkeys(place for folder in given for place in _expand(folder)))
    names = _names([place for place in places if not _is_experiment(place)])
    runs: list[FittedRun | GrownTexts] = []
    experiments, notes = [], []
    tokenizers: _Tokenizers = {}
    for done, place in enumerate(places, start=1):
        if _is_experiment(place):
            experiments.append(_read_experiment(place))
        else:
            read = _read_growth if _is_growth(place) else _read_run
            run = read(place, names[place], tokenizers)
            if run is not None:
                runs.append(run)
            elif place in given:
                cure = "let onestep fit record at least one text of it first"
                raise UserError(f"{place}: no text is recorded yet; expected at least one; {cure}")
            else:
                notes.append(f"{place}: no text is recorded yet, so it is left out.")
        if progress is not None:
            progress(done, len(places))
    fitted = tuple(run for run in runs if isinstance(run, FittedRun))
    grown = tuple(run for run in runs if isinstance(run, GrownTexts))
    return Found(runs=fitted, experiments=tuple(experiments), notes=tuple(notes), growths=grown)


def _expand(folder: Path) -> Iterator[Path]:
    """A run directory or a growth itself; an experiment and those in it; or all of these in a folder of them."""
    reason = no_folder(folder)
    if reason:
        raise UserError(f"{folder}: no run directory and no experiment results ({reason}); give the folder of one")
    if _description(folder) is not None:
        if not _is_run(folder) and not _is_experiment(folder):
            expected = "that of a run has the key 'identity', that of experiment results the key 'experiment'"
            raise UserError(
                f"{folder / 'config.json'}: belongs to no run and to no experiment; {expected}; give another folder"
            )
        yield folder
        if _is_experiment(folder):
            grown = {path.parent for path in folder.rglob("table.json") if _is_growth(path.parent)}
            runs = {path.parent for path in folder.rglob("config.json") if _is_run(path.parent)}
            yield from sorted(grown | {run for run in runs if run.parent not in grown})
        return
    if _is_growth(folder):
        yield folder
        return
    inner = [path for path in entries(folder) if _is_run(path) or _is_experiment(path) or _is_growth(path)]
    if not inner:
        raise UserError(
            f"{folder}: no run directory and no experiment results (no config.json in it, nor one level down); "
            "give the folder that onestep fit --run made"
        )
    for path in inner:
        yield from _expand(path)


def _description(folder: Path) -> dict[str, Any] | None:
    """config.json of a folder, None if it has none.

    Raises:
      UserError: if it is damaged.
    """
    path = folder / "config.json"
    try:
        return read_json(path, dict[str, Any], "description", _CURE)
    except OSError:  # it is not there: a refusal of the storage is an `Unreadable`
        return None


def _is_experiment(folder: Path) -> bool:
    return "experiment" in (_description(folder) or {})


def _is_run(folder: Path) -> bool:
    return "identity" in (_description(folder) or {})


def _is_growth(folder: Path) -> bool:
    return (table_settings(folder) or {}).get("kind") == KIND


def _read_experiment(folder: Path) -> Experiment:
    path = folder / "config.json"
    config = read_json(path, dict[str, Any], "description", _CURE)
    checked(config, ExperimentKind, path, "description", _CURE)
    title = config.get("title") or config["experiment"]
    tables, figures = (tuple(sorted(folder.glob(pattern))) for pattern in ("*.csv", "*.png"))
    return Experiment(title=title, folder=folder, config=config, tables=tables, figures=figures)


def _read_run(folder: Path, name: str, tokenizers: _Tokenizers) -> FittedRun | None:
    """The run, or None if no text is recorded; `tokenizers` are those of the runs before."""
    config, results = read_config(folder), read_results(folder)
    if not results.texts:
        return None
    tokenizer, without = _tokenizer(config["settings"], tokenizers)
    return FittedRun(
        name=name,
        folder=folder,
        config=config,
        results=results,
        planned=len(read_texts(folder, config["identity"])),
        tokenizer=tokenizer,
        without=without,
    )


def _read_growth(folder: Path, name: str, tokenizers: _Tokenizers) -> GrownTexts | None:
    """The growth, or None if no stage of a text is recorded."""
    table, settings, first = read_prefix_table(folder), table_settings(folder), round_folder(folder, 0)
    if not table.found or settings is None or first is None:
        return None
    config = read_config(first)
    tokenizer, without = _tokenizer(config["settings"], tokenizers)
    return GrownTexts(name, folder, settings, config, table, tokenizer, without)


def _tokenizer(settings: Mapping[str, Any], tokenizers: _Tokenizers) -> tuple[Any, str]:
    model = (settings["model"], settings.get("revision"))
    if model not in tokenizers:
        tokenizers[model] = find_tokenizer(*model)
    return tokenizers[model]


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """The last part of each path, or as many of its last parts as are needed to tell it from the others."""
    names = {}
    parts = {folder: tuple(redacted(str(folder.resolve())).split("/")) for folder in folders}
    for folder in folders:
        for count in range(1, len(parts[folder]) + 1):
            names[folder] = "/".join(parts[folder][-count:])
            if Counter(other[-count:] for other in parts.values())[parts[folder][-count:]] == 1:
                break
    return names

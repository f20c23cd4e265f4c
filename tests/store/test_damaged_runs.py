"""Any damage to a run directory ends in 0, 1 or one line and 2, and costs no finished text that it did not touch.

A run of six texts on the tiny model is stopped with some texts recorded and others in flight. Each example damages a
copy of it in one or two places and then uses every command on it.
"""

import io
import json
import os
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from onestep_jax import read_results
from onestep_jax.cli.parser import RESUME, main
from onestep_jax.fitting import recorder
from onestep_jax.report import write
from onestep_jax.store import background_writer, listing
from onestep_jax.store.names import committed
from onestep_jax.store.parts import part_files

EXAMPLES = int(os.environ.get("ONESTEP_EXAMPLES", "24"))  # `ONESTEP_EXAMPLES=2000 pytest -m long` tries so many
TEXTS = 6


class Template:
    """A stopped run, the command that resumes it, and what it holds."""

    def __init__(self, run: Path, command: list[str]):
        self.run, self.command = run, command
        self.files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
        self.parts = committed(run, "results")
        self.results = {text.text_id: text for text in read_results(run)}

    def part_of(self, file: Path) -> str | None:
        """Name of the part that a file belongs to."""
        places = [place for name in self.parts for place in part_files(self.run, name).values()]
        return next((place.stem for place in places if (self.run / file).is_relative_to(place)), None)

    def texts_of(self, run: Path, parts: list[str]) -> set[str]:
        """Identities of the texts of some parts of the template."""
        tables = (pq.read_table(part_files(self.run, name)["results"]) for name in parts)
        return {text_id for table in tables for text_id in table["text_id"].to_pylist()}


@pytest.fixture(scope="module")
def template(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    rows = np.random.default_rng(11).integers(60, size=(TEXTS, 8))
    (folder / "lines.txt").write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rows) + "\n")
    run = folder / "run"
    command = ["fit", "--model", str(tiny_folder), "--texts", str(folder / "lines.txt"), "--split", "lines"]
    command += ["--length", "6", "--slots", "2", "--chunk", "5", "--steps", "20", "--seeds", "1", "--save-every", "0"]

    def two_parts(self):
        self._run.wait()  # what is written in the background
        return len(committed(run, "results")) > 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "FLUSH_SECONDS", 0.0)
        patch.setattr(recorder.RunRecorder, "stop_is_asked", two_parts)
        assert main([*command, "--run", str(run)]) == RESUME
    made = Template(run, command)
    assert len(made.parts) == 2
    assert 2 <= len(made.results) < TEXTS
    assert committed(run, "state")
    return made


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No figures, and no pauses before a read or write is tried again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_figures", lambda *_: ())
        patch.setattr(listing, "PAUSES", (0.0,))
        patch.setattr(background_writer, "RETRIES", (0.0,))
        yield


# --- damage ---

PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
VALUES = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)
KINDS = ("drop", "empty", "truncate", "flip", "junk", "folder", "copy", "swap", "retype", "rows")


def places_in(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, below in inner for place in places_in(below, (*path, key)))]


def retyped(value: Any, place: tuple, new: Any, drop: bool) -> Any:
    """A JSON value with another value at a place, or without it."""
    if not place:
        return new
    inside = value
    for key in place[:-1]:
        inside = inside[key]
    if drop:
        del inside[place[-1]]
    else:
        inside[place[-1]] = new
    return value


def damage(data: st.DataObject, template: Template, run: Path) -> set[Path]:
    """Do one thing to one or two files of a run; which files these are."""
    files = [file for file in template.files if (run / file).is_file()]
    file = data.draw(st.sampled_from(files), "file")
    kinds = [kind for kind in KINDS if kind != "rows" or file.suffix == ".parquet"]
    kinds = [kind for kind in kinds if kind != "retype" or file.suffix in (".json", ".parquet")]
    kind, path = data.draw(st.sampled_from(kinds), "kind"), run / file
    note(f"{kind} {file}")
    content = path.read_bytes()
    if kind in ("drop", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncate":
        path.write_bytes(content[: data.draw(st.integers(0, max(0, len(content) - 1)), "length")])
    elif kind == "flip":
        flipped = bytearray(content)
        if flipped:
            flipped[data.draw(st.integers(0, len(flipped) - 1), "byte")] ^= data.draw(st.sampled_from([1, 16, 128]))
        path.write_bytes(flipped)
    elif kind == "junk":
        path.write_bytes(data.draw(st.binary(max_size=40) | st.just(b"[" * 2000), "junk"))
    elif kind == "copy":
        name = data.draw(st.sampled_from([f"{path.stem} (copy){path.suffix}", f"000009-0000-000000{path.suffix}"]))
        path.with_name(name).write_bytes(content)
        return {(path.with_name(name)).relative_to(run)}
    elif kind == "swap":
        other = data.draw(st.sampled_from(files), "other")
        path.write_bytes((run / other).read_bytes())
        (run / other).write_bytes(content)
        return {file, other}
    elif file.suffix == ".json":
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):  # damaged before
            return {file}
        place = data.draw(st.sampled_from(places_in(value)), "place")
        path.write_text(json.dumps(retyped(value, place, data.draw(VALUES, "value"), data.draw(st.booleans(), "drop"))))
    else:
        _damage_table(data, path, kind)
    return {file}


def _damage_table(data: st.DataObject, path: Path, kind: str) -> None:
    """Lose, double or reverse the rows of a table, or lose or retype a column."""
    try:
        table = pq.read_table(path)
    except Exception:  # damaged before
        return
    if kind == "rows":
        rows = data.draw(st.lists(st.integers(0, max(0, len(table) - 1)), max_size=8), "rows")
        table = table.take(pa.array(rows, pa.int64())) if len(table) else table
    else:
        name = data.draw(st.sampled_from(table.column_names), "column")
        place = table.column_names.index(name)
        how = data.draw(st.sampled_from(["lost", "null", "text", "number", "negative", "lists"]), "how")
        made: dict[str, Any] = {"null": None, "text": "x", "number": 2**40, "negative": -1, "lists": [[1], [2]]}
        table = table.remove_column(place)
        if how != "lost":
            table = table.add_column(place, name, pa.array([made[how]] * len(table)))
    pq.write_table(table, path, write_page_checksum=True)


# --- what holds afterwards ---


def use(words: list[str]) -> tuple[int, str]:
    """Exit status and standard error of a command; where it is 2, that is one line."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("ignore")
        status = main(words)
    said = [line for line in err.getvalue().splitlines() if line.startswith("onestep: error: ")]
    note(f"{words[0]}: {status} {said}")
    assert status in (0, 1, 2)
    assert status != 1 or words[0] == "verify"
    assert "Traceback" not in err.getvalue()
    assert len(said) == (status == 2)
    return status, err.getvalue()


def check(data: st.DataObject, template: Template, folder: Path) -> None:
    run = folder / "run"
    shutil.copytree(template.run, run)
    touched: set[Path] = set()
    for _ in range(data.draw(st.integers(1, 2), "times")):
        touched |= damage(data, template, run)
    hurt = {template.part_of(file) for file in touched}
    whole = [name for name in template.parts if name not in hurt]
    kept = template.texts_of(run, whole)
    use(["status", str(run)])
    verified, _ = use(["verify", str(run), "--no-decode"])
    use(["verify", str(run)])
    use(["decode", str(run), "--json"])
    use(["report", str(run), "--out", str(folder / "report")])
    unchanged(template, run, whole)
    fitted, _ = use([*template.command, "--run", str(run)])
    event(f"verify {verified}, fit {fitted}")
    if all(file.parts[0] == "state" for file in touched):
        assert fitted == 0, "a saved state costs more than what it held"
    if fitted == 2:
        unchanged(template, run, whole)
        if verified != 1:
            return
        for file in touched:
            if (run / file).is_dir():
                shutil.rmtree(run / file)  # moved away, as the line says
        use(["verify", str(run), "--no-decode", "--drop"])
        fitted, _ = use([*template.command, "--run", str(run)])
        assert fitted == 0, "what verify advises does not help"
    complete(template, run, kept)


def unchanged(template: Template, run: Path, parts: list[str]) -> None:
    """The files of some parts are as they were."""
    for file in template.files:
        if template.part_of(file) in parts:
            assert (run / file).read_bytes() == (template.run / file).read_bytes(), file


def complete(template: Template, run: Path, kept: set[str]) -> None:
    """Every text has one result; those that were kept are as they were."""
    try:
        found = list(read_results(run))
    except ValueError as error:  # a part that only a whole reading finds damaged; `verify` names it
        note(str(error))
        assert use(["verify", str(run), "--no-decode"])[0] == 1
        use(["verify", str(run), "--no-decode", "--drop"])
        assert use([*template.command, "--run", str(run)])[0] == 0
        found = list(read_results(run))
    assert len(found) == len({text.text_id for text in found}) == TEXTS
    for text in found:
        if text.text_id in kept:
            before = template.results[text.text_id]
            assert (text.seconds, text.steps, text.accuracy) == (before.seconds, before.steps, before.accuracy)
            assert all(np.array_equal(text.vectors[leaf], before.vectors[leaf]) for leaf in before.vectors)


HOW: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None, "print_blob": True}
HOW["suppress_health_check"] = list(HealthCheck)


@pytest.mark.long
def test_damage_is_told_and_costs_no_other_text(template, tmp_path_factory):
    @given(st.data())
    @settings(max_examples=EXAMPLES, **HOW)
    def damaged(data):
        folder = tmp_path_factory.mktemp("damaged")
        try:
            check(data, template, folder)
        finally:
            shutil.rmtree(folder)

    damaged()

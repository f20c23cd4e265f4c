"""What --json prints is JSON for every parser: numbers that are not finite are null."""

import argparse
import dataclasses
import functools
import importlib
import json
import math

import msgspec
import numpy as np
import pytest
from encoders import random_encoder
from hub_server import WRITER, serving, turn_to

from onestep_jax import load_model, save_encoder
from onestep_jax.bench import timing
from onestep_jax.cli.parser import COMMANDS, build_parser, main
from onestep_jax.store.records import json_text


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def strictly(text):
    return json.loads(text, parse_constant=refuse)


@dataclasses.dataclass
class Row:
    z: float
    a: tuple[float, ...] = (math.inf, 1.5)


class Shape(msgspec.Struct):
    z: float
    a: None = None


def test_numbers_that_are_not_finite_are_null():
    given = {"z": math.nan, "a": [-math.inf, np.float64("nan"), np.float32("inf")], "b": Row(math.nan)}
    assert json_text(given) == '{"z": null, "a": [null, null, null], "b": {"z": null, "a": [null, 1.5]}}'
    assert json_text([Shape(math.inf)]) == '[{"z": null, "a": null}]'


@pytest.mark.parametrize("indent", [None, 2])
def test_all_else_is_written_as_python_does(indent):
    given = {"b": [1e22, 0.1, -0.0, 2**70, True, None], "a": {"é": "🙂 \udcff\x1b", "": {}}, 3: (), "c": [[]]}
    assert json_text(given, indent) == json.dumps(given, indent=indent)
    assert json_text({"n": [np.int64(3), np.float32(0.5), np.bool(True)]}) == '{"n": [3, 0.5, true]}'
    with pytest.raises(TypeError, match="ndarray"):
        json_text({"x": np.ones(2)})


# --- commands ---

# The words of a command, with {run}, {model}, {texts} and {new} for paths; the function whose value is made wrong, and
# the field of it.
CASES = {
    "decode": ("decode {run} --model {model}", "onestep_jax.prototokens.reconstruction.decode", "accuracy"),
    "verify": ("verify {run} --no-decode", "onestep_jax.cli.verify.verification_json", "decoded"),
    "status": ("status {run}", "onestep_jax.cli.status.read_status", "an_hour"),
    "export": ("export {run} --out {new}", None, None),
    "push": ("push {run} hf:me/run", None, None),
    "pull": ("pull hf:me/run {new}", None, None),
    "info": ("info {model} --length 4 --weights", "onestep_jax.cli.info.parameter_counts", "touched"),
    "fit": ("fit --model {model} --texts {texts} --length 4 --run {new}", "onestep_jax.cli.fit._fit", 1),
    "encode": (
        "encode --model {model} --encoder {encoder} --texts {texts} --length 4 --run {new}",
        "onestep_jax.encoder.encode._settled",
        "accuracy",
    ),
    "encoder": (
        "encoder eval {encoder} --model {model} --texts {texts} --lengths 4 --count 1",
        "onestep_jax.encoder.encoding.evaluate",
        "nats",
    ),
    "demo": ("demo --model {model} --run {new}", "onestep_jax.cli.demo.run_demo", "seconds"),
    "bench": ("bench load --model {model} --repeats 1 --out {new}", "onestep_jax.bench.load.bench_load", "x"),
}


@pytest.fixture(scope="module")
def places(tiny_folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "a.txt").write_text("w1 w2 w3 w4")
    words = f"fit --model {tiny_folder} --texts {home}/a.txt --length 4 --run {home}/run"
    assert main(words.split()) == 0
    model = load_model(tiny_folder)
    save_encoder(random_encoder(model, corrections=0), home / "encoder")
    return {"run": home / "run", "model": tiny_folder, "texts": home / "a.txt", "encoder": home / "encoder"}


def spoilt(value, field):
    """The value with NaN in a field, or in that field of its entries."""
    if field == 1:
        return (value[0], math.nan)
    if isinstance(value, dict):
        return value | {field: math.nan}
    if isinstance(value, tuple):
        return value._replace(**{field: math.nan})
    if isinstance(value, list):
        return [spoilt(one, field) for one in value]
    return dataclasses.replace(value, **{field: math.nan})


def with_json(parser: argparse.ArgumentParser) -> bool:
    choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return "--json" in parser._option_string_actions or any(with_json(one) for each in choices for one in each.values())


def test_every_command_with_json_is_tried():
    (choices,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert {name for name in COMMANDS if with_json(choices[name])} == set(CASES)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "demo" else name for name in CASES]
)
def test_json_of_a_command(name, places, tmp_path, capsys, monkeypatch):
    with serving({}) as hub:
        turn_to(hub, tmp_path / "home", monkeypatch, WRITER)
        if name == "pull":
            assert main(["push", str(places["run"]), "hf:me/run"]) == 0
            capsys.readouterr()
        _check_json(name, places, tmp_path, capsys, monkeypatch)


def _check_json(name, places, tmp_path, capsys, monkeypatch):
    words, function, field = CASES[name]
    if function is not None:
        home, _, wrong = function.rpartition(".")
        usual = getattr(importlib.import_module(home), wrong)

        @functools.wraps(usual)
        def wronged(*given, **how):
            return spoilt(usual(*given, **how), field)

        monkeypatch.setattr(function, wronged)
    assert main([*(word.format(**places, new=tmp_path / "new") for word in words.split()), "--json"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert ("null" in said) == (function is not None)
    assert strictly(said)


def test_records_of_a_benchmark(tmp_path):
    timing.write(tmp_path / "a.json", {"rows": [{"b": math.nan, "a": 1}]})
    assert (tmp_path / "a.json").read_text() == json.dumps({"rows": [{"b": None, "a": 1}]}, indent=2) + "\n"

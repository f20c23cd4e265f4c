"""The table of commands; words that no command knows are refused wherever they stand."""

import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import onestep_jax.cli
from onestep_jax.cli import bench
from onestep_jax.cli.parser import COMMANDS, build_parser, main
from onestep_jax.cli.terminal import plain_warnings

FIT = ["fit", "--texts", "missing.txt", "--length", "4", "--run", "run"]
CARD = ["experiment", "table1_arrangements"]
SMOKE = [*CARD, "--smoke", "--model", "not/there"]  # would end at the model


@pytest.mark.parametrize("marker", [["--"], []], ids=["after --", "without --"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (FIT, "unknown option '--bogus'"),
        (CARD, "unknown setting of table1_arrangements 'bogus'"),
        (SMOKE, "unknown setting of table1_arrangements 'bogus'"),
        ([*CARD, "--smoke", "--count", "3"], "unknown setting of table1_arrangements 'bogus'"),
        ([*CARD, "--card"], "unknown setting of table1_arrangements 'bogus'"),
        (["demo"], "unknown argument '--bogus'.*; see onestep demo --help"),
        (["status", "run"], "unknown argument '--bogus'.*; see onestep status --help"),
        (["export", "run", "--out", "a.safetensors"], "unknown argument '--bogus'.*; see onestep export --help"),
        (["bench", "step"], "unknown argument '--bogus'.*; see onestep bench step --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_words_are_refused(words, said, marker, capsys):
    """The marker "--" makes no difference: what stands after it is neither dropped nor taken on trust."""
    assert main([*words, *marker, "--bogus", "1"]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_known_words_after_the_marker_count(capsys):
    assert main([*CARD, "--card", "--", "--count", "7"]) == 0
    assert "--count                7" in capsys.readouterr().out
    assert main([*FIT, "--", "--memory-size", "5"]) == 2
    assert "missing.txt: no such file" in capsys.readouterr().err


def test_names_after_the_marker_may_begin_with_a_dash(capsys):
    assert main(["status", "--", "--run"]) == 2
    assert "--run: no run directory" in capsys.readouterr().err
    assert main(["experiment", "--", "table1_arrangements", "stray"]) == 2
    assert "unknown argument 'stray'" in capsys.readouterr().err


def test_without_a_card_there_are_no_settings(capsys):
    assert main(["experiment", "--bogus"]) == 2
    assert re.search("unknown argument '--bogus'.*; see onestep experiment --help", capsys.readouterr().err)


def test_a_command_is_a_file_and_a_word_in_the_table():
    files = {path.stem for path in Path(onestep_jax.cli.__file__).parent.glob("*.py")}
    assert files - {"__init__", "__main__", "parser", "signals", "terminal"} == set(COMMANDS)
    for name in COMMANDS:
        command = importlib.import_module(f"onestep_jax.cli.{name}")
        assert command.SUMMARY.endswith(".")
        assert list(inspect.signature(command.add_options).parameters) == ["parser"]
        assert list(inspect.signature(command.run).parameters) == ["args"]


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_option_of_a_benchmark_reaches_it(name):
    args = build_parser().parse_args(["bench", name])
    module = importlib.import_module(f"onestep_jax.bench.{name}")
    taken = inspect.signature(getattr(module, f"bench_{name}")).parameters
    own = {action.dest for action in args.parser._actions} - {"help", "model", "out", "json"}
    assert own <= set(taken)


HEAVY = "transformers datasets matplotlib sklearn torch pyarrow orbax loky sentencex"


def test_help_imports_nothing_heavy_and_the_package_runs_as_a_module():
    program = f"""
import json, sys
import onestep_jax
faces = [getattr(onestep_jax, name) for name in onestep_jax.__all__]
before = set(sys.modules)
from onestep_jax.cli.parser import build_parser
build_parser().format_help()
print(json.dumps([name for name in "{HEAVY}".split() if name in set(sys.modules) - before]))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == []
    said = subprocess.run([sys.executable, "-m", "onestep_jax.cli", "--version"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, importlib.metadata.version("onestep_jax") + "\n")


def test_a_warning_is_one_line():
    """What others warn of keeps its own form."""
    with plain_warnings():
        assert warnings.formatwarning(UserWarning("a name"), UserWarning, "f.py", 3) == "onestep: warning: a name\n"
        assert warnings.formatwarning(DeprecationWarning("old"), DeprecationWarning, "f.py", 3).startswith("f.py:3: ")
    assert warnings.formatwarning(UserWarning("a name"), UserWarning, "f.py", 3).startswith("f.py:3: ")

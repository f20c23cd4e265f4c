"""Words that no command knows are refused wherever they stand."""

import re

import pytest

from onestep_jax.cli.parser import main

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

"""Values on the command line: each is checked before work begins, with one line and status 2, and leaves nothing."""

import argparse
import string
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from onestep_jax import Cramming, OneStep, Optimizer, UserError, decode, fit
from onestep_jax.bench import step
from onestep_jax.cli import bench, demo, encode, encoder, experiment, export, info, pull, push, report, status, verify
from onestep_jax.cli import decode as decode_command
from onestep_jax.cli import fit as fit_command
from onestep_jax.cli.parser import build_parser, main
from onestep_jax.errors import Real, Whole
from onestep_jax.experiment import cards

FIT = ["fit", "--texts", "demo", "--limit", "1", "--length", "4"]
HUGE = "1" + 33 * "0"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(words, capsys) -> str:
    """The one line of a refusal, which leaves no file."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("onestep: error: ")
    assert captured.out == ""
    assert list(Path().iterdir()) == []
    return line


@pytest.mark.parametrize("value", ["²", "nan", "inf", "-1", "1.5", "", "1_0", HUGE, "7" * 5000, str(2**32)])
@pytest.mark.parametrize(
    "option", "limit length slots model-axis chunk group vectors steps seed seeds copies processes".split()
)
def test_whole_numbers(option, value, capsys):
    line = refused([*FIT, "--run", "run", f"--{option}={value}"], capsys)
    assert f"argument --{option}: " in line
    assert "expected " in line
    assert len(line) < 300


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lr", "nan"], "argument --lr: 'nan': expected a finite number, above 0"),
        (["--lr", "inf"], "expected a finite number"),
        (["--lr=-0.1"], "argument --lr"),
        (["--save-every", "nan"], "argument --save-every: 'nan': expected a finite number, at least 0"),
        (["--save-every=-1"], "argument --save-every"),
        (["--memory-size", "1.5"], "memory_size of optimizer cautious_lbfgs = 1.5: expected a whole number"),
        (["--memory-size", "1000000000000"], "memory_size of optimizer cautious_lbfgs"),
        (["--max-rms", "nan"], "max_rms of optimizer cautious_lbfgs = 'nan': expected a finite number, above 0"),
        (["--max-rms", "1e999"], "max_rms of optimizer cautious_lbfgs = inf"),
        (["--max-rms", "0"], "above 0"),
        (["--max-rms=-1"], "above 0"),
        (["--optimizer", "adam", "--lr", "1", "--b1", "2"], "b1 of optimizer adam = 2: expected a finite number"),
        (["--optimizer", "adam", "--lr", "1", "--b1", "[1]"], "b1 of optimizer adam = [1]"),
        (["--optimizer", "adamw", "--lr", "1", "--mu-dtype", "abc"], "optimizer adamw refused its options"),
        (["--schedule", "cosine_decay:decay_steps=0"], "decay_steps of schedule cosine_decay = 0: expected at least 1"),
        (["--schedule", "cosine_decay:decay_steps=-5"], "decay_steps of schedule cosine_decay = -5"),
        (["--schedule", "cosine_decay:decay_steps=abc"], "decay_steps of schedule cosine_decay = 'abc'"),
        (["--schedule", "exponential_decay:transition_steps=5,decay_rate=nan"], "decay_rate"),
        (["--revision", "main"], "--revision main: model 'default' is not on the hub"),
        (["--seed", str(2**32 - 1), "--seeds", "2"], "seed + seeds"),
        (["--group", "2", "--share", "m"], "group = 2: expected at most the number of texts and copies, 1"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_values_of_a_fit(words, said, capsys):
    assert main([*FIT, "--run", "run", *words]) == 2
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onestep")]
    assert len(line) == 1
    assert said in line[0]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["decode", "run", "--batch", "0"], "argument --batch: 0: expected at least 1"),
        (["decode", "run", "--batch", "-1"], "argument --batch"),
        (["decode", "run", "--batch", HUGE], "expected at most 65,536"),
        (["info", "--slots", HUGE], "argument --slots"),
        (["info", "--length", "²"], "argument --length: '²': expected a whole number"),
        (["info", "--revision", "main"], "is not on the hub"),
        (["export", "run", "--out", ""], "argument --out: '': expected the name of a file"),
        (["export", "run", "--out", "."], "argument --out: '.': expected the name of a file"),
        (["export", "run", "--out", "/"], "argument --out: '/': expected the name of a file"),
        (["bench", "step", "--limit", "nan"], "argument --limit: 'nan': expected a finite number, above 0"),
        (["bench", "step", "--slots", "0"], "argument --slots: 0: expected at least 1, or 'auto'"),
        (["bench", "scale", "--lengths", "1,,2"], "argument --lengths: '': expected a whole number"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_values_elsewhere(words, said, capsys):
    assert said in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table3_capacity", "--lengths", ""], "--lengths '': expected values with commas"),
        (["table3_capacity", "--count", "0"], "--count 0: expected at least 1"),
        (["table3_capacity", "--steps", HUGE], "--steps"),
        (["table3_capacity", "--seed", str(2**32)], "--seed"),
        (["figure7_connectivity", "--temperature", "nan"], "--temperature 'nan'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_settings_of_a_card(words, said, capsys, monkeypatch):
    """The cards are those of this clone, wherever the package is installed."""
    with monkeypatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        assert main(["experiment", *words, "--card"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_record_that_cannot_be_written_is_found_out_before_measuring(monkeypatch, capsys):
    monkeypatch.setattr(step, "bench_step", lambda *_, **__: pytest.fail("measured"))
    Path("file").touch()
    assert main(["bench", "step", "--out", "file/record.json"]) == 2
    assert "file/record.json: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 2**31},
        {"steps": 1.5},
        {"steps": "many"},
        {"chunk": True},
        {"chunk": 2**31},
        {"seed": -1},
        {"seed": 2**32},
        {"seeds": 0},
        {"slots": 10**30},
        {"copies": 10**9},
        {"length": 0},
        {"save_every": float("nan")},
        {"save_every": -1.0},
        {"optimizer": Optimizer("adam", {"learning_rate": float("nan")})},
        {"optimizer": Optimizer("adam", {"learning_rate": -1})},
        {"scheme": OneStep(share="m", group=7)},
    ],
    ids=str,
)
def test_the_functions_refuse_the_same_values(tiny, token_lists, wrong):
    with pytest.raises(UserError, match="expected"):
        fit(tiny, token_lists[:2], run="run", **wrong)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("make", [lambda: Cramming(vectors=1.5), lambda: OneStep(group="x"), lambda: OneStep(group=0)])
def test_schemes_refuse_the_same_values(make):
    with pytest.raises(UserError, match="expected"):
        make()


def test_decode_refuses_the_same_values(tiny):
    with pytest.raises(UserError, match="batch = 0: expected at least 1"):
        decode(tiny, [], batch=0)


def test_bounds_at_their_ends():
    whole, real = Whole(1, 9, ("auto",)), Real(0, 1, above=True)
    assert [whole.parse(text) for text in ("1", "+9", "auto")] == [1, 9, "auto"]
    assert [real.parse(text) for text in ("1", "1e-3", ".5")] == [1.0, 0.001, 0.5]
    for bounds, texts in ((whole, ("0", "10", "Auto", "１", "0x1")), (real, ("0", "1.01", "-0", "1e", "infinity"))):
        for text in texts:
            with pytest.raises(UserError, match="expected"):
                bounds.parse(text)


def test_listing_the_cards_runs_none(monkeypatch, capsys):
    folder = Path("experiments") / "cards"
    folder.mkdir(parents=True)
    functions = "".join(f"def {name}(*_): ...\n" for name in ("config", "packaged", "run"))
    (folder / "mine.py").write_text(f'"""A card.\n\nMore."""\nopen("was-run", "w")\n{functions}')
    (folder / "broken.py").write_text("def (")
    assert main(["experiment"]) == 0
    assert capsys.readouterr().out.split() == ["mine", "A", "card."]
    assert not Path("was-run").exists()
    assert list(cards.cards()) == ["mine"]


# --- any bad command line ---

WORDS = st.one_of(
    st.sampled_from("0 1 -1 ² nan inf 1e999 auto all e m x demo . / '' [/v2] [b] gs:// a://u:p@h -- --bogus".split()),
    st.integers(-(10**40), 10**40).map(str),
    st.floats().map(str),
    st.text(string.printable + "é²\x1b\u202e\ud800🙂", max_size=12),
)


@st.composite
def command_lines(draw) -> list[str]:
    """A command with some of its options, mostly with values that do not fit."""
    words, parser = [], build_parser()
    while nested := [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]:
        words.append(draw(st.sampled_from(list(nested[0].choices))))
        parser = nested[0].choices[words[-1]]
    flags = [flag for flag in parser._option_string_actions if flag not in ("-h", "--help", "--distributed")]
    if words[0] == "experiment":
        flags += ["--count", "--lengths", "--preset", "--steps", "--seed"]
    if draw(st.booleans()):
        words += {"fit": [*FIT[1:], "--run", "run"], "experiment": ["figure3_information"]}.get(words[0], ["run"])
    for flag in draw(st.lists(st.sampled_from(flags), max_size=4)):
        words.append(flag)
        words += draw(st.lists(WORDS, max_size=1))
    return words + draw(st.lists(WORDS, max_size=1))


def check(words, capsys):
    """Neither a traceback nor more than a line."""
    try:
        code = main(words)
    except SystemExit as ended:  # --help
        code = ended.code
    said = capsys.readouterr().err
    assert code in (0, 2), words
    lines = [line for line in said.splitlines() if not line.startswith("onestep: warning: ")]
    assert code == 0 or words == [] or len(lines) == 1, (words, said)
    assert "\x1b" not in said


@pytest.fixture
def no_work(monkeypatch):
    """The commands only read their options."""
    for module in (bench, decode_command, demo, encode, encoder, export, info, pull, push, report, status, verify):
        monkeypatch.setattr(module, "run", lambda args: 0)
    monkeypatch.setattr(experiment, "_run_cards", lambda args, loaded, chosen: None)
    monkeypatch.setattr(fit_command, "_fit", lambda args, optimizer: (_ for _ in ()).throw(UserError("not here")))


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
@given(words=command_lines())
def test_some_bad_command_lines(no_work, capsys, words):
    check(words, capsys)


@pytest.mark.long
@settings(max_examples=500, deadline=None, suppress_health_check=QUIET, database=None)
@given(words=command_lines())
def test_many_bad_command_lines(no_work, capsys, words):
    check(words, capsys)

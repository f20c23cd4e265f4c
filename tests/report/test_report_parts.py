"""The parts of the report by themselves: markup, strings of tokens, wording, charts, sizes."""

import dataclasses
import json
import re
import shlex

import numpy as np
import pytest
from pages import parse
from report_runs import read

from onestep_jax import ManyVectors, OneStep, Optimizer, Projected, fit, read_results
from onestep_jax.cli.fit import optimizer_of, scheme_of
from onestep_jax.cli.parser import build_parser
from onestep_jax.fitting.optimizers import PRESETS, Schedule
from onestep_jax.prototokens.schemes import Cramming
from onestep_jax.report import charts, headline, wording
from onestep_jax.report.markup import embedded, tag, visible
from onestep_jax.report.token_strings import token_pieces
from onestep_jax.store.reading import read_config


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x00\x07\x7f", "␀␇␡"),
        ("\u202e\u200f\ufeff\xad", "⟨U+202E⟩⟨U+200F⟩⟨U+FEFF⟩⟨U+00AD⟩"),
        ("\x85\u2028\ud800", "⟨U+0085⟩⟨U+2028⟩⟨U+D800⟩"),
        ("👩\u200d👧 نمی\u200cخواهم é", "👩\u200d👧 نمی\u200cخواهم é"),
    ],
)
def test_controls_are_made_visible(text, shown):
    assert visible(text) == shown


def test_markup_escapes_what_it_did_not_make():
    made = tag("p", "<b>", tag("i", 'x"y'), 3, class_='a"b', aria_label="<", hidden=True, title=None)
    assert made == '<p class="a&quot;b" aria-label="&lt;" hidden>&lt;b&gt;<i>x&quot;y</i>3</p>'
    assert tag("input", name="q", disabled=False) == '<input name="q">'


def test_embedded_json_closes_no_script():
    value = {"a": ["</script>", "<!--", "\u2028", "é"]}
    written = embedded(value)
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == value


@pytest.mark.parametrize("text", ["The ferry left.\n\tfor x in  y:", "naïve 👩\u200d👧 – “tail”", "日本語 שלום"])
def test_pieces_join_to_the_text(text):
    from onestep_jax.model.hub import locate
    from onestep_jax.model.tokenizer import load_tokenizer

    folder = locate("default")
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "\ufffd" not in "".join(pieces)
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda byte: bytes([int(byte[1], 16)]), "".join(pieces).encode())
    assert raw.decode() == text


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (OneStep(), "[e] [m]×(N−1)"),
        (OneStep("unguided-e"), "[e] [m]×N, first output ignored"),
        (OneStep(share="m", group=16), "[e] [m]×(N−1), m shared by 16 texts"),
        (Cramming(2), "[mem]×2 [t_1 … t_(N−1)]"),
    ],
)
def test_notation(scheme, words):
    assert wording.notation(scheme.describe()) == words


OPTIMIZERS = [
    None,
    Optimizer("lion", {"learning_rate": 0.005, "b2": 0.95}),
    Optimizer("adamw", {"learning_rate": 0.1, "nesterov": True}, Schedule("cosine_decay", {"decay_steps": 60})),
    Optimizer("sgd", {"learning_rate": 1e-05}),
]


SCHEMES = [OneStep(), OneStep("alternating", share="e", group=2), Cramming(3)]
SCHEMES += [ManyVectors(2, 3, guided=0), ManyVectors(share="m", group=2)]
SCHEMES += [Projected(OneStep("unguided-e"), 8, leaves=("e", "m"), seed=3), Projected(Cramming(2), 3, "own")]
SCHEMES += [
    Projected(OneStep("one-vector"), 8, "shared", group=3),
    Projected(ManyVectors(2, share="m", group=2), 4, "own"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_command_says_what_was_run(run, tmp_path, optimizer, scheme):
    config = read_config(run)
    described = (optimizer or PRESETS["fast"].optimizer).describe()
    identity = config["identity"] | {"optimizer": described, "scheme": scheme.describe(), "record": True, "length": 8}
    words = wording.fit_command(tmp_path / "a run", identity, config["settings"] | {"copies": 2})
    program, *options = shlex.split(words)
    args, args.rest = build_parser().parse_known_args(options)
    assert program == "onestep"
    assert optimizer_of(args, PRESETS["fast"].optimizer).describe() == described
    assert scheme_of(args, 12).describe() == scheme.describe()
    assert (args.run, args.length, args.steps, args.copies) == (tmp_path / "a run", 8, 40, 2)
    assert (args.model, args.dtype, args.record) == (config["settings"]["model"], "float32", True)


def test_no_command_for_what_the_command_line_cannot_say(run):
    config = read_config(run)
    identity = config["identity"]
    assert wording.fit_command(run, identity | {"length": 8}, config["settings"])
    constant = Optimizer("sgd", {"learning_rate": 1}, Schedule("constant")).describe()
    changes = (
        {"length": None},
        {"start vectors": "abc"},
        {"optimizer": {"name": "a", "object": True}},
        {"optimizer": constant},
    )
    for change in changes:
        assert wording.fit_command(run, identity | {"length": 8} | change, config["settings"]) is None
    assert wording.fit_command(run, identity | {"length": 8}, config["settings"] | {"preset": "given"}) is None


def test_shared_vectors_are_counted_once(tiny, token_lists, one_device, tmp_path):
    fit(
        tiny,
        token_lists[:4],
        run=tmp_path / "run",
        steps=5,
        slots=2,
        placement=one_device,
        scheme=OneStep(share="m", group=2),
    )
    assert headline.sizes(read(tmp_path / "run")).vectors == (4 + 2) * 32 * 4


def test_curves_are_bounded_and_their_median_counts_finished_texts(run, monkeypatch):
    results = read_results(run)

    def with_trace(text, trace):
        return dataclasses.replace(text, trials=(dataclasses.replace(text.trials[0], trace=np.array(trace)),))

    traces = [
        [[step, 1.0, 0.5] for step in range(1, 5001)],
        [[10.0, 2.0, 1.0], [20.0, np.nan, 1.0]],
        [[10.0, 2.0, 0.9]],
    ]
    texts = [with_trace(text, trace) for text, trace in zip(results, traces, strict=False)]
    monkeypatch.setattr(charts, "POINTS", 300)
    svg = parse(charts.curves(texts, "accuracy", "title"))
    *lines, median = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in svg.all("polyline")
    ]
    assert [len(line) for line in (*lines, median)] == [100, 1, 1, 150]
    assert {y for _, y in median} == {lines[2][0][1]}
    assert median[-1][0] == lines[0][-1][0]
    flat = [with_trace(results[0], [[10.0, 0.0, 1.0]])]
    assert "polyline" in charts.curves(flat, "loss", "title")
    assert "No curve" in charts.curves([dataclasses.replace(results[0], trials=())], "loss", "title")


@pytest.mark.parametrize("value", [0, 1, 4, 5, 11, 12, 90, 181, 256, 257, 999, 1000, 1448, 12345])
def test_axes_end_on_round_numbers(value):
    top = charts.nice_ceiling(value)
    assert max(value, 4) <= top <= max(4, 1.67 * value)
    assert top % 4 == 0


def test_accuracy_is_one_only_when_it_is():
    assert [wording.accuracy(value) for value in (1, 0.99999, 0.61719, 0)] == ["1", "0.9999", "0.6172", "0.0000"]

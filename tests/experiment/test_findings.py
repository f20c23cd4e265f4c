"""The verdicts on findings: what was cut off, tied, or too few must not become an answer."""

import importlib
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
MODULES = ("bounds", "findings", "question_findings", "question_summaries", "summaries")


@pytest.fixture(autouse=True)
def _made_here(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def module(name: str):
    return importlib.import_module(name)


def rows_of(columns: str, *rows: tuple[object, ...]) -> list[dict[str, str]]:
    names = columns.split(", ")
    return [dict(zip(names, map(str, row), strict=True)) for row in rows]


# --- what was cut off by the lengths tried ---


def test_a_capacity_is_an_interval():
    bounds = module("bounds")
    row = {"tokens mean": "24", "texts": "4", "at the longest length": "0"}
    assert str(bounds.held(row)) == "24.0"
    assert str(bounds.held(row | {"at the longest length": "1"})) == "≥ 24.0"
    assert bounds.held(row | {"at the longest length": "1"}).high == math.inf
    # texts below the shortest length count as 0, and hold up to one token less than that
    some = bounds.held(row | {"tokens mean": "4"}, below=3, shortest=11)
    assert (some.low, some.high) == (4, 4 + 3 * 10 / 4)
    assert str(some) == "4.0 to 11.5 (3 of 4 below 11)"
    assert str(bounds.held(row | {"tokens mean": "0"}, below=4, shortest=8)) == "< 8"
    both = bounds.held(row | {"at the longest length": "1"}, below=1, shortest=11)
    assert str(both) == "≥ 24.0 (1 of 4 below 11)"
    assert str(bounds.held(row, below=1)) == "≥ 24.0", "of nats, which the shortest length does not bound"


def test_capacities_are_compared_only_as_far_as_they_are_known():
    bounds = module("bounds")
    Held, less = bounds.Held, bounds.less
    assert less(Held(3, 3, 1), Held(5, 5, 1)) is True
    assert less(Held(5, 5, 1), Held(3, 3, 1)) is False
    assert less(Held(5, 5, 1), Held(5, 5, 1)) is None, "a tie on the tried lengths"
    assert less(Held(3, 3, 1), Held(5, math.inf, 1)) is True
    assert less(Held(3, math.inf, 1), Held(5, 5, 1)) is None
    assert less(Held(6, math.inf, 1), Held(5, 5, 1)) is False
    assert less(Held(0, 7, 1), Held(32, math.inf, 1)) is True
    assert less(Held(0, 7, 1), Held(5, 5, 1)) is None
    assert [bounds.every(of) for of in ([True], [True, None], [None, False])] == [True, None, False]


@pytest.mark.parametrize(
    ("random", "own", "shared", "holds"),
    [
        ((22, 142, 0), (24, 106, 0), (13, 60, 0), [True, True, True]),
        ((32, 297, 0), (64, 280, 2), (48, 223, 1), [None, True, None]),
        ((64, 297, 2), (48, 280, 0), (48, 223, 0), [None, False, True]),
        ((32, 297, 0), (64, 300, 0), (70, 223, 0), [False, True, False]),
    ],
)
def test_capacities_at_the_longest_length_are_lower_bounds(random, own, shared, holds):
    findings = module("findings")

    def row(texts: str, m: str, method: str, values: tuple[int, ...]) -> dict[str, str]:
        names = ("C_tokens mean", "H_LM mean, nats", "at the longest length")
        labels = {"texts from": texts, "m": m, "method": method, "texts": "2"}
        return labels | dict(zip(names, map(str, values), strict=True))

    rows = [
        row("random", "own", "search", random),
        row("random", "shared", "grid", (16, 90, 0)),
        row("excerpts:books", "own", "search", (1, 1, 0)),
        row("excerpts:books", "own", "grid", own),
        row("excerpts:books", "shared", "grid", shared),
    ]
    judges = (findings._own_above_shared, findings._random_below, findings._random_above)
    assert [judge({"table3": rows})[0] for judge in judges] == holds


@pytest.mark.parametrize(
    ("trained", "fresh", "holds"),
    [((32, 3), (32, 3), None), ((32, 3), (20.5, 0), True), ((16, 0), (16, 0), None), ((32, 3), (20.5, 1), None)],
)
def test_what_all_reach_is_no_verdict(trained, fresh, holds):
    findings, judge = module("findings"), module("question_findings")._holds_less("init")
    tables = {
        "control_untrained_models": rows_of(
            "weights, part, texts, c_tokens mean, at longest",
            ("trained", "none", 3, *trained),
            ("init", "all", 3, *fresh),
            ("init", "mlp", 3, 0, 0),
        ),
        "control_untrained": rows_of(
            "weights, part, length, fits, reconstructed",
            *[(*of, length, 3, 1) for of in (("trained", "none"), ("init", "all")) for length in (16, 32)],
            ("init", "mlp", 16, 3, 0),
        ),
    }
    claim = findings.Claim("control_untrained", "Fresh weights hold less", judge)
    assert claim.judge(tables)[0] is holds
    page = findings.section([claim], lambda model, card: tables, {"one": "One"})
    assert f"| {findings.WORDS[holds]}: " in page
    assert "| not yet recorded |" in findings.section([claim], lambda model, card: {}, {"one": "One"})
    earlier = {"control_untrained_models": [{"part": "none"}]}
    assert "the record has no column 'weights'" in findings.section([claim], lambda *_: earlier, {"one": "One"})
    mlp, said = module("question_findings")._holds_less("init", "mlp")(tables)
    assert (mlp, said.split(" against ")[0]) == (True, "mean tokens < 16")


@pytest.mark.parametrize(("own", "other", "holds"), [("32", "32", None), ("32", "16", True), ("16", "32", False)])
def test_prefixes_are_told_apart_below_the_longest_length(own, other, holds):
    rows = [
        {"prefix": name, "texts": "3", "tokens mean": tokens, "texts at the longest length": str(3 * (tokens == "32"))}
        for name, tokens in (("true", own), ("other", other), ("bos", "16"))
    ]
    tables = {"prefix_suffix": rows, "prefix_suffix_texts": []}
    assert module("question_findings")._own_prefix_helps(tables)[0] is holds


@pytest.mark.parametrize(
    ("geometric", "grown", "short", "warm"),
    [
        ((32, 0), (53, 0), True, False),
        ((32, 0), (33, 0), False, False),
        ((16.5, 1), (20, 1), None, None),
        ((30, 1), (40, 0), None, None),
        ((39, 0), (40, 1), None, False),
    ],
)
def test_growth_is_no_verdict_where_its_lengths_end(geometric, grown, short, warm):
    ways = ("geometric", "geometric, warm", "every, fresh", "growth")
    columns = "way, texts, tokens mean, at the longest length, evaluations"
    values = dict(zip(ways, (geometric, geometric, (13, 0), grown), strict=True))
    work = dict(zip(ways, (5, 5, 20, 10), strict=True))
    tables = {
        "growth": rows_of(columns, *[(way, 2, *values[way], work[way]) for way in ways]),
        "growth_texts": rows_of("way, tokens", *[(way, 9) for way in ways]),
    }
    judges = module("question_findings")
    assert [judges._underestimates(tables)[0], judges._warm_alone(tables)[0]] == [short, warm]


def test_what_several_vectors_hold_is_bounded_on_both_sides():
    judges = module("question_findings")
    columns = "series, number, texts, tokens mean, at the longest length"
    rows = [("plain", 1, 4, 35, 0), ("e", 2, 4, 45, 0), ("e", 4, 4, 64, 4), ("m", 2, 4, 35, 0), ("own", 16, 4, 42, 0)]
    held = {"vectors": rows_of(columns, *rows), "vectors_texts": rows_of("series, number, tokens", ("e", 2, 45))}
    assert judges._more("e")(held) == (True, "mean tokens of one 35.0, of 2: 45.0, 4: ≥ 64.0")
    assert judges._more("m")(held)[0] is None, "a tie"
    assert judges._fewer_dimensions(held)[0] is False
    capped = {**held, "vectors": rows_of(columns, ("plain", 1, 4, 35, 0), ("own", 16, 4, 42, 1))}
    assert judges._fewer_dimensions(capped)[0] is None
    run = {"run": [{"lengths": "11,16", "steps": "300"}]}
    memory = {
        "vectors": rows_of(f"{columns}, nats mean", ("memory", 1, 4, 2.75, 0, 7)),
        "vectors_texts": rows_of("series, number, tokens", *[("memory", 1, held) for held in (11, 0, 0, 0)]),
    }
    said = module("question_summaries").vectors(memory | run)
    assert "memory 2.8 to 10.2 (3 of 4 below 11), ≥ 7 nats; within 300 evaluations a fit" in said


def test_dynamics_and_margins_say_at_least():
    summaries = module("question_summaries")
    columns = "checkpoint, step, texts, c_tokens mean, at longest, evaluations mean, nats per token"
    tables = {
        "dynamics": rows_of(columns, ("a", 0, 4, 7, 0, 9, 8), ("b", 9, 4, 28, 2, 9, 5)),
        "dynamics_lengths": rows_of("checkpoint, length, texts, reconstructed", ("a", 4, 4, 1), ("b", 4, 4, 1)),
    }
    assert "step 9 ≥ 28.0 tokens" in summaries.dynamics(tables)
    assert module("question_findings")._of_training(tables)[0] is True
    margins = rows_of("margin, texts, tokens mean, at the longest length", (0, 4, 16, 4), (2, 4, 12, 0))
    said = summaries.margins({"margins": [], "margins_capacity": margins})
    assert said.endswith("mean capacity in tokens ≥ 16.0 at ε = 0, 12.0 at ε = 2")


@pytest.mark.parametrize(
    ("one_pass", "autoregressive", "holds", "ratio"),
    [
        ((92, 0), (164, 3), True, "≤ 0.50"),
        ((164, 3), (133, 2), None, "0.50, but both reach the longest length tried"),
        ((176, 5), (46, 0), False, "≥ 0.50"),
        ((110, 0), (27, 0), False, "0.50"),
    ],
)
def test_figure3_at_a_ceiling(one_pass, autoregressive, holds, ratio):
    columns = ("vectors", "texts", "nats mean", "tokens at the longest length", "autoregressive nats mean")
    columns += ("autoregressive tokens at the longest length", "ratio median")
    values = (1, 3, *one_pass, *autoregressive, 0.5)
    tables = {"figure3_summary": [dict(zip(columns, map(str, values), strict=True))]}
    assert module("findings")._less(1)(tables)[0] is holds
    assert module("summaries").figure3(tables) == f"median ratio of nats, with 1 trained {ratio}"


def test_figure4_names_the_lengths():
    columns = "batch, ratio, one pass length, autoregressive length"
    tables = {
        "figure4": rows_of("length, batch, ratio", (8, 1, 3.4), (32, 1, 7.7)),
        "figure4_longest": rows_of(columns, (1, 7.7, 32, 8)),
    }
    holds, said = module("findings")._faster(tables)
    assert holds
    assert "×7.7, one pass at 32 tokens, the longest tried, token by token at 8 tokens; at equal lengths at" in said
    assert module("findings")._faster(tables | {"figure4": rows_of("length, batch, ratio", (8, 1, 0.9))})[0] is False


# --- what an average or a bound hides ---


def test_one_vector_is_judged_from_four_tokens_on():
    judge = module("findings")._not_alone
    rows = rows_of("arrangement, length, texts, exact", ("[e]×N", 1, 8, 1), ("[e]×N", 2, 8, 0.125), ("[e]×N", 4, 8, 0))
    assert judge({"table1": rows}) == (True, "exact: 0% of 8 texts at N = 4")
    run = {"run": [{"protocols": "preset fast, frozen prefix of 1"}]}
    assert "behind a BOS" in judge({"table1": rows} | run)[1]


def test_a_shared_e_costs_the_first_token_only():
    columns = "shared, texts a group, length, max rest mean, max mean, avg first mean"
    holds, said = module("findings")._sharing("e")({"table2": rows_of(columns, ("e", 4, 8, 1, 0.90625, 0.25))})
    assert holds
    assert "1.00 of tokens 2 to 8 in groups of 4; 0.91 of the whole text; the first, read at the" in said
    assert said.endswith("right in 25%")
    assert not module("findings")._sharing("e")({"table2": rows_of(columns, ("e", 4, 8, 0.9, 0.9, 1))})[0]


@pytest.mark.parametrize(("least", "holds"), [(0.98, True), (0.42, False)])
def test_a_curve_holds_at_its_worst_place_too(least, holds):
    columns = "accuracy mean, least accuracy mean, least accuracy min, pairs"
    tables = {
        "figure7": rows_of(columns, (0.19, 0, 0, 3), (0.97, least, 0.1, 3)),
        "figure7_pairs": rows_of("first", ("ab:0",), ("ab-1:0",), ("cd:0",)),
    }
    judged, said = module("findings")._connected(tables)
    assert judged is holds
    assert f"{least} (mean over pairs)" in said
    assert said.endswith("3 pairs, texts: 2")


# --- differences with an interval, and tests ---


@pytest.mark.parametrize(
    ("low", "high", "contexts", "holds"),
    [(0.01, 0.05, 8, True), (-0.02, 0.01, 8, False), (-0.01, 0.03, 8, None), (0.01, 0.05, 3, None)],
)
def test_a_difference_is_told_by_its_interval(low, high, contexts, holds):
    findings = module("findings")
    columns = "nearer by, low, high, texts resampled, contexts resampled, way, share, measure"
    (row,) = rows_of(columns, (0.01, low, high, 40, contexts, "m shared by all", "none", "token"))
    same_text = {"nearer": "same_text", "farther": "same_context"}
    same_context = {"nearer": "same_context", "farther": "different_contexts"}
    relations = ("same_text", "same_context", "different_contexts")
    figure6 = rows_of("way, relation, mean, pairs", *[("m shared by all", name, 0.9, 40) for name in relations])
    tables = {"figure5_gap": [row], "figure6_auc": [row | same_text, row | same_context], "figure6": figure6}
    for judge in (findings._slightly_nearer, findings._same_text, findings._same_context):
        judged, said = judge(tables)
        assert judged is holds
        assert f"0.010 ({low:.3f} to {high:.3f})" in said
        assert f"{contexts} contexts, 40 texts" in said
    assert findings._slightly_nearer(tables)[1].endswith("m of each text")


@pytest.mark.parametrize(
    ("control", "free", "texts", "holds"),
    [
        ((0.13, 0.12, 0.3), 0.5, 24, True),
        ((0.13, 0.02, 0.0001), 0.5, 24, False),
        ((0.13, 0.12, 0.3), 0.0001, 24, False),
        ((0.3, 0.1, 0.3), 0.5, 24, None),
        ((0.13, 0.12, 0.3), 0.5, 4, None),
    ],
)
def test_reading_is_judged_beside_the_control(control, free, texts, holds):
    """A start that saw the true first token is compared with what that token alone gives, and by every measure."""
    own, other, p = control
    columns = "compared with, start, measure, own, other, difference, p, texts"
    rows = [
        ("fitted", "one pass", "exact", 1, 0, 1, 0.0001, texts),
        # beside other texts it always stands out, because it saw the token
        ("fitted", "e", "exact", own, 0, own, 0.0001, texts),
        ("t", "e", "exact", own, other, own - other, p, texts),
        ("fitted", "t", "exact", other, 0, other, 0.0001, texts),
        ("fitted", "m", "exact", 0.02, 0.01, 0.01, free, texts),
        ("rest", "m", "exact", 0.02, 0.01, 0.01, 0.0001, texts),
    ]
    judged, said = module("findings")._unreadable({"access": rows_of(columns, *rows)})
    assert judged is holds
    assert "for 2 tests" in said
    with pytest.raises(KeyError, match="compared with: t"):
        module("findings")._unreadable({"access": rows_of(columns, *rows[:2])})
    assert module("summaries").access({"access": rows_of(columns, *rows)}).endswith(f"alone, p = {p:.2g})")

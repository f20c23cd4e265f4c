"""Growth: the logic against a model of what a text's stages come to, the fits for real on the tiny model."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from onestep_jax import analysis, fit
from onestep_jax.analysis import capacity as capacity_module
from onestep_jax.analysis import growth, rounds
from onestep_jax.analysis.growth import distance, grow, solution_path, stages
from onestep_jax.analysis.prefix_table import read_prefix_table, table_settings
from onestep_jax.analysis.trajectories import travel
from onestep_jax.errors import UserError
from onestep_jax.prototokens.reconstruction import decode
from onestep_jax.prototokens.schemes import OneStep, Projected
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import text_ids

# --- logic, without a model's arithmetic ---


class Oracle:
    """Stands in for `fit`: a prefix is solved in 10 evaluations if its length is in a set, else lost in 100.

    Attributes:
      solvable: first token of a text → the lengths that are solved.
      calls: the prefix lengths of each call.
      starts: first token of a text → length of the solution that it starts at (0 for random vectors), of each call.
      options: of each call.
    """

    def __init__(self, solvable):
        self.solvable = solvable
        self.calls, self.starts, self.options = [], [], []

    def __call__(self, model, texts, *, run=None, start=None, **options):
        self.calls.append([len(tokens) for tokens in texts])
        tokens = [np.asarray(ids, np.int32) for ids in texts]
        names = text_ids(tokens)
        known = {} if start is None else start.vectors
        self.starts.append(
            {
                int(ids[0]): int(known[name]["e"][0]) if name in known else 0
                for name, ids in zip(names, tokens, strict=True)
            }
        )
        self.options.append(options)
        return Results(tuple(self.result(name, ids) for name, ids in zip(names, tokens, strict=True)), {}, "")

    def result(self, text_id, tokens):
        length = len(tokens)
        solved = length in self.solvable[int(tokens[0])]
        right = np.arange(length) < (length if solved else 0)
        return TextResult(
            index=0,
            text_id=text_id,
            tokens=tokens,
            vectors={"e": np.full(32, length, np.float32), "m": np.zeros(32, np.float32)},
            predicted=np.where(right, tokens, 60).astype(np.int32),
            nats=np.ones(length, np.float32),
            accuracy=float(right.mean()),
            c_tokens=int(right.sum()),
            loss=0.0,
            steps=10 if solved else 100,
            best_step=0,
            seconds=0.0,
            seed=0,
            status="solved" if solved else "exhausted",
            h_lm=float(length),
        )


@pytest.fixture
def grown(monkeypatch, tiny):
    """(solvable lengths of each text, options of grow) → table and oracle."""

    def made(solvable, length=10, texts=None, **options):
        oracle = Oracle(solvable)
        monkeypatch.setattr(rounds, "fit", oracle)
        texts = texts or [[i, *([59] * (length - 1))] for i in range(len(solvable))]
        return grow(tiny, texts, **options), oracle

    return made


def test_a_text_grows_until_a_stage_fails(grown):
    table, oracle = grown([{1, 2, 3}, set(range(1, 11)), set()])
    assert oracle.calls == [[1, 1, 1], [2, 2], [3, 3], [4, 4], *([[n] for n in range(5, 11)])]
    assert [c.tokens for c in table.capacities()] == [3, 10, 0]
    assert [c.evaluations for c in table.capacities()] == [130, 100, 100]
    assert oracle.starts[:4] == [{0: 0, 1: 0, 2: 0}, {0: 1, 1: 1}, {0: 2, 1: 2}, {0: 3, 1: 3}]


def test_after_a_failure_a_text_goes_on_from_its_last_solution(grown):
    table, oracle = grown([{2, 3, 6}], failures=3)
    assert oracle.calls == [[n] for n in range(1, 10)]
    assert [start[0] for start in oracle.starts] == [0, 0, 2, 3, 3, 3, 6, 6, 6]
    assert table.capacities()[0].tokens == 6
    assert [stage.solved for stage in stages(table, 0)] == [n in (2, 3, 6) for n in range(1, 10)]


def test_lengths_go_from_the_first_to_the_last_by_the_stride(grown):
    table, oracle = grown([set(range(20))], first=2, last=9, stride=3)
    assert table.lengths == (2, 5, 8)
    assert oracle.calls == [[2], [5], [8]]
    assert oracle.options[0]["room"] == 8
    table, _ = grown([set(range(20))], texts=[[0] * 7, [0] * 5], first=2)
    assert [table.tried(text) for text in (0, 1)] == [[2, 3, 4, 5, 6, 7], [2, 3, 4, 5]]


def test_a_text_ends_where_its_evaluations_are_spent(grown):
    table, oracle = grown([set(range(1, 11)), {1, 3, 4, 5, 6}], total=35, failures=2)
    assert [len(table.row(text)) for text in (0, 1)] == [4, 2]
    assert [stage.spent for stage in stages(table, 0)] == [10, 20, 30, 40]
    assert oracle.calls == [[1, 1], [2, 2], [3], [4]]


def test_fresh_seeds_are_those_after_the_warm_one(grown):
    for fresh, seeds in ((0, 1), (2, 3), ("auto", "auto")):
        _, oracle = grown([{1, 2}], fresh=fresh)
        assert {options["seeds"] for options in oracle.options} == {seeds}


def test_texts_that_begin_alike_share_their_stages(grown):
    _, oracle = grown([set(range(1, 7))], texts=[[0] * 8, [0] * 4 + [1] * 4, [0] * 3])
    assert oracle.calls == [[1], [2], [3], [4], [5, 5], [6, 6], [7, 7]]


def test_a_user_finds_it(tiny):
    assert analysis.grow is grow
    assert capacity_module.grow is grow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": 0}, "first = 0: expected at least 1"),
        ({"first": 5, "last": 4}, "last = 4: expected at least 5"),
        ({"first": 9}, "text 0: 8 tokens, expected at least 9"),
        ({"last": 65}, "length 65 is beyond the model's context of 64"),
        ({"stride": 0}, "stride = 0: expected at least 1"),
        ({"stride": 1.5}, "stride = 1.5: expected a whole number"),
        ({"failures": 0}, "failures = 0: expected at least 1"),
        ({"total": 0}, "total = 0: expected at least 1"),
        ({"fresh": -1}, "fresh = -1: expected at least 0, or 'auto'"),
        ({"fresh": "all"}, "fresh = 'all': expected a whole number"),
        ({"threshold": 0}, "threshold = 0: expected a finite number, above 0"),
        ({"seeds": 3}, "seeds: cannot be chosen for a growth; give fresh"),
        ({"start": {}}, "start: cannot be chosen for a growth; .*first stage draws"),
        ({"room": 9}, "room: cannot be chosen for a growth"),
        ({"length": 4}, "length = 4: cannot be chosen"),
        ({"steps": 0}, "steps = 0: expected at least 1"),
        ({"scheme": OneStep(share="m", group=3)}, "growth with groups of 3: .*use grid"),
        ({"scheme": OneStep(share="m")}, "growth with a shared m: "),
        ({"scheme": Projected(OneStep(), 4, "shared")}, "growth with a shared W: "),
        ({"scheme": OneStep("halves")}, "'halves': .*use grid"),
        ({"scheme": OneStep(start={"e": np.zeros((3, 32)), "m": np.zeros((3, 32))})}, "without start"),
        ({"preset": "fats"}, "did you mean 'fast'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tiny, token_lists, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        grow(tiny, token_lists[:3], run=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


# --- real fits ---

TEXTS = np.random.default_rng(1).integers(61, size=(6, 16))[:3, :8].tolist()
BUDGET = 22


@pytest.fixture(scope="module")
def how(one_device):
    return {"first": 3, "steps": BUDGET, "slots": 1, "placement": one_device, "record": True, "chunk": 1}


@pytest.fixture(scope="module")
def real(tiny, how):
    return grow(tiny, TEXTS, failures=2, **how)


def test_stages_say_what_was_spent_and_what_was_right(real):
    seen = []
    for text in range(3):
        found = stages(real, text)
        assert [stage.length for stage in found] == list(real.row(text))
        spent = 0
        for stage in found:
            spent += stage.evaluations
            trial = stage.result.trials[0]
            assert stage.spent == spent
            assert stage.evaluations == sum(one.steps for one in stage.result.trials)
            assert stage.right == np.sum(trial.first_hit == 0) == round(trial.trace[0, 2] * stage.length)
            assert stage.solved == (stage.result.accuracy >= 0.99)
            seen.append(stage.solved)
        reached = max((stage.length for stage in found if stage.solved), default=0)
        assert real.capacities()[text].tokens == reached
    assert 0 < np.mean(seen) < 1


def test_a_stage_starts_at_the_last_solution(real):
    warm = 0
    for text in range(3):
        last = None
        for stage in stages(real, text):
            first = {name: leaf[0] for name, leaf in stage.result.trials[0].path.items()}
            if last is None:
                assert not stage.warm
                assert np.isnan(stage.moved)
            else:
                warm += 1
                for name, leaf in last.vectors.items():
                    np.testing.assert_array_equal(first[name], leaf)
                # causality: what the last solution gave, it gives again
                assert stage.right >= len(last.tokens)
                assert stage.moved == pytest.approx(
                    np.sqrt(sum(np.sum((stage.result.vectors[n] - last.vectors[n]) ** 2) for n in ("e", "m"))), rel=1e-5
                )
            last = stage.result if stage.solved else last
    assert warm >= 6


def test_the_way_of_the_solutions_is_a_path(real):
    solved = [stage for stage in stages(real, 0) if stage.solved]
    assert len(solved) >= 2
    gone = travel(solution_path([stage.result for stage in solved]))
    assert gone.length == pytest.approx(sum(stage.moved for stage in solved[1:]))
    assert gone.displacement == pytest.approx(distance(solved[0].result, solved[-1].result))


def same(one, other):
    """Whether two tables hold equal results."""
    assert set(one.found) == set(other.found)
    for name, result in one.found.items():
        again = other.found[name]
        assert (result.status, result.steps, result.seed) == (again.status, again.steps, again.seed)
        for leaf, vector in result.vectors.items():
            np.testing.assert_array_equal(vector, again.vectors[leaf])


def test_one_text_grows_as_in_a_batch(tiny, how, real):
    for text in (0, 2):
        alone = grow(tiny, TEXTS[text : text + 1], failures=2, **how)
        same(alone, dataclasses.replace(real, found={one.text_id: one for one in real.row(text).values()}))


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_killed_growth_goes_on(tiny, how, real, tmp_path):
    run = tmp_path / "run"

    def kill(_):
        if (run / "round-002").exists():
            raise Killed

    with pytest.raises(Killed):
        grow(tiny, TEXTS, failures=2, run=run, progress=kill, **how)
    half = read_prefix_table(run)
    assert [sorted(half.row(text)) for text in range(3)] == [[3, 4]] * 3
    assert table_settings(run)["kind"] == "growth"
    with pytest.raises(UserError, match=r"holds another run; failures: 2 there, 1 here"):
        grow(tiny, TEXTS, run=run, **how)
    with pytest.raises(UserError, match=r"holds another run; steps: 22 there, 23 here"):
        grow(tiny, TEXTS, failures=2, run=run, **how | {"steps": BUDGET + 1})

    same(grow(tiny, TEXTS, failures=2, run=run, **how), real)
    same(read_prefix_table(run), real)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("results/*")}
    same(grow(tiny, TEXTS, failures=2, run=run, **how), real)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("results/*")} == files


def test_what_the_last_vectors_emit_anyway_costs_one_evaluation(tiny, how):
    (begun,) = fit(tiny, [TEXTS[0][:5]], room=8, **{name: how[name] for name in ("slots", "placement")})
    assert begun.accuracy == 1
    longer = dataclasses.replace(begun, tokens=np.array(TEXTS[0], np.int32))
    scheme = OneStep("unguided-e").describe()
    (emitted,) = decode(tiny, Results((longer,), scheme, tiny.fingerprint))
    table = grow(tiny, [emitted.tokens.tolist()], **how | {"first": 5, "steps": begun.steps})
    assert [stage.evaluations for stage in stages(table, 0)][1:] == [1, 1, 1]
    assert [stage.moved for stage in stages(table, 0)][1:] == [0, 0, 0]
    assert table.capacities()[0].tokens == 8


def test_a_stage_that_fails_warm_is_tried_from_fresh_seeds(tiny, how):
    table = grow(tiny, TEXTS[2:], fresh=2, **how)
    last = stages(table, 0)[-1]
    assert not last.solved
    assert [trial.seed for trial in last.result.trials] == [0, 1, 2]
    starts = [trial.path["e"][0] for trial in last.result.trials]
    np.testing.assert_array_equal(starts[0], stages(table, 0)[-2].result.vectors["e"])
    assert np.abs(starts[1] - starts[0]).max() > 0.5
    assert last.evaluations == sum(trial.steps for trial in last.result.trials) == 3 * BUDGET


def test_stages_of_one_padded_length_share_their_programs(tiny, how, monkeypatch, caplog):
    """The first stage draws its start vectors and the second is given them; from then on nothing is compiled."""
    compiled = []

    def counting(*arguments):
        caplog.clear()
        found = rounds.fit_round(*arguments)
        compiled.append([record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()])
        return found

    monkeypatch.setattr(growth, "fit_round", counting)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        grow(tiny, TEXTS[:2], failures=9, last=6, **how | {"chunk": 2, "steps": 5})
    assert len(compiled) == 4
    assert compiled[0]
    assert compiled[2:] == [[], []]

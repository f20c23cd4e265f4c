"""Grid and search: the logic against a model of a text's capacity, the fits for real on the tiny model."""

import dataclasses

import numpy as np
import pytest

from onestep_jax.analysis import rounds as module
from onestep_jax.analysis.capacity import agreement, grid, next_length, search
from onestep_jax.analysis.prefix_table import read_prefix_table
from onestep_jax.analysis.text_capacity import capacity
from onestep_jax.errors import UserError
from onestep_jax.fitting.optimizers import Optimizer, Preset
from onestep_jax.prototokens.reconstruction import decode
from onestep_jax.prototokens.schemes import OneStep
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import text_ids

LADDER = (2, 3, 4, 6, 8, 12, 16, 24)


# --- logic, without a model's arithmetic ---


class Oracle:
    """Stands in for `fit`: a text's prefix is solved if its length is in a set, in as many steps as it is long.

    Attributes:
      solvable: first token of a text → the lengths that are solved.
      calls: the prefix lengths of each call.
      starts: the given start vectors of each call.
    """

    def __init__(self, solvable, budget=1000):
        self.solvable, self.budget = solvable, budget
        self.calls, self.starts = [], []

    def __call__(self, model, texts, *, run=None, scheme=None, **_):
        self.calls.append([len(tokens) for tokens in texts])
        self.starts.append(None if scheme is None else scheme.start)
        tokens = [np.asarray(ids, np.int32) for ids in texts]
        named = enumerate(zip(text_ids(tokens), tokens, strict=True))
        return Results(tuple(self.result(i, name, ids) for i, (name, ids) in named), {}, "")

    def result(self, index, text_id, tokens):
        length = len(tokens)
        solved = length in self.solvable[int(tokens[0])]
        right = np.arange(length) < (length if solved else 1)
        return TextResult(
            index=index,
            text_id=text_id,
            tokens=tokens,
            vectors={"e": np.full(32, length, np.float32), "m": np.full(32, tokens[0], np.float32)},
            predicted=np.where(right, tokens, 60).astype(np.int32),
            nats=np.ones(length, np.float32),
            accuracy=float(right.mean()),
            c_tokens=int(right.sum()),
            loss=0.0,
            steps=length if solved else self.budget,
            best_step=0,
            seconds=0.0,
            seed=0,
            status="solved" if solved else "exhausted",
            h_lm=float(length),
        )


def texts_of(count, length=24):
    """Texts that differ from their first token on."""
    return [[i, *([59] * (length - 1))] for i in range(count)]


def tables(monkeypatch, tiny, solvable, steps=1000, ladder=LADDER, texts=None, **options):
    """A grid and a search of texts with these solvable lengths, and the oracles that answered."""
    texts = texts or texts_of(len(solvable))
    found = []
    for way, settings in ((grid, {}), (search, options)):
        oracle = Oracle(solvable)
        monkeypatch.setattr(module, "fit", oracle)
        found += [way(tiny, texts, ladder, steps=steps, **settings), oracle]
    return found


def up_to(longest):
    return {n for n in LADDER if n <= longest}


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_search_finds_what_a_monotone_grid_finds(monkeypatch, tiny, steps):
    longest = [0, *LADDER, 5, 13]
    full, _, found, oracle = tables(monkeypatch, tiny, [up_to(n) for n in longest], steps)
    assert [c.tokens for c in found.capacities()] == [max(up_to(n), default=0) for n in longest]
    assert [c.tokens for c in full.capacities(nested=False)] == [c.tokens for c in found.capacities()]
    compared = agreement(full, found)
    assert (compared.texts, compared.equal, compared.at_least) == (len(longest), 1, 1)
    assert len(oracle.calls) <= len(LADDER)


def test_search_makes_only_fits_of_the_grid_and_each_once(monkeypatch, tiny):
    rng = np.random.default_rng(0)
    solvable = [set(rng.choice(LADDER, size=5, replace=False).tolist()) for _ in range(40)]
    full, _, found, oracle = tables(monkeypatch, tiny, solvable, failures=2)
    assert set(found.found) < set(full.found)
    assert sum(map(len, oracle.calls)) == len(found.found)
    for i, lengths in enumerate(solvable):
        tokens, fits = found.capacities()[i].tokens, found.row(i)
        assert tokens in lengths | {0}
        assert max(lengths & set(fits), default=0) == tokens
        above = [n for n in LADDER if n > tokens][:2]
        assert all(n in fits and n not in lengths for n in above)


def test_work_is_the_sum_over_the_fits_that_were_made(monkeypatch, tiny):
    full, _, found, oracle = tables(monkeypatch, tiny, [up_to(6), up_to(0)], steps=10)
    assert oracle.calls == [[2, 2], [3], [4], [6], [8]]
    assert found.evaluations == 2 + 3 + 4 + 6 + 1000 + 1000
    assert found.token_positions == 4 + 9 + 16 + 36 + 8 * 1000 + 2 * 1000
    assert [c.evaluations for c in found.capacities()] == [1015, 1000]
    assert [c.token_positions for c in found.capacities()] == [8065, 2000]
    compared = agreement(full, found)
    assert compared.evaluations == 2015 / (15 + 4 * 1000 + 8 * 1000)
    assert compared.token_positions == 10065 / (65 + 60 * 1000 + 75 * 1000)


def test_cheap_successes_double_the_length_and_a_failure_goes_back(monkeypatch, tiny):
    *_, found, oracle = tables(monkeypatch, tiny, [up_to(12)])
    assert oracle.calls == [[2], [4], [8], [16], [12]]
    assert found.capacities()[0].tokens == 12
    for options in ({"steps": 40}, {"steps": 20, "seeds": 2}, {"preset": Preset("normal", Optimizer(), steps=40)}):
        *_, oracle = tables(monkeypatch, tiny, [up_to(12)], **{"steps": None, **options})
        assert oracle.calls == [[2], [4], [8], [12], [16]]
    assert next_length({}, [100, 150, 300]) == 100
    fitted = {n: Oracle([up_to(16)]).result(0, "0" * 16, np.zeros(n, np.int32)) for n in (2, 6)}
    assert next_length({2: fitted[2]}, [2, 6], cheap=50) == 6


def test_more_failures_reach_beyond_a_dip(monkeypatch, tiny):
    solvable = [{2, 3, 4, 8}, {2, 3, 4, 12}, {3}]
    full, _, once, _ = tables(monkeypatch, tiny, solvable, steps=10)
    *_, twice, _ = tables(monkeypatch, tiny, solvable, steps=10, failures=2)
    assert [c.tokens for c in once.capacities()] == [4, 4, 0]
    assert [c.tokens for c in twice.capacities()] == [8, 4, 3]
    assert agreement(full, once)[:3] == (3, 0, 0)
    assert agreement(full, twice)[:3] == (3, 2 / 3, 2 / 3)
    assert sorted(twice.row(0)) == [2, 3, 4, 6, 8, 12, 16]


def test_texts_that_begin_alike_share_their_fits(monkeypatch, tiny):
    texts = [[0] * 24, [0] * 8, [0] * 6 + [1] * 18]
    full, whole, found, oracle = tables(monkeypatch, tiny, [up_to(8)], steps=10, texts=texts)
    assert whole.calls == [[2, 3, 4, 6, 8, 8, 12, 12, 16, 16, 24, 24]]
    assert oracle.calls == [[2], [3], [4], [6], [8, 8], [12, 12]]
    assert full.tried(1) == [2, 3, 4, 6, 8]
    assert [c.tokens for c in found.capacities()] == [8, 8, 8]
    assert [c.longest_tried for c in found.capacities()] == [24, 8, 24]
    assert found.evaluations == 2 + 3 + 4 + 6 + 8 + 8 + 2 * 1000


def test_warm_starts_are_the_vectors_with_the_longest_horizon(monkeypatch, tiny):
    *_, oracle = tables(monkeypatch, tiny, [up_to(3), {2, 4}], steps=10, warm=True, failures=2)
    assert oracle.calls == [[2, 2], [3, 3], [4, 4], [6, 6], [8]]
    assert oracle.starts[0] is None
    starts = [None if start is None else start["e"][:, 0].tolist() for start in oracle.starts]
    assert starts == [None, [2, 2], [3, 2], [3, 4], [4]]
    assert [start["m"][:, 0].tolist() for start in oracle.starts[1:]] == [[0, 1], [0, 1], [0, 1], [1]]
    *_, cold = tables(monkeypatch, tiny, [up_to(3), {2, 4}], steps=10)
    assert set(cold.starts) == {None}


def test_groups_keep_to_one_length(monkeypatch, tiny):
    oracle = Oracle([up_to(8), up_to(3)])
    monkeypatch.setattr(module, "fit", oracle)
    scheme = OneStep(share="m", group=2)
    texts = [[0] * 24, [0] * 24, [1] * 24, [0] * 24]
    found = grid(tiny, texts, (3, 8), scheme=scheme)
    assert oracle.calls == [[3] * 4 + [8] * 4]
    assert [c.tokens for c in found.capacities(nested=False)] == [8, 8, 3, 8]
    assert len(found.found) == 8
    assert [row[3].rpartition("-")[2] for row in (found.ids[1], found.ids[3])] == ["1", "2"]


@pytest.mark.parametrize(
    ("way", "arguments", "message"),
    [
        (grid, {"lengths": []}, "lengths = .*at least one"),
        (grid, {"lengths": [0, 4]}, "each at least 1"),
        (grid, {"lengths": [65]}, "length 65 is beyond the model's context of 64"),
        (grid, {"lengths": [10]}, "text 0: 8 tokens, expected at least 10"),
        (grid, {"length": 4}, "length = 4: .*give lengths"),
        (search, {"copies": 3}, "copies = 3: .*give seeds"),
        (grid, {"scheme": OneStep(start={"e": np.zeros((3, 32)), "m": np.zeros((3, 32))})}, "without start"),
        (grid, {"scheme": OneStep(share="m", group=2)}, "3 texts in groups of 2"),
        (grid, {"scheme": OneStep(share="m", group=3), "lengths": [4, 10]}, "expected at least 10"),
        (search, {"scheme": OneStep(share="m", group=3)}, "groups of 3: .*use grid"),
        (search, {"scheme": OneStep(arrangement="halves")}, "'halves': .*use grid"),
        (search, {"failures": 0}, "failures = 0"),
        (search, {"threshold": 0}, "threshold = 0"),
        (search, {"preset": "fats"}, "did you mean 'fast'"),
    ],
)
def test_what_cannot_be_done_is_refused(tiny, token_lists, way, arguments, message):
    lengths = arguments.pop("lengths", [4, 8])
    with pytest.raises(UserError, match=message):
        way(tiny, token_lists[:3], lengths, **arguments)


def test_halves_have_a_grid_without_nesting(monkeypatch, tiny):
    monkeypatch.setattr(module, "fit", Oracle([up_to(8)]))
    found = grid(tiny, [[0] * 24], LADDER, scheme=OneStep(arrangement="halves"))
    assert found.capacities(nested=False)[0].tokens == 8
    with pytest.raises(UserError, match="halves"):
        found.capacities()


def test_a_search_does_not_cross_a_change_of_rotary_positions(tiny, token_lists):
    rope = dataclasses.replace(tiny.config.pattern[0].rope, kind="longrope", original_context=6)
    layer = dataclasses.replace(tiny.config.pattern[0], rope=rope)
    changing = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, pattern=(layer,)))
    with pytest.raises(UserError, match="rotary positions change at 6 tokens"):
        search(changing, token_lists[:1], [4, 8])


def test_agreement_is_of_the_same_texts_and_lengths(monkeypatch, tiny):
    full, _, found, _ = tables(monkeypatch, tiny, [up_to(8)])
    for texts, lengths in ((texts_of(2), LADDER), ([[0] * 24], LADDER), (texts_of(1), (2, 3))):
        other = dataclasses.replace(full, texts=tuple(map(np.array, texts)), lengths=lengths, found={})
        with pytest.raises(UserError, match="different texts or lengths"):
            agreement(other, found)


# --- real fits ---

TEXTS = np.random.default_rng(1).integers(61, size=(4, 12)).tolist()
LENGTHS = (4, 8, 12)
BUDGET = 45


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def full(tiny, one_device):
    return grid(tiny, TEXTS, LENGTHS, steps=BUDGET, slots=2, placement=one_device)


@pytest.fixture(scope="module")
def cold(tiny, one_device):
    return search(tiny, TEXTS, LENGTHS, steps=BUDGET, slots=2, placement=one_device)


def test_a_cold_search_makes_the_fits_of_the_grid(full, cold):
    solved = [[full.row(i)[n].accuracy == 1 for n in LENGTHS] for i in range(len(TEXTS))]
    assert 0 < np.mean(solved) < 1
    monotone = [row == sorted(row, reverse=True) for row in solved]
    assert sum(monotone) >= 3
    for i, theirs in enumerate(full.capacities(nested=False)):
        if monotone[i]:
            assert cold.capacities()[i].tokens == theirs.tokens
        for n, result in cold.row(i).items():
            assert result.text_id == full.row(i)[n].text_id
            first, same = result.trials[0].trace[0], full.row(i)[n].trials[0].trace[0]
            np.testing.assert_allclose(first, same, rtol=1e-3)
    compared = agreement(full, cold)
    assert compared.equal >= np.mean(monotone)
    assert compared.token_positions < 1


def test_solutions_are_nested(tiny, full):
    solved = [result for result in full.found.values() if result.accuracy == 1 and len(result.tokens) > 4]
    assert solved
    for result in solved:
        shorter = [dataclasses.replace(result, tokens=result.tokens[:n]) for n in range(1, len(result.tokens))]
        assert {
            decoded.accuracy for decoded in decode(tiny, Results(tuple(shorter), full.scheme, tiny.fingerprint))
        } == {1}
        found = capacity([result], lengths=LENGTHS, nested=True)
        assert found.tokens == len(result.tokens)
        assert found.h_lm == pytest.approx(result.h_lm)


def test_a_killed_search_goes_on(tiny, one_device, cold, tmp_path):
    run, options = tmp_path / "run", {"steps": BUDGET, "slots": 2, "placement": one_device}

    def kill(_):
        if (run / "round-001").exists():
            raise Killed

    with pytest.raises(Killed):
        search(tiny, TEXTS, LENGTHS, run=run, progress=kill, **options)
    half = read_prefix_table(run)
    assert [sorted(half.row(i)) for i in range(len(TEXTS))] == [[4]] * len(TEXTS)
    with pytest.raises(UserError, match=r"holds another run; lengths: \[4, 8, 12\] there, \[4, 8\] here"):
        search(tiny, TEXTS, LENGTHS[:2], run=run, **options)
    with pytest.raises(UserError, match="holds another run; steps"):
        search(tiny, TEXTS, LENGTHS, run=run, steps=BUDGET + 1, placement=one_device)

    first = {path: path.stat().st_mtime_ns for path in (run / "round-000" / "results").iterdir()}
    again = search(tiny, TEXTS, LENGTHS, run=run, **options)
    assert {path: path.stat().st_mtime_ns for path in (run / "round-000" / "results").iterdir()} == first
    for table in (again, read_prefix_table(run)):
        assert set(table.found) == set(cold.found)
        assert [c.tokens for c in table.capacities()] == [c.tokens for c in cold.capacities()]
        assert table.lengths == LENGTHS
        np.testing.assert_array_equal(table.texts, TEXTS)
        for name, result in cold.found.items():
            assert (table.found[name].status, table.found[name].steps) == (result.status, result.steps)


def test_warm_starts_start_there(tiny, one_device, tmp_path):
    found = search(tiny, TEXTS[:2], (6, 8), warm=True, failures=2, steps=1, placement=one_device, run=tmp_path / "run")
    cold = search(tiny, TEXTS[:2], (6, 8), failures=2, steps=1, placement=one_device)
    for i in range(2):
        assert found.row(i)[8].steps == 1
        for leaf in ("e", "m"):
            np.testing.assert_array_equal(found.row(i)[8].vectors[leaf], found.row(i)[6].vectors[leaf])
            assert not np.allclose(cold.row(i)[8].vectors[leaf], cold.row(i)[6].vectors[leaf])
    assert [c.tokens for c in found.capacities()] == [0, 0]


def test_a_folder_of_something_else_is_refused(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty, and no grid, search or growth of capacities"):
        grid(tiny, TEXTS, LENGTHS, run=tmp_path)
    with pytest.raises(UserError, match=r"no grid, search or growth of capacities \(no table.json\)"):
        read_prefix_table(tmp_path)

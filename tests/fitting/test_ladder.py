"""The width of a sweep: few programs, fewer slots at its end and where memory is short; compiled programs are kept."""

import warnings
from collections import Counter

import jax
import numpy as np
import pytest
from options import quick_of

from onestep_jax import OneStep, UserError, fit
from onestep_jax.devices import compile_cache as compilation
from onestep_jax.devices.placement import Pmap
from onestep_jax.fitting import group_results, programs, sweep
from onestep_jax.fitting import slot_ladder as ladder
from onestep_jax.fitting.optimizers import PRESETS, Optimizer
from onestep_jax.fitting.slot_ladder import narrower, rungs, starting
from onestep_jax.fitting.slots import make_problem


@pytest.fixture
def traced(monkeypatch) -> Counter:
    """How often the chunk was traced, by (slots, positions)."""
    found, chunk = Counter(), programs.chunk

    def counted(problem, length, params, state):
        found[state.tokens_GT.shape[0], state.tokens_GT.shape[-1]] += 1
        return chunk(problem, length, params, state)

    monkeypatch.setattr(programs, "chunk", counted)
    return found


@pytest.fixture
def eager(monkeypatch):
    """Compiling counts as free, so that every rung is used."""
    monkeypatch.setattr(ladder, "COMPILING", {"cpu": 0.0})


def test_rungs_halve_and_stay_multiples_of_the_devices():
    assert rungs(32, 1) == [32, 16, 8, 4, 2, 1]
    assert rungs(12, 1) == [12, 6, 3, 2, 1]
    assert rungs(20, 8) == [24, 16, 8]
    assert rungs(1, 8) == [8]


def test_a_sweep_begins_with_no_idle_slot_where_it_can():
    assert [starting(rungs(16, 1), groups) for groups in (1, 2, 3, 12, 16, 100)] == [1, 2, 2, 8, 16, 16]
    assert starting(rungs(16, 8), 3) == 8


def test_narrowing_has_to_pay():
    steps = {"flops": 1e9, "steps": 300.0}
    paying = {"flops": 1e10, "steps": 300.0}
    wide = rungs(16, 1)
    assert narrower(wide, 16, 9, **paying) is None
    assert narrower(wide, 16, 8, **paying) == 8
    assert narrower(wide, 16, 3, **paying) == 4
    assert narrower(wide, 1, 1, **paying) is None
    assert narrower(wide, 2, 1, **steps) is None
    assert narrower(wide, 16, 8, **steps) == 8
    assert narrower(wide, 16, 8, **paying, platform="tpu") is None
    assert narrower(rungs(5, 1), 5, 3, **paying) == 3


def test_one_program_a_length_and_width(tiny, token_lists, one_device, traced, eager):
    texts = [*token_lists, *(tokens[:4] for tokens in token_lists)]
    run = fit(tiny, texts, slots=8, steps=2000, chunk=3, placement=one_device)
    assert set(traced.values()) == {1}
    assert len({width for width, positions in traced if positions == 8}) > 1  # fewer slots at the end
    assert {width for width, _ in traced} <= {8, 4, 2, 1}
    again = fit(tiny, texts, slots=8, steps=2000, chunk=3, placement=one_device)
    assert set(traced.values()) == {1}
    assert [text.steps for text in again] == [text.steps for text in run]


@pytest.mark.long
def test_narrowing_changes_no_result(tiny, token_lists, one_device, eager, monkeypatch):
    options = {"slots": 8, "steps": 2000, "scheme": OneStep(), "placement": one_device, "record": True}
    narrowed = fit(tiny, token_lists, **options)
    monkeypatch.setattr(ladder, "COMPILING", {"cpu": float("inf")})
    plain = fit(tiny, token_lists, **options)
    assert [text.status for text in narrowed] == [text.status for text in plain]
    for text, other in zip(narrowed, plain, strict=True):
        (trial,), (whole,) = text.trials, other.trials
        assert trial.trace[-1, 0] == trial.steps
        assert np.all(np.diff(trial.trace[:, 0]) > 0)
        assert len(trial.path["e"]) == len(trial.trace)
        shared = min(len(trial.trace), len(whole.trace), 5)
        np.testing.assert_allclose(trial.trace[:shared], whole.trace[:shared], rtol=1e-4)


def test_a_chunk_under_way_at_a_save_is_in_the_trace(tiny, token_lists, one_device, tmp_path):
    options = {"slots": 4, "steps": 2000, "chunk": 7, "placement": one_device}
    saved = fit(tiny, token_lists, run=tmp_path / "run", save_every=0.0, **options)
    plain = fit(tiny, token_lists, **options)
    for text, other in zip(saved, plain, strict=True):
        np.testing.assert_array_equal(text.trials[0].trace, other.trials[0].trace)


class Small(Pmap):
    """Devices whose memory holds `most` slots each."""

    def __init__(self, most, late=0):
        super().__init__(jax.local_devices()[:1])
        self.most, self.late, self.calls = most, late, 0

    def map(self, function, *static, donate=None):
        mapped = super().map(function, *static, donate=donate)

        def call(params, state, *arrays):
            self.calls += 1
            if state.status.shape[1] > self.most and self.calls > self.late:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
            return mapped(params, state, *arrays)

        return call


@pytest.mark.parametrize("late", quick_of([20, 0]))
def test_slots_are_halved_where_memory_is_short(tiny, token_lists, one_device, late):
    texts = [*token_lists, *(tokens[:4] for tokens in token_lists)]
    with pytest.warns(UserWarning, match="continuing with") as said:
        run = fit(tiny, texts, slots=8, steps=2000, placement=Small(3, late), record=True)
    assert [str(one.message).split()[6] for one in said] == ["8", "4"]
    assert [text.index for text in run] == list(range(24))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = fit(tiny, texts, slots=2, steps=2000, placement=one_device)
    assert [text.status for text in run] == [text.status for text in plain]
    for text in run:
        (trial,) = text.trials
        assert trial.trace[-1, 0] == trial.steps
        assert len(trial.path["e"]) == len(trial.trace)


def test_no_text_is_lost_where_nats_find_no_memory(tiny, token_lists, one_device, monkeypatch):
    """They are counted while the slots fill the devices."""
    calls, count = [], group_results.text_nats

    def counted(*args, **options):
        calls.append(None)
        if len(calls) in (3, 6):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return count(*args, **options)

    monkeypatch.setattr(sweep, "AHEAD", 1)
    monkeypatch.setattr(group_results, "text_nats", counted)
    with pytest.warns(UserWarning, match="continuing with"):
        run = fit(tiny, token_lists, slots=8, steps=20, placement=one_device)
    assert len(calls) > 6
    assert [text.index for text in run] == list(range(len(token_lists)))


def test_memory_for_no_slot_is_said(tiny, token_lists):
    with (
        pytest.warns(UserWarning, match="continuing with 1"),
        pytest.raises(UserError, match="does not hold 1 slots of 8"),
    ):
        fit(tiny, token_lists, slots=2, placement=Small(0))


def test_another_error_of_the_devices_is_not_taken_for_it(tiny, token_lists, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(programs, "chunk", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        fit(tiny, token_lists, slots=2)


class Changeable(OneStep):
    """A scheme that cannot be hashed, as a dataclass that can be changed."""

    def __hash__(self):
        raise TypeError("unhashable type: 'Changeable'")


def test_a_scheme_that_programs_cannot_be_kept_by_is_refused(tiny, token_lists):
    with pytest.raises(UserError, match="make it a frozen dataclass"):
        fit(tiny, token_lists, scheme=Changeable())


def test_programs_do_not_keep_start_vectors(tiny, token_lists):
    start = {name: np.zeros((1, 32), np.float32) for name in "em"}
    given = OneStep(start=start)
    problem = make_problem(tiny, given, PRESETS["fast"], PRESETS["fast"].optimizer.build())
    assert problem.scheme == given
    assert problem.scheme.start is None
    assert given.start is start


def test_equal_optimizers_are_one():
    one = Optimizer("adamw", {"learning_rate": 0.01, "b1": 0.9}).build()
    assert Optimizer("adamw", {"b1": 0.9, "learning_rate": 0.01}).build() is one
    assert Optimizer("adamw", {"b1": 0.8, "learning_rate": 0.01}).build() is not one
    assert PRESETS["fast"].optimizer.build() is not PRESETS["paper"].optimizer.build()


def test_the_cache_on_disk_is_on_unless_told_otherwise(monkeypatch, tmp_path):
    set_to = {}
    monkeypatch.setattr(compilation.jax.config, "update", set_to.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.use_cache()
    assert set_to == {}  # the tests have a folder of their own
    told = {"jax_compilation_cache_max_size": -1, "jax_persistent_cache_min_compile_time_secs": 1.0}
    monkeypatch.setattr(compilation, "_setting", told.get)
    compilation.use_cache()
    assert set_to["jax_compilation_cache_dir"] == str(tmp_path / "onestep_jax" / "xla")
    assert set_to["jax_compilation_cache_max_size"] == compilation.LIMIT
    assert set_to["jax_persistent_cache_min_compile_time_secs"] == compilation.WORTH_KEEPING
    set_to.clear()
    told |= {"jax_compilation_cache_max_size": 10**9, "jax_persistent_cache_min_compile_time_secs": 0.5}
    compilation.use_cache()
    assert list(set_to) == ["jax_compilation_cache_dir"]
    set_to.clear()
    monkeypatch.setenv(compilation.VARIABLE, "off")
    compilation.use_cache()
    assert set_to == {}
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "elsewhere"))
    compilation.use_cache()
    assert set_to["jax_compilation_cache_dir"] == str(tmp_path / "elsewhere")

"""The parts of a sweep, each alone: queue, seeds, ladder, meter, saved work; and a plan that is resolved, then run."""

import inspect
from collections.abc import Sequence

import numpy as np
import pytest

from onestep_jax import OneStep, UserError, fit
from onestep_jax.fitting import plan as planning
from onestep_jax.fitting import resolve, run_plan, slot_ladder
from onestep_jax.fitting.progress import Meter
from onestep_jax.fitting.slot_ladder import SlotLadder
from onestep_jax.fitting.snapshot import SavedWork
from onestep_jax.fitting.tasks import Outcome, Task
from onestep_jax.fitting.trials import Trials
from onestep_jax.fitting.work_queue import Group, WorkBlock, WorkQueue

IDS = [f"{i:016x}" for i in range(5)]
TOKENS = [np.full(3, i, np.int32) for i in range(5)]


def task_of(group: Group, seed: int = 0) -> Task:
    return Task(texts=group, seed=seed, budget=100, tokens=[], ids=np.zeros((1, 4), np.uint32))


def outcome_of(task: Task, status: str) -> Outcome:
    nothing = np.zeros(0)
    return Outcome(
        task=task,
        status=status,
        steps=7,
        best_step=6,
        loss=1.0,
        accuracy_G=nothing,
        predicted_GT=nothing,
        leaves={},
        first_hit_GT=nothing,
        margin_G=nothing,
    )


# --- queue ---


def test_a_queue_claims_blocks_when_nothing_waits():
    claimed = []

    def claim(block: WorkBlock) -> Sequence[Task]:
        claimed.append(block.number)
        return [] if block.number == 1 else [task_of(group) for group in block.groups]

    blocks = [WorkBlock(number=i, groups=((2 * i,), (2 * i + 1,))) for i in range(3)]
    queue = WorkQueue(blocks, claim)
    assert queue.claim_until_ready()
    assert claimed == [0]
    first = queue.take()
    assert first is not None
    queue.give_back(first)
    queue.add(task_of((9,)))
    assert [task.texts for task in queue.upcoming(2)] == [(0,), (1,)]
    assert [task.texts for task in iter(queue.take, None)] == [(0,), (1,), (9,), (4,), (5,)]
    assert claimed == [0, 1, 2]
    assert queue.exhausted


# --- seeds ---


def test_a_group_is_tried_until_solved_or_out_of_seeds():
    trials = Trials(TOKENS, IDS, OneStep(), (), first_seed=3, seeds=2, steps=100)
    for group, status, ended in (((0,), "exhausted", False), ((0,), "failed", True), ((1,), "solved", True)):
        trials.add(outcome_of(trials.next_task(group), status))
        assert trials.ended(group) == ended
    assert [outcome.task.seed for outcome in trials.pop((0,))] == [3, 4]
    assert [outcome.task.texts for outcome in trials.outcomes] == [(1,)]


def test_seeds_without_a_number_share_the_budget():
    trials = Trials(TOKENS, IDS, OneStep(), (), first_seed=3, seeds=None, steps=16)
    for seed, budget, ended in ((3, 16, False), (4, 9, False), (5, 2, True)):
        task = trials.next_task((0,))
        assert (task.seed, task.budget) == (seed, budget)
        trials.add(outcome_of(task, "exhausted"))  # of 7 evaluations
        assert trials.ended((0,)) == ended
    assert trials.budget((1,)) == 16
    trials.add(outcome_of(trials.next_task((1,)), "failed"))
    assert trials.ended((1,))


def test_a_group_starts_at_the_vectors_of_its_rows():
    start = {name: np.arange(10, dtype=np.float32).reshape(5, 2) for name in "em"}
    scheme = OneStep(share="m", group=2, start=start)
    task = Trials(TOKENS, IDS, scheme, (), first_seed=6, seeds=1, steps=9).task((4,), seed=6)
    assert task.start is not None
    np.testing.assert_array_equal(task.start["e"], [[8, 9]])
    np.testing.assert_array_equal(task.start["m"], [8, 9])
    assert task.ids.tolist() == [[0, 4, 0, 6], [0, 0, 0, 0]]


def test_later_seeds_do_not_start_at_the_given_vectors():
    start = {name: np.zeros((5, 2), np.float32) for name in "em"}
    drawn = {name: np.ones((1, 2), np.float32) for name in "em"}
    trials = Trials(TOKENS, IDS, OneStep(start=start), (), 0, 2, 9, lambda ids: drawn if ids[0, 3] == 1 else {})
    first = trials.next_task((2,))
    trials.add(outcome_of(first, "exhausted"))
    second = trials.next_task((2,))
    assert first.start is not None
    np.testing.assert_array_equal(first.start["e"], [[0, 0]])
    assert second.start is drawn


# --- ladder ---


def test_a_ladder_steps_down_by_what_ended_groups_took(monkeypatch):
    monkeypatch.setattr(slot_ladder, "COMPILING", {"cpu": 100.0})
    ladder = SlotLadder([8, 4, 2, 1], "cpu")
    ladder.begin(groups=9, flops=1.0)
    assert ladder.width == 8
    assert not ladder.step_down(running=4)  # nothing is known yet
    ladder.note_spent(20)
    assert not ladder.step_down(running=4)  # 4 idle slots · 20 steps · 1 operation
    ladder.note_spent(40)
    assert ladder.step_down(running=4)
    assert ladder.width == 4
    assert not ladder.step_down(running=0)


def test_a_rung_without_memory_is_left_for_good():
    ladder = SlotLadder([8, 4], "cpu")
    assert ladder.leave()
    ladder.begin(groups=9, flops=1.0)
    assert ladder.width == 4
    assert not ladder.leave()


# --- meter ---


def test_texts_of_earlier_sessions_do_not_count_towards_the_speed():
    seen = []
    meter = Meter(5, 2, seen.append, {"a": 1.0})
    meter.report(running=1, steps=10)
    meter.note({"a": 1.0, "b": 0.5})
    meter.report(running=1, steps=10)
    assert [(one.finished, one.solved, one.running, one.waiting) for one in seen] == [(1, 1, 1, 2), (2, 1, 1, 1)]
    assert (seen[0].seconds_left, seen[1].seconds_left is None) == (None, False)
    assert seen[1].steps_per_second > 0


# --- saved work ---


def saved_task(group: Group, seed: int, *steps: int) -> dict:
    return {"texts": list(group), "seed": seed, "trace": [[step, 1.0, 0.5] for step in steps], "seconds": 1.0}


@pytest.mark.parametrize(
    ("older", "newer", "wanted"),
    [
        ({"tasks": [saved_task((0,), 0, 10, 20)]}, {"tasks": [saved_task((0,), 0, 10)]}, "older"),
        ({"tasks": [saved_task((0,), 0, 10)]}, {"tasks": [saved_task((0,), 0, 10)]}, "newer"),
        ({"tasks": [saved_task((0,), 0, 10)]}, {"tasks": [saved_task((0,), 1)]}, "newer"),
        ({"outcomes": [saved_task((0,), 0, 10)]}, {"tasks": [saved_task((0,), 0, 10, 20)]}, "older"),
        ({"outcomes": [saved_task((0,), 0, 10)]}, {"tasks": [saved_task((0,), 1, 10)]}, "newer"),
    ],
)
def test_a_group_is_resumed_from_the_state_that_has_it_furthest(monkeypatch, older, newer, wanted):
    asked = []
    monkeypatch.setattr("onestep_jax.fitting.snapshot.unpack", lambda arrays, *_: asked.append(arrays) or ([], []))
    saved = SavedWork([("newer", newer), ("older", older)], load=lambda name: name)
    saved.of([(0,), (1,)], None, None)
    assert asked == [wanted]


# --- plan ---


def test_fit_and_resolve_take_the_same_options():
    of_fit, of_resolve = (
        [option for option in inspect.signature(function).parameters.values() if option.kind is option.KEYWORD_ONLY]
        for function in (fit, resolve)
    )
    assert of_fit[-1].name == "progress"
    assert of_fit[:-1] == of_resolve


@pytest.mark.long
def test_room_pads_further_and_changes_no_result(tiny, token_lists, one_device):
    texts, options = [ids[:6] for ids in token_lists[:3]], {"steps": 30, "slots": 1, "placement": one_device}
    assert (resolve(tiny, texts, room=8, **options).room, resolve(tiny, texts, **options).room) == (8, 0)
    assert resolve(tiny, texts, room=8, **options).identity == resolve(tiny, texts, **options).identity
    for alone, roomy in zip(fit(tiny, texts, **options), fit(tiny, texts, room=8, **options), strict=True):
        np.testing.assert_allclose(alone.trials[0].trace[0], roomy.trials[0].trace[0], rtol=1e-3)
        np.testing.assert_allclose(alone.nats, roomy.nats, rtol=1e-4)
        assert len(roomy.predicted) == 6
    # A model of so many positions has no more, whatever the room.
    assert len(fit(tiny, texts[:1], room=1000, **options)) == 1
    with pytest.raises(UserError, match="room = 0: expected at least 1"):
        fit(tiny, texts, room=0, **options)


def test_a_plan_holds_all_that_was_settled(tiny, token_lists, one_device, tmp_path):
    options = {"steps": 30, "copies": 2, "slots": 3, "placement": one_device, "seeds": 2}
    plan = resolve(tiny, token_lists[:2], length=5, run=tmp_path / "run", **options)
    assert [ids.tolist() for ids in plan.tokens[:: plan.copies]] == [ids[:5] for ids in token_lists[:2]]
    assert plan.groups == [(0,), (1,), (2,), (3,)]
    assert plan.ladder == (3, 2, 1)
    assert (plan.identity["steps"], plan.settings["slots"]) == (30, 3)
    assert not (tmp_path / "run").exists()


def test_a_plan_is_run_without_preparing_again(tiny, token_lists, one_device, monkeypatch):
    options = {"steps": 30, "slots": 3, "placement": one_device}
    plan = resolve(tiny, token_lists[:4], **options)
    expected = fit(tiny, token_lists[:4], **options)
    for name in ("settle_rows", "size_fit"):
        monkeypatch.setattr(planning, name, None)
    found = run_plan(plan)
    for text, other in zip(found, expected, strict=True):
        assert (text.text_id, text.steps) == (other.text_id, other.steps)
        np.testing.assert_array_equal(text.vectors["e"], other.vectors["e"])


def test_start_vectors_are_a_row_a_copy(tiny, token_lists):
    scheme = OneStep(start={name: np.zeros((2, 32), np.float32) for name in "em"})
    with pytest.raises(UserError, match=r"shape \(2, 32\); expected \(4, 32\)"):
        resolve(tiny, token_lists[:2], scheme=scheme, copies=2)


# --- the sweep as a whole ---


@pytest.mark.parametrize("lengths", [(8, 8), (8, 4)])
def test_the_last_groups_are_tried_again_after_a_save(tiny, token_lists, one_device, tmp_path, lengths):
    """All groups in flight come to the end of a seed, and the state is saved before their next seeds are offered."""
    texts = [tokens[:length] for tokens, length in zip(token_lists, lengths, strict=False)]
    found = fit(tiny, texts, run=tmp_path / "run", save_every=0.0, steps=2, seeds=3, placement=one_device)
    assert [text.index for text in found] == [0, 1]
    assert [len(text.trials) for text in found] == [3, 3]

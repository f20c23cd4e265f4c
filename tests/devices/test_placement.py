"""One pure step under every placement: the same numbers, and no communication that the placement does not need."""

import dataclasses
import functools
import itertools
import math
import os
import re
import signal
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from options import quick_of

from onestep_jax import Interrupted, Model, OneStep, Relational, UserError, fit
from onestep_jax.devices.placement import Mesh, Placement, Pmap, Together, Wanted
from onestep_jax.fitting import programs, sizing, slots
from onestep_jax.fitting.optimizers import PRESETS
from onestep_jax.fitting.sizing import choose_placement
from onestep_jax.fitting.slots import FitProblem
from onestep_jax.model import fused_attention as fused
from onestep_jax.store.status import read_status

pytestmark = pytest.mark.eight_devices

COLLECTIVES = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
PLACEMENTS = {
    "pmap": Pmap,
    "8x1": Mesh,
    "4x2": lambda: Mesh(model_axis=2),
    "1x8": lambda: Mesh(model_axis=8),
}


@pytest.fixture(scope="module")
def alone(tiny: Model, token_lists: Any, one_device: Pmap):
    return fit(tiny, token_lists, preset="paper", steps=50, slots=12, placement=one_device)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("name", quick_of(PLACEMENTS, 0, 2))
def test_vectors_after_fifty_steps_are_the_same(tiny, token_lists, alone, name):
    run = fit(tiny, token_lists, preset="paper", steps=50, slots=16, placement=PLACEMENTS[name]())
    assert run.steps.tolist() == alone.steps.tolist()
    for leaf in ("e", "m"):
        assert distance(run.vectors[leaf], alone.vectors[leaf]) <= 1e-3
    np.testing.assert_allclose([text.loss for text in run], [text.loss for text in alone], rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_same_texts_are_solved(tiny, token_lists, name):
    run = fit(tiny, token_lists, steps=2000, slots=16, placement=PLACEMENTS[name]())
    assert run.status == ["solved"] * len(token_lists)


@pytest.mark.parametrize("name", quick_of(PLACEMENTS, 0, 2))
def test_a_program_is_made_once(tiny, token_lists, monkeypatch, name):
    """Though what it is called with comes now from the host, now from another program."""
    traced: list[str] = []

    def counting(function: Any) -> Any:
        def counted(*given: Any) -> Any:
            traced.append(function.__name__)
            return function(*given)

        return counted

    for function in (programs.chunk, programs.harvest, programs.refill):
        monkeypatch.setattr(programs, function.__name__, counting(function))
    fit(tiny, token_lists, preset="paper", steps=50, slots=8, placement=PLACEMENTS[name]())
    assert sorted(traced) == ["chunk", "harvest", "refill"]


def stop_at(points: int):
    """A progress callback that asks the fit to stop, as a batch system does, at so many reports."""
    seen = itertools.count(1)

    def report(_: object) -> None:
        if next(seen) == points:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.long
@pytest.mark.parametrize("name", ["8x1", "4x2", "1 device"])
def test_a_run_goes_on_elsewhere_with_the_same_vectors(tiny, token_lists, one_device, alone, tmp_path, name):
    """Begun on eight devices, stopped in the middle, gone on with under another placement and other slots."""
    how = {"preset": "paper", "steps": 50, "run": tmp_path / "run"}
    with pytest.raises(Interrupted):
        fit(tiny, token_lists, slots=16, chunk=5, progress=stop_at(4), **how)
    assert read_status(tmp_path / "run").in_flight[0].steps in range(5, 50)
    other = PLACEMENTS[name]() if name in PLACEMENTS else one_device
    run = fit(tiny, token_lists, slots=12 if other is one_device else 8, placement=other, **how)
    assert run.steps.tolist() == alone.steps.tolist()
    for leaf in ("e", "m"):
        assert distance(run.vectors[leaf], alone.vectors[leaf]) <= 1e-3


def problem_of(model: Model, **changes: Any) -> FitProblem:
    return FitProblem(model.network, OneStep(**changes), PRESETS["paper"].optimizer.build(), 1.0)


def filled(placement: Placement, model: Model, problem: FitProblem, token_lists: Any) -> tuple[Any, Any]:
    """What is frozen and the state on the devices, eight texts from their start vectors."""
    group = problem.scheme.group
    lead = (placement.rows, 8 // group // placement.rows)
    tokens = np.array(token_lists[:8], np.int32).reshape(*lead, group, 8)
    ids = np.arange(32, dtype=np.uint32).reshape(*lead, group, 4)
    offer = slots.Offer(
        np.ones(lead, bool), np.full(lead, 100, np.int32), tokens, np.full((*lead, group), 8, np.int32), ids
    )
    params = slots.Frozen(placement.place(model.params, model.config.kv_heads))
    state, taken = placement.map(programs.refill, problem)(
        params, placement.spread(slots.idle(problem, 8, lead)), placement.spread(offer)
    )
    assert placement.fetch(taken).all()
    return params, state


def gradients(placement: Placement, model: Model, problem: FitProblem, token_lists: Any) -> dict[str, np.ndarray]:
    """Gradients of the first step, as AdamW's first moment holds them, one row a group."""
    params, state = filled(placement, model, problem, token_lists)
    state, _ = placement.map(programs.chunk, problem, 1, donate=1)(params, state)
    moments = placement.fetch(state).opt_state[0].mu
    return {name: leaf.reshape(-1, *leaf.shape[2:]) for name, leaf in moments.items()}


@pytest.mark.parametrize("name", quick_of(PLACEMENTS, 0, 2))
def test_first_gradients_are_the_same(tiny, token_lists, one_device, name):
    problem = problem_of(tiny)
    expected = gradients(one_device, tiny, problem, token_lists)
    found = gradients(PLACEMENTS[name](), tiny, problem, token_lists)
    for leaf in ("e", "m"):
        assert np.linalg.norm(expected[leaf]) > 0
        assert distance(found[leaf], expected[leaf]) <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_gradients_of_a_group_spread_over_devices_are_the_same(tiny, token_lists, one_device, rows):
    problem = problem_of(tiny, share="m", group=8)
    expected = gradients(one_device, tiny, problem, token_lists)
    together = Together(8, jax.local_devices(), 8 // rows)
    found = gradients(together, tiny, problem, token_lists)
    assert found["m"].shape == (1, 32)
    for leaf in ("e", "m"):
        assert distance(found[leaf], expected[leaf]) <= 1e-5


@pytest.mark.long
def test_a_group_spread_over_devices_walks_its_micro_batches(tiny, token_lists, one_device, monkeypatch):
    """Fewer texts at a time than each device has of the group."""
    problem = problem_of(tiny, share="m", group=8)
    expected = gradients(one_device, tiny, problem, token_lists)
    monkeypatch.setattr("onestep_jax.prototokens.objective.TEXTS_AT_A_TIME", 2)
    found = gradients(Together(8, jax.local_devices()[:2]), tiny, problem_of(tiny, share="m", group=8), token_lists)
    for leaf in ("e", "m"):
        assert distance(found[leaf], expected[leaf]) <= 1e-5


# Weights whole, without a mesh and on one; split over two devices, and over more than there are key heads; the texts of
# a group spread over rows of two devices, and on one row of eight.
KERNEL_PLACEMENTS = {
    "pmap": (Pmap, {}),
    "8x1": (Mesh, {}),
    "4x2": (lambda: Mesh(model_axis=2), {}),
    "1x8": (lambda: Mesh(model_axis=8), {}),
    "shared": (lambda: Together(8, jax.local_devices(), 2), {"share": "m", "group": 8}),
    "shared by one row": (lambda: Together(8, jax.local_devices(), 8), {"share": "m", "group": 8}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", KERNEL_PLACEMENTS)
def test_a_fused_kernel_gives_the_same_gradients(tiny, token_lists, one_device, monkeypatch, name):
    make, shared = KERNEL_PLACEMENTS[name]
    expected = gradients(one_device, tiny, problem_of(tiny, **shared), token_lists)
    monkeypatch.setitem(fused.KERNELS, "splash", fused.Kernel("cpu", functools.partial(fused.splash, interpret=True)))
    model = dataclasses.replace(tiny, attention="splash")
    found = gradients(make(), model, problem_of(model, **shared), token_lists)
    for leaf in ("e", "m"):
        assert distance(found[leaf], expected[leaf]) <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize(("kernel", "platform"), [("splash", "tpu"), ("cudnn", "cuda")])
@pytest.mark.parametrize("name", [name for name in KERNEL_PLACEMENTS if name != "pmap"])
def test_a_program_for_an_accelerator_may_have_the_kernel(tiny, token_lists, monkeypatch, name, kernel, platform):
    """What XLA would have to split is an error when it is lowered for such a device, which `pmap` does not do here."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91200)
    make, shared = KERNEL_PLACEMENTS[name]
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), tiny.params)
    placement, model = make(), dataclasses.replace(tiny, params=half)
    params, state = filled(placement, model, problem_of(model, **shared), token_lists)
    problem = problem_of(dataclasses.replace(model, attention=kernel), **shared)
    with placement.context():
        traced = placement.program(Wanted(programs.chunk, (problem, 3), 1, 1)).trace(params, state)
        program = traced.lower(lowering_platforms=(platform,)).as_text()
    names = {"tpu": r'kernel_name = "splash_mha_([a-z]+)_', "cuda": r"custom_call @__cudnn\$(\w+)\("}[platform]
    parts = {"tpu": {"fwd", "dq", "dkv"}, "cuda": {"fmhaSoftmax", "fmhaSoftmaxBackward"}}[platform]
    assert set(re.findall(names, program)) == parts
    # Four query and two key heads are split over two devices; over eight, or none, they are not.
    calls = "\n".join(line for line in program.splitlines() if re.search(r"@(tpu_custom_call|__cudnn)", line))
    heads = {"tpu": r"[<x](\d+)x128x8xbf16>", "cuda": r"x8x(\d+)x8xbf16>"}[platform]
    assert set(re.findall(heads, calls)) == ({"2", "1"} if name in ("4x2", "shared") else {"4", "2"})


def compiled_chunk(placement: Placement, model: Model, problem: FitProblem, token_lists: Any) -> str:
    params, state = filled(placement, model, problem, token_lists)
    return placement.lower(programs.chunk, params, state, static=(problem, 3), donate=1).compile().as_text()


def collectives(program: str) -> list[tuple[str, list[int]]]:
    """(kind, sizes of the result's axes but those of size one, in order of size) of every collective of a program."""
    found = []
    for shape, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", program):
        for axes in re.findall(r"\w\[([\d,]*)\]", shape):
            found.append((kind, sorted(int(n) for n in axes.split(",") if n not in ("", "1"))))
    return found


@pytest.mark.parametrize("name", ["pmap", "8x1"])
def test_independent_texts_need_no_communication(tiny, token_lists, name):
    assert collectives(compiled_chunk(PLACEMENTS[name](), tiny, problem_of(tiny), token_lists)) == []


@pytest.mark.parametrize(("name", "tied"), [("4x2", False), ("1x8", False), ("4x2", True)])
def test_no_weight_is_gathered(tiny, token_lists, name, tied):
    model = tiny
    if tied:
        params = {name: leaf for name, leaf in tiny.params.items() if name != "head"}
        model = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, tied=True), params=params)
    found = collectives(compiled_chunk(PLACEMENTS[name](), model, problem_of(model), token_lists))
    assert any(kind == "all-reduce" for kind, _ in found)
    weights = [sorted(leaf.shape) for leaf in jax.tree.leaves(model.params)]
    assert [one for one in found if one[0] != "all-reduce" and one[1] in weights] == []


def test_the_check_sees_a_gathered_weight(tiny):
    """Else the test above could not fail."""
    placement = Mesh(model_axis=8)
    kernel = placement.place(tiny.params, tiny.config.kv_heads)["block_0"]["mlp"]["up"]["kernel"]
    gathered = jax.jit(lambda x: x, out_shardings=placement.sharding(())).lower(kernel).compile().as_text()
    assert collectives(gathered) == [("all-gather", sorted(kernel.shape))]


def test_shared_gradients_are_summed_once_over_the_devices(tiny, token_lists):
    problem = problem_of(tiny, share="m", group=8)
    found = collectives(compiled_chunk(Together(8), tiny, problem, token_lists))
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert max(math.prod(axes) for _, axes in found) <= 32


@pytest.mark.parametrize(("model_axis", "split"), [(2, "q k v o gate up down"), (4, "gate up down")])
def test_a_device_holds_its_part_of_the_weights_only(tiny, model_axis, split):
    """Two key heads go to two devices and to no more; a vocabulary of 61 is not split."""
    whole = flatten_dict(tiny.params)
    parts = flatten_dict(Mesh(model_axis=model_axis).place(tiny.params, tiny.network.config.kv_heads))
    for path, weight in whole.items():
        shares = model_axis if path[-1] == "kernel" and path[-2] in split.split() else 1
        assert parts[path].addressable_shards[0].data.size == weight.size // shares, path


SHARING = OneStep(share="m", group=24)


@pytest.mark.parametrize(
    ("asked", "kind", "shape"),
    [
        ({}, Pmap, (8, 1)),
        ({"weights": 601}, Mesh, (4, 2)),
        ({"weights": 4800}, Mesh, (1, 8)),
        ({"weights": 601, "how": "pmap"}, Pmap, (8, 1)),
        ({"how": "mesh"}, Mesh, (8, 1)),
        ({"how": "mesh", "model_axis": 4}, Mesh, (2, 4)),
        ({"model_axis": 4}, Mesh, (2, 4)),
        ({"scheme": SHARING, "texts": 24}, Together, (8, 1)),
        ({"scheme": SHARING, "texts": 24, "weights": 601}, Together, (4, 2)),
        ({"scheme": SHARING, "texts": 24, "how": "pmap"}, Pmap, (8, 1)),
        ({"scheme": SHARING, "texts": 24 * 8}, Pmap, (8, 1)),
        ({"scheme": OneStep(share="m", group=6), "texts": 6}, Together, (6, 1)),
        ({"scheme": OneStep(share="m", group=7), "texts": 49}, Pmap, (8, 1)),
    ],
)
def test_placement_follows_weights_and_groups(monkeypatch, asked, kind, shape):
    monkeypatch.setattr(sizing, "memory_of", lambda device: 1000)
    asked = {"how": "auto", "weights": 600, "scheme": OneStep(), "texts": 8} | asked
    chosen = choose_placement(**asked)
    assert type(chosen) is kind
    assert tuple(chosen.mesh.shape.values()) == shape


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"how": "pnap"}, r"unknown placement 'pnap'.*did you mean 'pmap'"),
        ({"how": "pmap", "model_axis": 2}, "model axis = 2: pmap keeps all weights on each device; ask for .*mesh"),
        ({"how": "mesh", "model_axis": 3}, "model axis = 3: expected a divisor of the 8 devices"),
        ({"weights": 4801 * 2**30}, r"4801.0 GiB of weights do not fit into 8 devices of 1000.0 GiB each"),
    ],
)
def test_impossible_placements_are_refused(monkeypatch, asked, said):
    monkeypatch.setattr(sizing, "memory_of", lambda device: 1000 * 2**30)
    with pytest.raises(UserError, match=said):
        choose_placement(**{"how": "auto", "weights": 600, "scheme": OneStep(), "texts": 8} | asked)


@pytest.mark.long
def test_a_group_is_solved_over_all_devices(tiny, token_lists):
    texts = [tokens[:3] for tokens in token_lists[:8]]
    scheme = OneStep(share="m", group=8)
    alone = fit(tiny, texts, steps=2000, scheme=scheme, placement=Pmap(jax.local_devices()[:1]))
    spread = fit(tiny, texts, steps=2000, scheme=scheme, placement="mesh")
    assert alone.solved == spread.solved == 8


@pytest.mark.long
@pytest.mark.parametrize("name", ["mesh", "together"])
def test_losses_beside_the_reconstruction_are_those_of_one_device(tiny, token_lists, one_device, name):
    """Relations hold between texts that lie on different devices."""
    teacher = np.random.default_rng(0).normal(size=(8, 5))
    placement = Mesh(model_axis=2) if name == "mesh" else Together(8, jax.local_devices(), 2)
    group = 2 if name == "mesh" else 8
    how = {"scheme": OneStep(share="m", group=group), "steps": 12, "preset": "paper"}
    how |= {"losses": {"relational": Relational(20.0)}, "context": {"teacher": teacher}}
    found = fit(tiny, token_lists[:8], placement=placement, slots=4, **how)
    expected = fit(tiny, token_lists[:8], placement=one_device, slots=4, **how)
    for leaf in ("e", "m"):
        assert distance(found.vectors[leaf], expected.vectors[leaf]) <= 1e-4
    alone = fit(tiny, token_lists[:8], placement=one_device, slots=4, **{**how, "losses": None, "context": None})
    assert distance(alone.vectors["e"], expected.vectors["e"]) > 1e-3

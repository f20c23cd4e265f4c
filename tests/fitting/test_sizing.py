"""Slots and rematerialisation follow from what a device holds; rematerialisation changes no number."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onestep_jax import PRESETS, Model, OneStep, Preset, UserError, fit
from onestep_jax.devices.placement import Pmap
from onestep_jax.fitting import memory as footprint
from onestep_jax.fitting import sizing
from onestep_jax.fitting.memory import Memory
from onestep_jax.fitting.sizing import Sizing, size_fit
from onestep_jax.fitting.sizing import seconds_of_block as original_seconds
from onestep_jax.fitting.slots import FitProblem
from onestep_jax.model.decoder import Network
from onestep_jax.prototokens.schemes import Scheme

LENGTH = 64
TEXTS = [np.zeros(LENGTH, np.int32), np.zeros(8, np.int32)]
FAST = PRESETS["fast"]
WEIGHTS, KEPT, AGAIN = 1000, 100, 20  # bytes of the weights, and of a slot with its activations and without
BUSY = 32  # texts at a time beyond which more take proportionally longer


@pytest.fixture(autouse=True)
def account(monkeypatch):
    """Memory as counted above, in the place of XLA's account of compiled steps."""

    def memory(
        network: Network, _dtype: Any, *, slots: int, length: int, preset: Preset, scheme: Scheme, **_: Any
    ) -> Memory:
        assert (length, preset, scheme) == (LENGTH, FAST, OneStep())
        return Memory(WEIGHTS, 0, slots * (AGAIN if network.remat else KEPT))

    def seconds(network: Network, _dtype: Any, positions: int, texts: int, _device: Any) -> float:
        assert (network.config.layers, positions) == (1, LENGTH)
        return max(BUSY, texts) + 0.02 * texts

    monkeypatch.setattr(footprint, "fit_memory", memory)
    monkeypatch.setattr(sizing, "seconds_of_block", seconds)


def devices_of(memory: float, count: int = 1) -> Any:
    """Accelerators, of which a fit may fill so much."""
    found = {"bytes_limit": memory / sizing.MEMORY_SHARE}
    devices = [SimpleNamespace(platform="gpu", memory_stats=lambda: found)] * count
    return SimpleNamespace(devices=devices, rows=count, least=int, greatest=int)


def size(model: Model, placement: Any, **given: Any) -> Sizing:
    return size_fit(model, TEXTS, OneStep(), placement, FAST, **given)


def test_slots_fill_the_memory_in_powers_of_two(tiny):
    assert size(tiny, devices_of(WEIGHTS + 7.5 * KEPT)) == (4, False)
    assert size(tiny, devices_of(WEIGHTS + 8.5 * KEPT)) == (8, False)
    assert size(tiny, devices_of(WEIGHTS + 8.5 * KEPT, count=3)) == (24, False)


def test_slots_are_no_more_than_keep_a_device_busy(tiny):
    assert size(tiny, devices_of(1e9)) == (BUSY, False)
    assert size(tiny, devices_of(1e9, count=3)) == (3 * BUSY, False)


def test_processes_in_lockstep_take_the_least_of_what_they_measured(tiny):
    together = devices_of(1e9)
    together.least = lambda number: min(number, 4)  # another one chose 4
    assert size(tiny, together) == (4, False)


def test_processes_in_lockstep_compute_again_where_one_of_them_must(tiny):
    together = devices_of(1e9)
    together.greatest = lambda number: max(number, 1)  # one text's activations do not fit into another one's memory
    assert size(tiny, devices_of(1e9)).remat is False
    assert size(tiny, together).remat is True


def test_lengths_share_what_was_measured(tiny, monkeypatch):
    timed = set()

    def seconds(_network: Network, _dtype: Any, positions: int, texts: int, _device: Any) -> float:
        timed.add(positions)
        return texts

    monkeypatch.setattr(sizing, "seconds_of_block", seconds)
    for positions in range(33, 65):
        assert sizing.busy_texts(tiny.network, jnp.float32, positions, 8, None) == 1
    assert timed == {64}


def test_a_block_is_timed_as_it_is(tiny):
    device = jax.local_devices()[0]
    assert original_seconds(tiny.network, jnp.float32, 8, 4, device) > 0


def test_activations_are_computed_again_where_one_text_does_not_fit(tiny):
    short = devices_of(WEIGHTS + 4.5 * AGAIN)
    assert WEIGHTS + 4.5 * AGAIN < WEIGHTS + KEPT
    assert size(tiny, short) == (4, True)
    assert size(tiny, short, remat=False) == (1, False)
    assert size(tiny, devices_of(WEIGHTS + 2.5 * KEPT)) == (2, False)
    assert size(tiny, devices_of(WEIGHTS + 2.5 * KEPT), remat=True) == (8, True)
    assert size(tiny, devices_of(1.0)) == (1, True)


def test_the_state_of_the_optimiser_of_the_fit_is_counted(tiny):
    """That of `fast` keeps many more vectors than plain descent does."""
    shape: dict[str, Any] = {"slots": 2, "length": 8, "preset": FAST}
    states = [
        footprint.lowered_step(tiny.network, jnp.float32, **shape, optimizer=optimizer)[1].opt_state
        for optimizer in (None, optax.sgd(0.1))
    ]
    most, least = (sum(leaf.size for leaf in jax.tree.leaves(state)) for state in states)
    assert most > 2 * 80 * 2 * tiny.embed_width > least


def test_an_optimiser_that_is_given_is_sized_with(tiny, monkeypatch):
    asked = []

    def memory(*_: Any, slots: int, optimizer: Any, **__: Any) -> Memory:
        asked.append(optimizer)
        return Memory(WEIGHTS, 0, slots * KEPT)

    monkeypatch.setattr(footprint, "fit_memory", memory)
    optimizer = optax.sgd(0.1)
    size(tiny, devices_of(1e9), optimizer=optimizer)
    assert set(map(id, asked)) == {id(optimizer)}


def test_what_is_given_is_taken(tiny, one_device):
    assert size(tiny, one_device, slots=3) == (3, False)
    assert size(tiny, one_device, slots=3, remat=True) == (3, True)
    assert size(tiny, one_device, remat=True) == (16, True)
    assert size(tiny, one_device) == (16, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"slots": 0}, "slots = 0: expected at least 1, or 'auto'"),
        ({"slots": "many"}, "slots = 'many': expected a whole number"),
        ({"remat": "maybe"}, "remat = 'maybe': expected True, False or 'auto'"),
    ],
)
def test_bad_sizes_are_refused(tiny, one_device, given, said):
    with pytest.raises(UserError, match=said):
        size(tiny, one_device, **given)


def test_rematerialisation_changes_no_number(tiny):
    x_TD = 0.3 * jax.random.normal(jax.random.key(0), (9, 32))

    def loss(network: Any, x_TD: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.log_softmax(network.apply(tiny.params, x_TD))[:, 0])

    kept, again = (
        jax.value_and_grad(lambda x, how=how: loss(dataclasses.replace(tiny.network, remat=how), x))(x_TD)
        for how in (False, True)
    )
    chex.assert_trees_all_close(again, kept, rtol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_are_kept_from_being_merged_with_their_recomputation(tiny, remat):
    network = dataclasses.replace(tiny.network, remat=remat)
    lowered = jax.jit(jax.grad(lambda x_TD: network.apply(tiny.params, x_TD).sum())).lower(jnp.zeros((9, 32)))
    assert lowered.as_text().count("optimization_barrier") == remat  # in the one function that all layers call


class Noting(Pmap):
    """Notes what the programs of a fit are made of."""

    def map(self, function: Any, *static: Any, donate: int | None = None) -> Any:
        self.noted = [
            *getattr(self, "noted", []),
            *(one.network.remat for one in static if isinstance(one, FitProblem)),
        ]
        return super().map(function, *static, donate=donate)


@pytest.mark.parametrize("remat", [False, True])
def test_a_fit_is_made_with_what_it_is_told(tiny, token_lists, remat):
    placement = Noting(jax.local_devices()[:1])
    fit(tiny, token_lists[:1], steps=1, slots=1, remat=remat, placement=placement)
    assert set(placement.noted) == {remat}


@pytest.mark.long
def test_texts_are_solved_with_rematerialisation(tiny, token_lists):
    again = fit(tiny, token_lists, steps=2000, remat=True)
    assert again.solved == len(token_lists)
    assert fit(tiny, token_lists, steps=2000).solved == len(token_lists)

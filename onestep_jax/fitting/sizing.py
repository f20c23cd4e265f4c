"""What a fit runs with, by what its devices hold: the placement, the number of slots, whether activations are kept."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.devices.placement import Mesh, Placement, Pmap, Together, local_devices
from onestep_jax.errors import SIZE, SLOTS, UserError, check_known, one_line
from onestep_jax.fitting.memory import NO_PAST, PastShape, StepShape, fitting_slots
from onestep_jax.fitting.optimizers import Preset
from onestep_jax.model.cost import abstract_params
from onestep_jax.model.decoder import Model, Network, Params
from onestep_jax.model.fused_attention import KERNELS
from onestep_jax.model.stacked import is_stacked
from onestep_jax.prototokens.schemes import Scheme

# Tokens at a time beyond which a CPU gets no faster: a text of 32 tokens costs the same with 8 slots as with 32.
CPU_TOKENS = 1024
MOST_CPU_SLOTS, LEAST_CPU_SLOTS = 32, 4
MEMORY_SHARE = 0.85  # of an accelerator's memory, which a fit may fill

ENOUGH = 0.95  # share of the best measured rate at which a device counts as busy
MOST_TOKENS = 2**17  # at a time; more are not timed
REPEATS = 3

PLACEMENTS = ("auto", "pmap", "mesh")
WEIGHTS_SHARE = 0.6  # of a device's memory; larger weights are split over devices


def memory_of(device: Any) -> float:
    """Bytes of a device that XLA may use: unlimited on a CPU, 16 GiB for an accelerator that does not tell."""
    if device.platform == "cpu":
        return math.inf
    return (device.memory_stats() or {}).get("bytes_limit", 2**34)


def choose_placement(
    how: str,
    weights: int,
    scheme: Scheme,
    texts: int,
    *,
    model_axis: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Placement:
    """Choose the devices of a fit, and what is split over them.

    Args:
      how: "pmap", a copy of the weights on each device; "mesh", weights and large groups split; or "auto", a mesh where
        one device cannot hold the weights, or where there are fewer groups than devices.
      weights: bytes of the model's weights.
      scheme: the arrangement.
      texts: number of texts.
      model_axis: number of devices over which the weights are split; None for the least that hold them.
      devices: all local ones by default.

    Raises:
      UserError: if the devices cannot be divided so, or do not hold the weights.
    """
    check_known("placement", [how], PLACEMENTS)
    if model_axis is not None:
        SIZE.check("model axis", model_axis)
    devices = list(devices or local_devices())
    if how == "pmap" and model_axis not in (None, 1):
        raise UserError(f"model axis = {model_axis}: pmap keeps all weights on each device; ask for placement mesh")
    needed = 1 if how == "pmap" else model_axis or _devices_for(weights, devices)
    if how != "pmap" and scheme.shared:
        sharing = _sharing(scheme.group, -(-texts // scheme.group), devices, needed)
        if sharing:
            return Together(scheme.group, sharing, needed)
    if how == "mesh" or needed > 1:
        return Mesh(devices, needed)
    return Pmap(devices)


def _sharing(group: int, groups: int, devices: Sequence[Any], needed: int) -> list[Any]:
    """Devices that share the texts of each group, equally many of every process; none if there are enough groups.

    If there are fewer groups than processes, all processes share all groups and run in lockstep. Otherwise each process
    takes groups of its own, and only its own devices share them.

    Args:
      group: texts of a group.
      groups: number of groups.
      devices: local ones.
      needed: devices that hold one copy of the weights.
    """
    hosts = [devices]
    if groups < jax.process_count():
        hosts = [[one for one in jax.devices() if one.process_index == i] for i in range(jax.process_count())]
    rows = min(len(host) for host in hosts) // needed
    most = max((count for count in range(1, rows + 1) if group % (count * len(hosts)) == 0), default=0)
    return [one for host in hosts for one in host[: most * needed]] if most * len(hosts) > groups else []


def _devices_for(weights: int, devices: Sequence[Any]) -> int:
    """The least number of devices, a divisor of their total, that hold the weights together."""
    limit = WEIGHTS_SHARE * memory_of(devices[0])
    for count in range(1, len(devices) + 1):
        if len(devices) % count == 0 and weights / count <= limit:
            return count
    size = f"{weights / 2**30:.1f} GiB of weights"
    raise UserError(f"{size} do not fit into {len(devices)} devices of {memory_of(devices[0]) / 2**30:.1f} GiB each")


def check_kernel(attention: str, device: Any) -> None:
    """Refuse an attention that is unknown, or a fused kernel of another kind of device.

    Raises:
      UserError: saying which.
    """
    check_known("attention", [attention], ["plain", *KERNELS])
    if attention != "plain" and (wanted := KERNELS[attention].platform) != device.platform:
        said = f"it runs on a {wanted}, and this is a {device.platform}"
        raise UserError(f"attention {attention} does not go here ({said}); use plain")


def check_attention(network: Network, dtype: Any, positions: int, device: Any) -> None:
    """Refuse a fused kernel that this device, its libraries or this model does not support.

    Args:
      network: the architecture, and the attention that is asked for.
      dtype: of the weights.
      positions: of a text (T).
      device: one of those that the fit runs on.

    Raises:
      UserError: with the kernel's own reason.
    """
    check_kernel(network.attention, device)
    if network.attention == "plain":
        return
    params = abstract_params(network.config, dtype)

    def total(params: Params, x_TD: jax.Array) -> jax.Array:
        return network.hidden(params, x_TD).sum()

    try:
        jax.eval_shape(jax.grad(total, 1), params, jax.ShapeDtypeStruct((positions, network.embed_width), dtype))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = one_line(error).rstrip(".")
        raise UserError(f"attention {network.attention} does not go here ({reason}); use plain") from error


class Sizing(NamedTuple):
    """Sizes of a fit.

    Attributes:
      slots: groups at a time, over all rows of the placement.
      remat: see `Network.remat`.
    """

    slots: int
    remat: bool


def size_fit(
    model: Model,
    tokens: Sequence[np.ndarray],
    scheme: Scheme,
    placement: Placement,
    preset: Preset,
    *,
    optimizer: optax.GradientTransformation | None = None,
    slots: int | str = "auto",
    remat: bool | str = "auto",
    past: PastShape = NO_PAST,
) -> Sizing:
    """Slots and rematerialisation: as given, and where "auto", what keeps the devices busy within their memory.

    Activations are computed again only where not even one slot fits with them: a step then costs half as much again.
    With a given number of slots nothing is measured, and "auto" keeps them. Processes in lockstep take what suits all
    of them. The optimiser is the preset's unless it is given; its state is a part of the memory.

    Raises:
      UserError: for a number of slots below one, or another word than "auto".
    """
    if not isinstance(remat, bool) and remat != "auto":
        raise UserError(f"remat = {remat!r}: expected True, False or 'auto'")
    SLOTS.check("slots", slots)
    if not isinstance(slots, str):
        return Sizing(slots=slots, remat=remat is True)
    length = max(len(ids) for ids in tokens) + scheme.extra
    if placement.devices[0].platform == "cpu":
        enough = max(LEAST_CPU_SLOTS, CPU_TOKENS // (length * scheme.group))
        count = _power_of_two(min(MOST_CPU_SLOTS, enough))
        return Sizing(slots=count * placement.rows, remat=remat is True)
    shape: StepShape = {"length": length, "preset": preset, "scheme": scheme, "placement": placement, "past": past}
    shape["stacked"], shape["optimizer"] = is_stacked(model.params), optimizer
    return _size_on_accelerator(model, shape, scheme.group, placement, remat)


def _size_on_accelerator(model: Model, shape: StepShape, group: int, placement: Placement, remat: bool | str) -> Sizing:
    """The fewest slots that keep a device busy, or as many as fit into its memory.

    Two compilations of the step tell the memory, see `memory.fitting_slots`; a timed block for each power of two tells
    when the device is busy, see `busy_texts`.
    """
    device = placement.devices[0]
    limit = MEMORY_SHARE * memory_of(device)

    def fitting(again: bool) -> int:
        return fitting_slots(dataclasses.replace(model.network, remat=again), model.dtype, limit, **shape)

    again = remat is True
    most = fitting(again)
    # One program serves all processes in lockstep: what one of them must compute again, all do.
    if remat == "auto" and placement.greatest(most == 0):
        again, most = True, fitting(True)
    network, texts = dataclasses.replace(model.network, remat=again), max(1, most) * group
    busy = -(-busy_texts(network, model.dtype, shape["length"], texts, device) // group)
    # Each process measures for itself; the least number fits into the memory of all of them.
    count = placement.least(_power_of_two(max(1, min(most, busy))))
    return Sizing(slots=count * placement.rows, remat=again)


def _power_of_two(most: int) -> int:
    """The greatest power of two that is no more than `most`."""
    return 1 << (most.bit_length() - 1)


# --- how many texts at a time keep an accelerator busy: one block of the model, timed on more and more of them ---


def busy_texts(network: Network, dtype: Any, positions: int, most: int, device: Any) -> int:
    """The least number of texts at a time, a power of two, with which a device is as fast as with more of them.

    Compiles and times a block for 1, 2, 4, … texts, once in a process for each block and number of positions. Positions
    are rounded up to a power of two, so that fits of many lengths share a measurement. Two neighbouring numbers may
    have nearly the same rate; then another measurement may choose the other one.

    Args:
      network: the model's functions; the first of its blocks is timed, forward and back to its input.
      dtype: of the weights.
      positions: of a text (T).
      most: texts that fit into the device's memory.
      device: where the block is timed.
    """
    positions = 1 << (positions - 1).bit_length()
    one = dataclasses.replace(network, config=dataclasses.replace(network.config, layers=1))
    rates: dict[int, float] = {}
    texts = 1
    while texts <= most and (texts == 1 or texts * positions <= MOST_TOKENS):
        rates[texts] = texts / seconds_of_block(one, dtype, positions, texts, device)
        texts *= 2
    best = max(rates.values())
    return min(texts for texts, rate in rates.items() if rate >= ENOUGH * best)


@functools.cache
def seconds_of_block(network: Network, dtype: Any, positions: int, texts: int, device: Any) -> float:
    """Seconds of a forward and backward pass over texts of random vectors, the fastest of `REPEATS`."""
    with jax.default_device(device):
        params = _random_block(network, dtype)
        x_GTD = jax.random.normal(jax.random.key(0), (texts, positions, network.embed_width), dtype)
        gradient = jax.jit(jax.vmap(jax.grad(functools.partial(_total, network), 1), (None, 0)))
        gradient(params, x_GTD).block_until_ready()
        found = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            gradient(params, x_GTD).block_until_ready()
            found.append(time.perf_counter() - began)
    return min(found)


def _total(network: Network, params: Params, x_TD: jax.Array) -> jax.Array:
    return network.hidden(params, x_TD).astype(jnp.float32).sum()


def _random_block(network: Network, dtype: Any) -> Params:
    """Random weights of all but the embedding table and the output head."""
    shapes: dict[str, Any] = flatten_dict(abstract_params(network.config, dtype), sep="/")
    found = {}
    for i, (path, leaf) in enumerate(sorted(shapes.items())):
        if not path.startswith(("embed/", "head/")):
            found[path] = 0.02 * jax.random.normal(jax.random.key(i), leaf.shape, dtype)
    return unflatten_dict(found, sep="/")

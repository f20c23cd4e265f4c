"""Slots: the state of the groups optimised together (continuous batching), and how a group begins in one.

Everything is written for one group and vmapped over slots; `programs` moves it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from onestep_jax.errors import UserError
from onestep_jax.fitting.optimizers import Preset
from onestep_jax.model.decoder import Model, Network, Params, Past, input_scale
from onestep_jax.prototokens.auxiliary import Losses
from onestep_jax.prototokens.prefixes import Prefixes, pasts_of
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme, bare, draw

IDLE, RUNNING, SOLVED, EXHAUSTED, FAILED = range(5)
STATUS = ("idle", "running", "solved", "exhausted", "failed")


class Frozen(NamedTuple):
    """What no step changes.

    Attributes:
      params: the weights.
      past: keys and values of the prefix that all texts have; None where they have none, or each its own.
    """

    params: Params
    past: Past | None = None


class Slot(NamedTuple):
    """The state of one group; every array gains a leading slot axis (and a row axis) outside this module.

    Attributes:
      status: () int32, index into STATUS.
      steps: () int32, gradient evaluations spent.
      budget: () int32, how many it may spend; None in a saved slot, as its task says it anew.
      leaves: leaf → (G, D) or (D,) float32, the vectors now.
      opt_state: the optimiser's state of this group alone.
      tokens_GT: (G, T) int32 targets, zero beyond a text's end.
      lengths_G: (G,) int32 tokens of each text; 0 marks an empty place.
      best: leaf → the vectors of the best score, all from one step.
      best_accuracy: () float32, mean accuracy over the group (ties are broken by the lower loss); with a margin what
        `programs._worth` says.
      best_loss: () float32, nats per token at that step.
      best_step: () int32, updates made before that step.
      improved_step: () int32, updates made before the last progress, see `FitProblem`.
      first_hit_GT: (G, T) int32, gradient evaluation at which a token was first right, counted from 0; −1 for never.
      past: keys and values of each text's own prefix, arrays leading with G; None where they have none of their own.
      milestone: () float32, loss at the last progress; None where progress is a better accuracy.
      context: name → (G, …) float32, what the losses beside Eq. 1 know of the texts.
    """

    status: Array
    steps: Array
    budget: Any
    leaves: Leaves
    opt_state: Any
    tokens_GT: Array
    lengths_G: Array
    best: Leaves
    best_accuracy: Array
    best_loss: Array
    best_step: Array
    improved_step: Array
    first_hit_GT: Array
    past: Past | None = None
    milestone: Array | None = None
    context: dict[str, Array] = {}  # noqa: RUF012, never changed


class Info(NamedTuple):
    """What the host reads of a slot after a chunk.

    Attributes:
      status: () int32.
      steps: () int32.
      loss: () float32, nats per token at the last step made.
      accuracy: () float32, mean over the group at the last step made.
      leaves: leaf → (G, D) or (D,), the vectors that earned this loss, if the problem records them; else empty.
    """

    status: Array
    steps: Array
    loss: Array
    accuracy: Array
    leaves: Leaves


class Harvest(NamedTuple):
    """A finished slot, and what the decode program says of its best vectors.

    Attributes:
      slot: the slot, with `leaves`, `opt_state` and `past` left out.
      accuracy_G: (G,) float32, the accuracy that is recorded.
      predicted_GT: (G, T) int32, the argmax token ids.
      margin_G: (G,) float32, least lead of each text over its tokens, in logits.
    """

    slot: Slot
    accuracy_G: Array
    predicted_GT: Array
    margin_G: Array


class Offer(NamedTuple):
    """Groups for free slots, as host arrays with leading (row, slot) axes.

    Attributes:
      offered: bool, whether a group is offered to this slot.
      budget, tokens_GT, lengths_G, ids_G4: see `fresh`.
      start: leaf → start vectors, or None to draw them.
      prefixes: of the texts, where each has its own; else None.
      context: see `Slot`.
    """

    offered: Any
    budget: Any
    tokens_GT: Any
    lengths_G: Any
    ids_G4: Any
    start: Any = None
    prefixes: Prefixes | None = None
    context: Any = {}  # noqa: RUF012, never changed


@dataclasses.dataclass(frozen=True)
class FitProblem:
    """What stays the same over a fit: the frozen model's functions, the arrangement, the optimiser.

    Equal problems share compiled programs (`placement.Placement.map`).

    Attributes:
      network: functions of the frozen model.
      scheme: the arrangement, without start vectors.
      optimizer: any optax optimiser.
      scale: standard deviation of the components of a start vector.
      temperature: of the softmax in the loss, see `token_losses.token_losses`.
      patience: gradient evaluations without progress after which a seed is given up; None for never.
      patience_per_token: the same for each token of the longest text, where that is more.
      patience_growth: the same as a multiple of the evaluations made before the last progress, where that is more.
      progress: what counts as progress: None for a better accuracy, else a loss of at most this share of that at the
        last progress.
      record: whether the host receives the vectors of each chunk's last step.
      margin: logits by which every target must lead the runner-up before a text is solved; 0 where the argmax will do.
      losses: beside Eq. 1, see `auxiliary`. The updates follow them; when a text is solved, which vectors are kept and
        what is progress do not.
    """

    network: Network
    scheme: Scheme
    optimizer: optax.GradientTransformation
    scale: float
    temperature: float = 1.0
    patience: int | None = None
    patience_per_token: float = 0.0
    patience_growth: float = 0.0
    progress: float | None = None
    record: bool = False
    margin: float = 0.0
    losses: Losses = ()


def start_unit(preset: Preset, model: Model) -> float:
    """What the scale of a preset's start vectors is counted in."""
    return 1.0 if preset.start == "normal" else input_scale(model)


def make_problem(
    model: Model,
    scheme: Scheme,
    preset: Preset,
    optimizer: optax.GradientTransformation,
    *,
    record: bool = False,
    margin: float = 0.0,
    losses: Losses = (),
) -> FitProblem:
    """What slots need to know of a fit by a preset, which gives all but the optimiser.

    Raises:
      UserError: for a scheme or an optimiser that cannot be hashed, as compiled programs are kept by what they are
        made of.
    """
    problem = FitProblem(
        network=model.network,
        scheme=bare(scheme),
        optimizer=optimizer,
        scale=preset.scale * start_unit(preset, model),
        temperature=preset.temperature,
        patience=preset.patience,
        patience_per_token=preset.patience_per_token,
        patience_growth=preset.patience_growth,
        progress=preset.progress,
        record=record,
        margin=margin,
        losses=losses,
    )
    try:
        hash(problem)
    except TypeError as error:
        cure = "make it a frozen dataclass of plain values"
        raise UserError(f"scheme or optimizer: {error}; programs are kept by what they are made of: {cure}") from error
    return problem


def fresh(
    problem: FitProblem,
    budget: Array,
    tokens_GT: Array,
    lengths_G: Array,
    ids_G4: Array,
    start: Leaves | None = None,
    past: Past | None = None,
) -> Slot:
    """A running slot at its start vectors, which are drawn from the texts' identities unless given."""
    chex.assert_shape(tokens_GT, (problem.scheme.group, None))
    chex.assert_shape(ids_G4, (problem.scheme.group, 4))
    leaves = draw(problem.scheme, ids_G4, problem.network.embed_width, problem.scale) if start is None else start
    return Slot(
        status=jnp.int32(RUNNING),
        steps=jnp.int32(0),
        budget=budget,
        leaves=leaves,
        opt_state=problem.optimizer.init(leaves),
        tokens_GT=tokens_GT,
        lengths_G=lengths_G,
        best=leaves,
        best_accuracy=jnp.float32(-1),
        best_loss=jnp.float32(jnp.inf),
        best_step=jnp.int32(0),
        improved_step=jnp.int32(0),
        first_hit_GT=jnp.full(tokens_GT.shape, -1, jnp.int32),
        past=past,
        milestone=None if problem.progress is None else jnp.float32(jnp.inf),
    )


def shapes(problem: FitProblem, positions: int, past: Any = None) -> Slot:
    """A slot for texts padded to `positions` tokens, as `jax.ShapeDtypeStruct`s; `past` is that of a slot, likewise."""
    G = problem.scheme.group
    budget, tokens_GT, lengths_G = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (G, positions), (G,)))
    ids_G4 = jax.ShapeDtypeStruct((G, 4), jnp.uint32)
    return jax.eval_shape(functools.partial(fresh, problem), budget, tokens_GT, lengths_G, ids_G4, None, past)


def own_past_shapes(problem: FitProblem, params: Any, rows: int) -> Any:
    """The `past` of a slot whose texts have prefixes of their own, padded to `rows` tokens, as shapes; None for 0."""
    G = problem.scheme.group
    if not rows:
        return None
    prefixes = Prefixes(jax.ShapeDtypeStruct((G, rows), jnp.int32), jax.ShapeDtypeStruct((G,), jnp.int32))
    return jax.eval_shape(functools.partial(pasts_of, problem.network), params, prefixes)


def idle(
    problem: FitProblem,
    positions: int,
    lead: tuple[int, ...],
    past: Any = None,
    context: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Slot:
    """Empty slots, as host arrays with these leading axes; `context` is name → shape of a text's row."""
    zeros = jax.tree.map(lambda leaf: np.zeros((*lead, *leaf.shape), leaf.dtype), shapes(problem, positions, past))
    return zeros._replace(status=np.full(lead, IDLE, np.int32), context=empty_context(problem, lead, context))


def empty_context(
    problem: FitProblem, lead: tuple[int, ...], context: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Zeros for what the losses know of the texts of each slot, as host arrays."""
    return {name: np.zeros((*lead, problem.scheme.group, *row), np.float32) for name, row in context.items()}

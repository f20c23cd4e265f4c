"""Slots: the state of the groups being optimised together, and the pure functions that move it (continuous batching).

Everything is written for one group and vmapped over slots. A step scores the vectors first, keeps them if they are the
best so far, and only then updates them, so the vectors kept are the ones that earned the kept score.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from onestep_jax.model.decoder import Network, Params
from onestep_jax.prototokens.objective import accuracies, group_loss, score_group
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme, draw

IDLE, RUNNING, SOLVED, EXHAUSTED, FAILED = range(5)
STATUS = ("idle", "running", "solved", "exhausted", "failed")


class Slot(NamedTuple):
    """The state of one group; every array gains a leading slot axis (and a row axis) outside this module.

    Attributes:
      status: () int32, index into STATUS.
      steps: () int32, gradient evaluations spent.
      leaves: leaf → (G, D) or (D,) float32, the vectors now.
      opt_state: the optimiser's state of this group alone.
      tokens_GT: (G, T) int32 targets, zero beyond a text's end.
      lengths_G: (G,) int32 tokens of each text; 0 marks an empty place.
      best: leaf → the vectors of the best score, all from one step.
      best_accuracy: () float32, mean accuracy over the group (ties are broken by the lower loss).
      best_loss: () float32, nats per token at that step.
      best_step: () int32, updates made before that step.
      improved_step: () int32, updates made before the best accuracy was first reached.
      first_hit_GT: (G, T) int32, gradient evaluation at which a token was first right, counted from 0; −1 for never.
    """

    status: Array
    steps: Array
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


class Info(NamedTuple):
    """What the host looks at after a chunk, a few numbers a slot.

    Attributes:
      status: () int32.
      steps: () int32.
      loss: () float32, nats per token at the last step made.
      accuracy: () float32, mean over the group at the last step made.
      leaves: leaf → (G, D) or (D,), the vectors that scored so, if the problem asks to record them; else empty.
    """

    status: Array
    steps: Array
    loss: Array
    accuracy: Array
    leaves: Leaves


class Harvest(NamedTuple):
    """A slot that was asked for, and what the decode program says of its best vectors.

    Attributes:
      slot: without what only the optimiser needs.
      accuracy_G: (G,) float32, the accuracy that is recorded.
      predicted_GT: (G, T) int32, the argmax token ids.
    """

    slot: Slot
    accuracy_G: Array
    predicted_GT: Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """What stays the same over a run: the frozen model's functions, the arrangement, the optimiser, the budget.

    Two equal problems are served by the same compiled programs (`placement.Placement.map`).

    Attributes:
      network: functions of the frozen model.
      scheme: the arrangement, without start vectors.
      optimizer: any optax optimiser.
      scale: standard deviation of the components of a start vector.
      steps: budget of a group, in gradient evaluations.
      temperature: of the softmax in the loss, see `token_losses.token_losses`.
      patience: gradient evaluations without a better accuracy after which a group is given up; None for never.
      record: whether the vectors of each chunk's last step are handed to the host.
    """

    network: Network
    scheme: Scheme
    optimizer: optax.GradientTransformation
    scale: float
    steps: int
    temperature: float = 1.0
    patience: int | None = None
    record: bool = False


def fresh(problem: Problem, tokens_GT: Array, lengths_G: Array, ids_G4: Array, start: Leaves | None = None) -> Slot:
    """A running slot at its start vectors, drawn from the texts' identities unless given."""
    chex.assert_shape(tokens_GT, (problem.scheme.group, None))
    chex.assert_shape(ids_G4, (problem.scheme.group, 4))
    leaves = draw(problem.scheme, ids_G4, problem.network.embed_width, problem.scale) if start is None else start
    return Slot(
        status=jnp.int32(RUNNING),
        steps=jnp.int32(0),
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
    )


def shapes(problem: Problem, positions: int) -> Slot:
    """A slot for texts padded to `positions` tokens, as `jax.ShapeDtypeStruct`s."""
    G = problem.scheme.group
    tokens_GT, lengths_G = jax.ShapeDtypeStruct((G, positions), jnp.int32), jax.ShapeDtypeStruct((G,), jnp.int32)
    ids_G4 = jax.ShapeDtypeStruct((G, 4), jnp.uint32)
    return jax.eval_shape(functools.partial(fresh, problem), tokens_GT, lengths_G, ids_G4)


def idle(problem: Problem, positions: int, lead: tuple[int, ...]) -> Slot:
    """Slots that hold nothing, as host arrays with these leading axes."""
    zeros = jax.tree.map(lambda leaf: np.zeros((*lead, *leaf.shape), leaf.dtype), shapes(problem, positions))
    return zeros._replace(status=np.full(lead, IDLE, np.int32))


def step(problem: Problem, params: Params, slot: Slot) -> tuple[Slot, Info]:
    """Score, keep, update: one gradient evaluation of one group; a slot that is not running passes unchanged."""

    def loss_of(leaves: Leaves) -> tuple[Array, Array]:
        texts = (slot.tokens_GT, slot.lengths_G)
        score = score_group(problem.network, problem.scheme, params, leaves, *texts, problem.temperature)
        return group_loss(score.nats_G, slot.lengths_G), score.hits_GT

    (loss, hits_GT), grads = jax.value_and_grad(loss_of, has_aux=True)(slot.leaves)
    accuracy_G = accuracies(hits_GT, slot.lengths_G)
    accuracy = _mean_over_texts(accuracy_G, slot.lengths_G)

    better = (accuracy > slot.best_accuracy) | ((accuracy == slot.best_accuracy) & (loss < slot.best_loss))
    better &= jnp.isfinite(loss)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), slot.leaves, slot.best)

    extras = {}
    if isinstance(problem.optimizer, optax.GradientTransformationExtraArgs):
        extras = {"value": loss, "grad": grads, "value_fn": lambda leaves: loss_of(leaves)[0]}
    updates, opt_state = problem.optimizer.update(grads, slot.opt_state, slot.leaves, **extras)
    leaves: Any = optax.apply_updates(slot.leaves, updates)

    steps = slot.steps + 1
    improved_step = jnp.where(better & (accuracy > slot.best_accuracy), slot.steps, slot.improved_step)
    patience = problem.steps if problem.patience is None else problem.patience
    given_up = (steps >= problem.steps) | (slot.steps - improved_step >= patience)
    status = jnp.where(given_up, EXHAUSTED, RUNNING)
    status = jnp.where(jnp.all(accuracy_G == 1), SOLVED, status)
    status = jnp.where(jnp.isfinite(loss), status, FAILED).astype(jnp.int32)
    moved = slot._replace(
        status=status,
        steps=steps,
        leaves=leaves,
        opt_state=opt_state,
        best=best,
        best_accuracy=jnp.where(better, accuracy, slot.best_accuracy),
        best_loss=jnp.where(better, loss, slot.best_loss),
        best_step=jnp.where(better, slot.steps, slot.best_step),
        improved_step=improved_step,
        first_hit_GT=jnp.where(hits_GT & (slot.first_hit_GT < 0), slot.steps, slot.first_hit_GT),
    )
    running = slot.status == RUNNING
    after = jax.tree.map(lambda new, old: jnp.where(running, new, old), moved, slot)
    return after, Info(after.status, after.steps, loss, accuracy, slot.leaves if problem.record else {})


def _mean_over_texts(accuracy_G: Array, lengths_G: Array) -> Array:
    real_G = lengths_G > 0
    return jnp.sum(jnp.where(real_G, accuracy_G, 0.0)) / jnp.maximum(jnp.sum(real_G), 1)


def chunk(problem: Problem, length: int, params: Params, slots: Slot) -> tuple[Slot, Info]:
    """Up to `length` steps of all slots, fewer once none is running; the info is of each slot's last."""

    def unfinished(carry: tuple[Array, Slot, Info]) -> Array:
        return (carry[0] < length) & jnp.any(carry[1].status == RUNNING)

    def body(carry: tuple[Array, Slot, Info]) -> tuple[Array, Slot, Info]:
        done, slots, info = carry
        running = slots.status == RUNNING
        slots, new = jax.vmap(lambda slot: step(problem, params, slot))(slots)
        seen = jax.vmap(lambda ran, new, old: jax.tree.map(lambda a, b: jnp.where(ran, a, b), new, old))(
            running, new, info
        )
        return done + 1, slots, seen._replace(status=slots.status, steps=slots.steps)

    nothing = jnp.full(slots.status.shape, jnp.nan, jnp.float32)
    leaves = slots.leaves if problem.record else {}
    start = (jnp.int32(0), slots, Info(slots.status, slots.steps, nothing, nothing, leaves))
    _, slots, info = jax.lax.while_loop(unfinished, body, start)
    return slots, info


def harvest(problem: Problem, params: Params, slots: Slot, which_K: Array) -> tuple[Slot, Harvest]:
    """Decode the best vectors of some slots; a *solved* that the forward program does not confirm goes on running.

    In float32 it always confirms; in bfloat16 the winning margin can be smaller than the rounding. Attention is plain,
    as it is wherever stored vectors are decoded.

    Args:
      problem, params, slots: as of `chunk`.
      which_K: (K,) int32 indices of slots; one beyond the last is nobody's.

    Returns:
      The slots, and K harvests; what is nobody's means nothing.
    """
    network = dataclasses.replace(problem.network, attention="plain")

    def one(slot: Slot) -> Harvest:
        score = score_group(network, problem.scheme, params, slot.best, slot.tokens_GT, slot.lengths_G)
        accuracy_G = accuracies(score.hits_GT, slot.lengths_G)
        refuted = (slot.status == SOLVED) & ~jnp.all(accuracy_G == 1)
        resumed = jnp.where(slot.steps >= problem.steps, EXHAUSTED, RUNNING).astype(jnp.int32)
        accuracy = _mean_over_texts(accuracy_G, slot.lengths_G)
        slot = slot._replace(
            status=jnp.where(refuted, resumed, slot.status),
            best_accuracy=jnp.where(refuted, accuracy, slot.best_accuracy),
        )
        return Harvest(slot, accuracy_G, score.predicted_GT)

    wanted = slots._replace(leaves={}, opt_state=None)
    found = jax.vmap(one)(jax.tree.map(lambda array: array.at[which_K].get(mode="clip"), wanted))
    status = slots.status.at[which_K].set(found.slot.status, mode="drop")
    best_accuracy = slots.best_accuracy.at[which_K].set(found.slot.best_accuracy, mode="drop")
    return slots._replace(status=status, best_accuracy=best_accuracy), found


class Offer(NamedTuple):
    """Groups for free slots, as host arrays with leading (row, slot) axes.

    Attributes:
      offered: bool, whether this slot is offered a group.
      tokens_GT, lengths_G, ids_G4: see `fresh`.
      start: leaf → start vectors, or None to draw them.
    """

    offered: Any
    tokens_GT: Any
    lengths_G: Any
    ids_G4: Any
    start: Any = None


def refill(problem: Problem, params: Params, slots: Slot, offer: Offer) -> tuple[Slot, Array]:
    """Put the offered groups into slots that are not running; says which were taken."""

    def one(slot: Slot, offer: Offer) -> tuple[Slot, Array]:
        new = fresh(problem, offer.tokens_GT, offer.lengths_G, offer.ids_G4, offer.start)
        taken = offer.offered & (slot.status != RUNNING)
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), new, slot), taken

    return jax.vmap(one)(slots, offer)

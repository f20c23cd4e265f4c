"""Slots: the state of the groups optimised together, and the pure functions that move it (continuous batching).

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
from onestep_jax.prototokens.objective import accuracies, group_accuracy, group_loss, score_group
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
      slot: the slot, with `leaves` and `opt_state` left out.
      accuracy_G: (G,) float32, the accuracy that is recorded.
      predicted_GT: (G, T) int32, the argmax token ids.
    """

    slot: Slot
    accuracy_G: Array
    predicted_GT: Array


@dataclasses.dataclass(frozen=True)
class FitProblem:
    """What stays the same over a fit: the frozen model's functions, the arrangement, the optimiser, the budget.

    Equal problems share compiled programs (`placement.Placement.map`).

    Attributes:
      network: functions of the frozen model.
      scheme: the arrangement, without start vectors.
      optimizer: any optax optimiser.
      scale: standard deviation of the components of a start vector.
      steps: budget of a group, in gradient evaluations.
      temperature: of the softmax in the loss, see `token_losses.token_losses`.
      patience: gradient evaluations without a better accuracy after which a group is given up; None for never.
      record: whether the host receives the vectors of each chunk's last step.
    """

    network: Network
    scheme: Scheme
    optimizer: optax.GradientTransformation
    scale: float
    steps: int
    temperature: float = 1.0
    patience: int | None = None
    record: bool = False


def fresh(problem: FitProblem, tokens_GT: Array, lengths_G: Array, ids_G4: Array, start: Leaves | None = None) -> Slot:
    """A running slot at its start vectors, which are drawn from the texts' identities unless given."""
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


def shapes(problem: FitProblem, positions: int) -> Slot:
    """A slot for texts padded to `positions` tokens, as `jax.ShapeDtypeStruct`s."""
    G = problem.scheme.group
    tokens_GT, lengths_G = jax.ShapeDtypeStruct((G, positions), jnp.int32), jax.ShapeDtypeStruct((G,), jnp.int32)
    ids_G4 = jax.ShapeDtypeStruct((G, 4), jnp.uint32)
    return jax.eval_shape(functools.partial(fresh, problem), tokens_GT, lengths_G, ids_G4)


def idle(problem: FitProblem, positions: int, lead: tuple[int, ...]) -> Slot:
    """Empty slots, as host arrays with these leading axes."""
    zeros = jax.tree.map(lambda leaf: np.zeros((*lead, *leaf.shape), leaf.dtype), shapes(problem, positions))
    return zeros._replace(status=np.full(lead, IDLE, np.int32))


def step(problem: FitProblem, params: Params, slot: Slot) -> tuple[Slot, Info]:
    """Score, keep, update: one gradient evaluation of one group; a slot that is not running stays as it is."""

    def loss_of(leaves: Leaves) -> tuple[Array, Array]:
        score = score_group(
            problem.network, problem.scheme, params, leaves, slot.tokens_GT, slot.lengths_G, problem.temperature
        )
        return group_loss(score.nats_G, slot.lengths_G), score.hits_GT

    # Score: Eq. 1 and its gradient, and the hits that Eq. 2 counts, at the vectors as they are.
    (loss, hits_GT), gradient = jax.value_and_grad(loss_of, has_aux=True)(slot.leaves)
    accuracy_G = accuracies(hits_GT, slot.lengths_G)
    accuracy = group_accuracy(accuracy_G, slot.lengths_G)

    # Keep: before the update, since the vectors after it have no score yet.
    moved = _keep_if_best(slot, loss, accuracy)
    status = _status_after(problem, moved, loss, accuracy_G)

    # Update: the optimiser sees this group alone, because it is vmapped with the rest.
    extras = {}
    if isinstance(problem.optimizer, optax.GradientTransformationExtraArgs):
        extras = {"value": loss, "grad": gradient, "value_fn": lambda leaves: loss_of(leaves)[0]}
    updates, opt_state = problem.optimizer.update(gradient, slot.opt_state, slot.leaves, **extras)
    leaves: Any = optax.apply_updates(slot.leaves, updates)
    moved = moved._replace(
        status=status,
        steps=slot.steps + 1,
        leaves=leaves,
        opt_state=opt_state,
        first_hit_GT=jnp.where(hits_GT & (slot.first_hit_GT < 0), slot.steps, slot.first_hit_GT),
    )

    after = _choose(slot.status == RUNNING, moved, slot)  # under vmap finished and empty slots compute as well
    recorded = slot.leaves if problem.record else {}
    return after, Info(status=after.status, steps=after.steps, loss=loss, accuracy=accuracy, leaves=recorded)


def _keep_if_best(slot: Slot, loss: Array, accuracy: Array) -> Slot:
    """The slot with its vectors as the best ones, if no earlier accuracy is better; ties go to the lower loss."""
    more_accurate = accuracy > slot.best_accuracy
    better = jnp.isfinite(loss) & (more_accurate | (accuracy == slot.best_accuracy) & (loss < slot.best_loss))
    return slot._replace(
        best=_choose(better, slot.leaves, slot.best),
        best_accuracy=jnp.where(better, accuracy, slot.best_accuracy),
        best_loss=jnp.where(better, loss, slot.best_loss),
        best_step=jnp.where(better, slot.steps, slot.best_step),
        improved_step=jnp.where(better & more_accurate, slot.steps, slot.improved_step),
    )


def _status_after(problem: FitProblem, slot: Slot, loss: Array, accuracy_G: Array) -> Array:
    """Status after evaluation number `slot.steps`, counted from 0: failed before solved before given up."""
    patience = problem.steps if problem.patience is None else problem.patience
    given_up = (slot.steps + 1 >= problem.steps) | (slot.steps - slot.improved_step >= patience)
    status = jnp.where(given_up, EXHAUSTED, RUNNING)
    status = jnp.where(jnp.all(accuracy_G == 1), SOLVED, status)  # the paper's early stop: every token is right
    return jnp.where(jnp.isfinite(loss), status, FAILED).astype(jnp.int32)


def chunk(problem: FitProblem, length: int, params: Params, slots: Slot) -> tuple[Slot, Info]:
    """Up to `length` steps of all slots, fewer once none is running; the info is of each slot's last step."""

    def unfinished(carry: tuple[Array, Slot, Info]) -> Array:
        done, slots, _ = carry
        return (done < length) & jnp.any(slots.status == RUNNING)

    def body(carry: tuple[Array, Slot, Info]) -> tuple[Array, Slot, Info]:
        done, slots, info = carry
        running = slots.status == RUNNING
        slots, newest = jax.vmap(functools.partial(step, problem, params))(slots)
        info = jax.vmap(_choose)(running, newest, info)
        return done + 1, slots, info._replace(status=slots.status, steps=slots.steps)

    nothing = jnp.full(slots.status.shape, jnp.nan, jnp.float32)
    leaves = slots.leaves if problem.record else {}
    info = Info(status=slots.status, steps=slots.steps, loss=nothing, accuracy=nothing, leaves=leaves)
    _, slots, info = jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots, info))
    return slots, info


def harvest(problem: FitProblem, params: Params, slots: Slot, which_K: Array) -> tuple[Slot, Harvest]:
    """Decode the best vectors of some slots; a solved slot that the decode program refutes runs on.

    In float32 the decode program always confirms. In bfloat16 the winning margin can be smaller than the difference in
    rounding between this program and the step. Attention is plain, as it is wherever stored vectors are decoded.

    Args:
      problem, params, slots: as in `chunk`.
      which_K: (K,) int32 indices of slots; an index beyond the last slot fills a place that is not needed.

    Returns:
      The slots, and K harvests, of which those of unneeded places are to be ignored.
    """
    network = dataclasses.replace(problem.network, attention="plain")

    def one(slot: Slot) -> Harvest:
        score = score_group(network, problem.scheme, params, slot.best, slot.tokens_GT, slot.lengths_G)
        accuracy_G = accuracies(score.hits_GT, slot.lengths_G)
        refuted = (slot.status == SOLVED) & ~jnp.all(accuracy_G == 1)
        resumed = jnp.where(slot.steps >= problem.steps, EXHAUSTED, RUNNING).astype(jnp.int32)
        accuracy = group_accuracy(accuracy_G, slot.lengths_G)
        slot = slot._replace(
            status=jnp.where(refuted, resumed, slot.status),
            best_accuracy=jnp.where(refuted, accuracy, slot.best_accuracy),
        )
        return Harvest(slot=slot, accuracy_G=accuracy_G, predicted_GT=score.predicted_GT)

    # A gather clips an index beyond the end and a scatter drops it, so an unneeded place changes no slot.
    wanted = slots._replace(leaves={}, opt_state=None)
    found = jax.vmap(one)(jax.tree.map(lambda array: array.at[which_K].get(mode="clip"), wanted))
    status = slots.status.at[which_K].set(found.slot.status, mode="drop")
    best_accuracy = slots.best_accuracy.at[which_K].set(found.slot.best_accuracy, mode="drop")
    return slots._replace(status=status, best_accuracy=best_accuracy), found


class Offer(NamedTuple):
    """Groups for free slots, as host arrays with leading (row, slot) axes.

    Attributes:
      offered: bool, whether a group is offered to this slot.
      tokens_GT, lengths_G, ids_G4: see `fresh`.
      start: leaf → start vectors, or None to draw them.
    """

    offered: Any
    tokens_GT: Any
    lengths_G: Any
    ids_G4: Any
    start: Any = None


def refill(problem: FitProblem, _params: Params, slots: Slot, offer: Offer) -> tuple[Slot, Array]:
    """Begin the offered groups in slots that are not running; returns the slots, and which of them took their group."""
    new = jax.vmap(functools.partial(fresh, problem))(offer.tokens_GT, offer.lengths_G, offer.ids_G4, offer.start)
    return restore(_params, slots, offer.offered, new)


def restore(_params: Params, slots: Slot, offered: Array, saved: Slot) -> tuple[Slot, Array]:
    """As `refill`, with slots that were saved: their groups resume where they were."""
    # A slot may still run, though it was offered a group: the host offers before it knows what a harvest refuted.
    taken = offered & (slots.status != RUNNING)
    return jax.vmap(_choose)(taken, saved, slots), taken


def _choose(condition: Array, new: Any, old: Any) -> Any:
    """The tree `new` where the condition () holds, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)

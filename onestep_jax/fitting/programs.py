"""The pure functions that move slots: score, keep, update; harvest what is finished; begin or resume groups.

Everything is written for one group and vmapped over slots. A step scores the vectors first, keeps them if they are the
best so far, and only then updates them, so the vectors kept are the ones that earned the kept score.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from onestep_jax.fitting.slots import (
    EXHAUSTED,
    FAILED,
    RUNNING,
    SOLVED,
    FitProblem,
    Frozen,
    Harvest,
    Info,
    Offer,
    Slot,
    fresh,
)
from onestep_jax.model.decoder import Network
from onestep_jax.prototokens.auxiliary import Context, auxiliary_loss
from onestep_jax.prototokens.objective import Score, accuracies, group_accuracy, group_loss, score_group
from onestep_jax.prototokens.prefixes import Prefixes, pasts_of
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme


def step(problem: FitProblem, frozen: Frozen, slot: Slot) -> tuple[Slot, Info]:
    """Score, keep, update: one gradient evaluation of one group; a slot that is not running stays as it is."""

    def loss_of(leaves: Leaves) -> tuple[Array, tuple[Array, Array, Array | None]]:
        margin = problem.margin or None
        score = _score(problem.network, problem.scheme, frozen, slot, leaves, problem.temperature, margin)
        loss = group_loss(score.nats_G, slot.lengths_G)
        context = Context(slot.context, slot.lengths_G)
        total = loss + auxiliary_loss(problem.losses, leaves, context) if problem.losses else loss
        return total, (loss, score.hits_GT, score.leads_GT)

    # Score: Eq. 1 and its gradient, and the hits that Eq. 2 counts, at the vectors as they are. Of the losses beside
    # Eq. 1 only the gradient is used.
    (total, (loss, hits_GT, leads_GT)), gradient = jax.value_and_grad(loss_of, has_aux=True)(slot.leaves)
    accuracy_G = accuracies(hits_GT, slot.lengths_G)
    accuracy = group_accuracy(accuracy_G, slot.lengths_G)
    worth, reached = _worth(problem.margin, slot.lengths_G, accuracy_G, hits_GT, leads_GT)

    # Keep: before the update, since the vectors after it have no score yet.
    moved = _note_progress(problem, slot, _keep_if_best(slot, loss, worth), loss)
    status = _status_after(problem, moved, loss, reached)

    # Update: the optimiser sees this group alone, because it is vmapped with the rest.
    extras = {}
    if isinstance(problem.optimizer, optax.GradientTransformationExtraArgs):
        extras = {"value": total, "grad": gradient, "value_fn": lambda leaves: loss_of(leaves)[0]}
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


def _score(
    network: Network,
    scheme: Scheme,
    frozen: Frozen,
    slot: Slot,
    leaves: Leaves,
    temperature: float = 1.0,
    margin: float | None = None,
) -> Score:
    """What the texts of a slot score under given vectors, behind their prefixes."""
    past = frozen.past if slot.past is None else slot.past
    return score_group(
        network, scheme, frozen.params, leaves, slot.tokens_GT, slot.lengths_G, temperature, past, margin
    )


def _worth(
    margin: float, lengths_G: Array, accuracy_G: Array, hits_GT: Array, leads_GT: Array | None
) -> tuple[Array, Array]:
    """By what vectors are kept, (), and whether they are what was asked for, () bool.

    Without a margin: the accuracy, and whether it is 1, the paper's early stop. With one, an exact group is worth 1 and
    the share of its tokens that lead by the margin, so that exact vectors are never given up for others that are not.
    """
    accuracy, exact = group_accuracy(accuracy_G, lengths_G), jnp.all(accuracy_G == 1)
    if not margin:
        return accuracy, exact
    assert leads_GT is not None
    led_G = accuracies(hits_GT & (leads_GT >= margin), lengths_G)
    return jnp.where(exact, 1 + group_accuracy(led_G, lengths_G), accuracy), jnp.all(led_G == 1)


def _keep_if_best(slot: Slot, loss: Array, worth: Array) -> Slot:
    """The slot with its vectors as the best ones, if no earlier ones are worth more; ties go to the lower loss."""
    better = jnp.isfinite(loss) & (
        (worth > slot.best_accuracy) | (worth == slot.best_accuracy) & (loss < slot.best_loss)
    )
    return slot._replace(
        best=_choose(better, slot.leaves, slot.best),
        best_accuracy=jnp.where(better, worth, slot.best_accuracy),
        best_loss=jnp.where(better, loss, slot.best_loss),
        best_step=jnp.where(better, slot.steps, slot.best_step),
    )


def _note_progress(problem: FitProblem, before: Slot, slot: Slot, loss: Array) -> Slot:
    """The slot with the step of its last progress, from which patience is counted."""
    if problem.progress is None:
        progressed = slot.best_accuracy > before.best_accuracy
    else:
        assert slot.milestone is not None
        progressed = ~(loss > problem.progress * slot.milestone)  # the first loss is one: the milestone was infinite
        slot = slot._replace(milestone=jnp.where(progressed, loss, slot.milestone))
    return slot._replace(improved_step=jnp.where(progressed, slot.steps, slot.improved_step))


def _status_after(problem: FitProblem, slot: Slot, loss: Array, reached: Array) -> Array:
    """Status after evaluation number `slot.steps`, counted from 0: failed before solved before given up."""
    given_up = slot.steps + 1 >= slot.budget
    if problem.patience is not None:
        by_length = problem.patience_per_token * jnp.max(slot.lengths_G)
        allowed = jnp.maximum(problem.patience, jnp.maximum(by_length, problem.patience_growth * slot.improved_step))
        given_up |= slot.steps - slot.improved_step >= allowed
    status = jnp.where(given_up, EXHAUSTED, RUNNING)
    status = jnp.where(reached, SOLVED, status)
    return jnp.where(jnp.isfinite(loss), status, FAILED).astype(jnp.int32)


def chunk(problem: FitProblem, length: int, frozen: Frozen, slots: Slot) -> tuple[Slot, Info]:
    """Up to `length` steps of all slots, fewer once none is running; the info is of each slot's last step."""

    def unfinished(carry: tuple[Array, Slot, Info]) -> Array:
        done, slots, _ = carry
        return (done < length) & jnp.any(slots.status == RUNNING)

    def body(carry: tuple[Array, Slot, Info]) -> tuple[Array, Slot, Info]:
        done, slots, info = carry
        running = slots.status == RUNNING
        slots, newest = jax.vmap(functools.partial(step, problem, frozen))(slots)
        info = jax.vmap(_choose)(running, newest, info)
        return done + 1, slots, info._replace(status=slots.status, steps=slots.steps)

    nothing = jnp.full(slots.status.shape, jnp.nan, jnp.float32)
    leaves = slots.leaves if problem.record else {}
    info = Info(status=slots.status, steps=slots.steps, loss=nothing, accuracy=nothing, leaves=leaves)
    _, slots, info = jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots, info))
    return slots, info


def harvest(problem: FitProblem, frozen: Frozen, slots: Slot, which_K: Array) -> tuple[Slot, Harvest]:
    """Decode the best vectors of some slots; a solved slot that the decode program refutes runs on.

    In float32 the decode program nearly always confirms. In bfloat16 leads can differ between this program and the step
    by a few roundings of a logit. There is no allowance for that: the vectors of a solved slot lead by the margin in
    this program, and a refuted slot, whose loss pushes on, is confirmed after another step or two. Attention is plain,
    as it is wherever stored vectors are decoded.

    Args:
      problem, frozen, slots: as in `chunk`.
      which_K: (K,) int32 indices of slots; an index beyond the last slot fills a place that is not needed.

    Returns:
      The slots, and K harvests, of which those of unneeded places are to be ignored.
    """
    network = dataclasses.replace(problem.network, attention="plain")

    def one(slot: Slot) -> Harvest:
        score = _score(network, problem.scheme, frozen, slot, slot.best, margin=0.0)
        assert score.leads_GT is not None
        accuracy_G = accuracies(score.hits_GT, slot.lengths_G)
        worth, reached = _worth(problem.margin, slot.lengths_G, accuracy_G, score.hits_GT, score.leads_GT)
        refuted = (slot.status == SOLVED) & ~reached
        resumed = jnp.where(slot.steps >= slot.budget, EXHAUSTED, RUNNING).astype(jnp.int32)
        slot = slot._replace(
            past=None,
            status=jnp.where(refuted, resumed, slot.status),
            best_accuracy=jnp.where(refuted, worth, slot.best_accuracy),
        )
        margin_G = jnp.min(score.leads_GT, axis=-1)
        return Harvest(slot=slot, accuracy_G=accuracy_G, predicted_GT=score.predicted_GT, margin_G=margin_G)

    # A gather clips an index beyond the end and a scatter drops it, so an unneeded place changes no slot.
    wanted = slots._replace(leaves={}, opt_state=None, context={})
    found = jax.vmap(one)(jax.tree.map(lambda array: array.at[which_K].get(mode="clip"), wanted))
    status = slots.status.at[which_K].set(found.slot.status, mode="drop")
    best_accuracy = slots.best_accuracy.at[which_K].set(found.slot.best_accuracy, mode="drop")
    return slots._replace(status=status, best_accuracy=best_accuracy), found


def refill(problem: FitProblem, frozen: Frozen, slots: Slot, offer: Offer) -> tuple[Slot, Array]:
    """Begin the offered groups in slots that are not running; returns the slots, and which of them took their group."""
    begin = jax.vmap(functools.partial(fresh, problem))
    new = begin(offer.budget, offer.tokens_GT, offer.lengths_G, offer.ids_G4, offer.start)
    return restore(problem, frozen, slots, offer.offered, new, offer.prefixes, offer.context)


def restore(
    problem: FitProblem,
    frozen: Frozen,
    slots: Slot,
    offered: Array,
    saved: Slot,
    prefixes: Prefixes | None,
    context: dict[str, Array],
) -> tuple[Slot, Array]:
    """As `refill`, with slots that were saved, without `past` and `context`: their groups resume where they were."""
    saved = saved._replace(past=pasts_of(problem.network, frozen.params, prefixes), context=context)
    # A slot may still run, though it was offered a group: the host offers before it knows what a harvest refuted.
    taken = offered & (slots.status != RUNNING)
    return jax.vmap(_choose)(taken, saved, slots), taken


def _choose(condition: Array, new: Any, old: Any) -> Any:
    """The tree `new` where the condition () holds, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)

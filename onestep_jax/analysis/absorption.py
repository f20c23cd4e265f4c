"""What each further token of a text costs: steps to absorb it, against its surprisal.

A text grows by one token at a time. The vectors go on from those that emit the prefix before, so the evaluations spent
between one prefix and the next are the price of the token between them (compare *Progressive Cramming*,
D. Tarasov et al.).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from onestep_jax.analysis.failures import spearman
from onestep_jax.errors import UserError, check_known
from onestep_jax.fitting.optimizers import PRESETS, Optimizer, Preset
from onestep_jax.model.decoder import Model, Params, input_scale
from onestep_jax.model.likelihood import beginning, text_nats
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.schemes import Array, Leaves, OneStep, draw
from onestep_jax.tokens import check_tokens, id_words, text_ids

BATCH = 32
CONSTANT = Optimizer("adamw", {"learning_rate": 0.01, "b1": 0.9, "b2": 0.9, "weight_decay": 0.01})


class Absorbed(NamedTuple):
    """The price of each token of each text; arrays are (texts, T), T tokens in the longest.

    Attributes:
      evaluations: gradient evaluations, each with an update, between the first vectors that gave the prefix before
        exactly and the first that gave the prefix up to this token; 0 for a token that came of itself. A token that was
        given up has its budget here. −1 for those after it, those before `first`, and beyond a text's end.
      solved: whether the prefix up to this token became exact.
      nats: −ln P(t_i | t_<i) under the model run autoregressively; NaN beyond a text's end, and for the first token
        where the tokenizer has no BOS.
      lengths: (texts,) tokens of each text.
    """

    evaluations: np.ndarray
    solved: np.ndarray
    nats: np.ndarray
    lengths: np.ndarray

    @property
    def horizon(self) -> np.ndarray:
        """(texts,) length of the longest exact prefix."""
        tokens_T = np.arange(1, self.solved.shape[1] + 1)
        return np.max(np.where(self.solved, tokens_T[None], 0), axis=1)


class Correlations(NamedTuple):
    """Spearman's rank correlation of a token's evaluations with its nats; a token given up counts with its budget.

    Attributes:
      pooled: over the tokens of all texts.
      partial: the same after what goes with the token's position is taken off both (partial rank correlation): later
        tokens cost more for a reason of their own.
      within: mean over the texts of the correlation within one.
      position: of evaluations with position, pooled.
      tokens: how many tokens.
    """

    pooled: float
    partial: float
    within: float
    position: float
    tokens: int


class _State(NamedTuple):
    """One growing text; every field gains a leading text axis.

    Attributes:
      leaves: leaf → (D,).
      opt_state: of this text alone.
      target: () int32, tokens asked for now.
      spent: () int32, updates made for the token asked for now.
      running: () bool.
      evaluations_T: (T,) int32, see `Absorbed`.
      solved_T: (T,) bool.
    """

    leaves: Leaves
    opt_state: Any
    target: Array
    spent: Array
    running: Array
    evaluations_T: Array
    solved_T: Array


@dataclasses.dataclass(frozen=True)
class _Growth:
    """What stays the same while texts grow: see `absorb`."""

    model: Model
    optimizer: optax.GradientTransformation
    scale: float
    temperature: float
    steps: int
    first: int
    restart: bool


def absorb(
    model: Model,
    tokens: Sequence[Any],
    *,
    first: int = 1,
    last: int | None = None,
    steps: int = 500,
    preset: str | Preset = "fast",
    optimizer: Optimizer | optax.GradientTransformation = CONSTANT,
    restart: bool = False,
    seed: int = 0,
    chunk: int = 50,
    batch: int = BATCH,
) -> Absorbed:
    """Count the gradient evaluations that each further token of each text takes, with vectors `e` and `m` of its own.

    The learning rate is constant by default: a schedule would give each token another rate. Padded to one length, all
    texts and prefixes run in one compiled program.

    Args:
      model: the frozen model.
      tokens: token ids of each text, without special tokens.
      first: length of the first prefix that is asked for.
      last: length of the last one; None for the whole text.
      steps: budget of one token (of the first prefix, too), in gradient evaluations; a text whose budget is spent ends.
      preset: gives the scale of the start vectors and the temperature of the loss.
      optimizer: any optax optimiser, or `Optimizer` for one by name.
      restart: begin each token with a fresh state of the optimiser instead of going on with the state there is.
      seed: of the start vectors.
      chunk: steps between looks of the host.
      batch: texts at a time.

    Raises:
      UserError: for texts that the model cannot have, or lengths and numbers out of range.
    """
    for name, value in (
        ("steps", steps),
        ("chunk", chunk),
        ("batch", batch),
        ("first", first),
        ("last", first if last is None else last),
    ):
        if value < 1:
            raise UserError(f"{name} = {value}: expected at least 1")
    texts = [ids[:last] for ids in check_tokens(tokens, model.config.vocab_size, None)]
    check_tokens(texts, None, model.config.context)
    if isinstance(preset, str):
        check_known("preset", [preset], PRESETS)
        preset = PRESETS[preset]
    if first > min(map(len, texts)):
        raise UserError(f"first = {first}: the shortest text has {min(map(len, texts))} tokens; give a smaller one")
    built = optimizer.build() if isinstance(optimizer, Optimizer) else optimizer
    scale = preset.scale * (1.0 if preset.start == "normal" else input_scale(model))
    growth = _Growth(model, built, scale, preset.temperature, steps, first, restart)
    ids = np.stack([id_words(name, seed) for name in text_ids(texts)])
    lengths = np.array([len(text) for text in texts], np.int32)
    padded = np.stack([np.pad(text, (0, lengths.max() - len(text))) for text in texts])
    evaluations, solved = _grow(growth, padded, lengths, ids, chunk, batch)
    return Absorbed(evaluations, solved, _nats(model, texts, padded.shape[1]), lengths)


def _grow(
    growth: _Growth, padded: np.ndarray, lengths: np.ndarray, ids: np.ndarray, chunk: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluations and whether solved, (texts, T) each, batch by batch."""
    advance = jax.jit(jax.vmap(partial(_chunk, growth, chunk), in_axes=(None, 0, 0, 0)))
    parts = []
    for start in range(0, len(padded), batch):
        chosen = np.arange(len(padded))[start : start + batch]
        rows = np.resize(chosen, min(batch, len(padded)))
        state = jax.vmap(partial(_begin, growth, padded.shape[1]))(jnp.asarray(ids[rows]))
        while np.any(jax.device_get(state.running)):
            state = advance(growth.model.params, state, padded[rows], lengths[rows])
        parts.append([np.asarray(array)[: len(chosen)] for array in (state.evaluations_T, state.solved_T)])
    evaluations, solved = (np.concatenate(column) for column in zip(*parts, strict=True))
    return evaluations, solved


def correlations(absorbed: Absorbed) -> Correlations:
    """How evaluations go with nats over the tokens that were asked for one by one; the first prefix is left out.

    Args:
      absorbed: see `absorb`.
    """
    tried = (absorbed.evaluations >= 0) & ~np.isnan(absorbed.nats)
    started = np.argmax(absorbed.evaluations >= 0, axis=1)
    position = np.broadcast_to(np.arange(tried.shape[1])[None], tried.shape)
    tried &= position > started[:, None]
    columns = absorbed.evaluations[tried], absorbed.nats[tried], position[tried]
    cost_nats, cost_position, nats_position = (spearman(columns[a], columns[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    left = (1 - cost_position**2) * (1 - nats_position**2)
    partial_ = (cost_nats - cost_position * nats_position) / np.sqrt(left) if left > 0 else float("nan")
    by_text = [
        spearman(e[rows], n[rows]) for e, n, rows in zip(absorbed.evaluations, absorbed.nats, tried, strict=True)
    ]
    known = [rho for rho in by_text if not np.isnan(rho)]
    within = float(np.mean(known)) if known else float("nan")
    return Correlations(cost_nats, float(partial_), within, cost_position, int(tried.sum()))


def _begin(growth: _Growth, positions: int, id_4: Array) -> _State:
    """A text at its start vectors, asked for its first prefix."""
    leaves = {
        name: leaf[0] for name, leaf in draw(OneStep(), id_4[None], growth.model.embed_width, growth.scale).items()
    }
    return _State(
        leaves=leaves,
        opt_state=growth.optimizer.init(leaves),
        target=jnp.int32(growth.first),
        spent=jnp.int32(0),
        running=jnp.bool_(True),
        evaluations_T=jnp.full(positions, -1, jnp.int32),
        solved_T=jnp.zeros(positions, bool),
    )


def _chunk(growth: _Growth, count: int, params: Params, state: _State, tokens_T: Array, length: Array) -> _State:
    return jax.lax.fori_loop(0, count, lambda _, state: _step(growth, params, state, tokens_T, length), state)


def _step(growth: _Growth, params: Params, state: _State, tokens_T: Array, length: Array) -> _State:
    """Score, note the prefixes that are exact, ask for the next token, update.

    The forward pass gives the hits of all positions. Once the prefix asked for is exact its gradient is of no more
    use: the vectors stay, and the next step asks for the first token that they do not give.
    """

    def loss_of(leaves: Leaves) -> tuple[Array, Array]:
        nats, _, predicted_T = score_text(
            growth.model, OneStep(), params, leaves, tokens_T, state.target, growth.temperature
        )
        return nats, predicted_T

    (loss, predicted_T), grads = jax.value_and_grad(loss_of, has_aux=True)(state.leaves)
    place_T = jnp.arange(len(tokens_T))
    exact = jnp.minimum(jnp.min(jnp.where(predicted_T == tokens_T, len(tokens_T), place_T)), length)
    reached = exact >= state.target
    given_up = ~reached & ((state.spent >= growth.steps) | ~jnp.isfinite(loss))

    updates, opt_state = growth.optimizer.update(grads, state.opt_state, state.leaves)
    leaves: Any = optax.apply_updates(state.leaves, updates)
    rest = growth.optimizer.init(state.leaves) if growth.restart else state.opt_state
    leaves, opt_state = jax.tree.map(
        lambda moved, stayed: jnp.where(reached, stayed, moved), (leaves, opt_state), (state.leaves, rest)
    )
    asked_T = place_T == state.target - 1
    for_free_T = (place_T >= state.target) & (place_T < exact)
    noted_T = jnp.where((reached | given_up) & asked_T, state.spent, state.evaluations_T)
    after = _State(
        leaves=leaves,
        opt_state=opt_state,
        target=jnp.where(reached, exact + 1, state.target),
        spent=jnp.where(reached, 0, state.spent + 1),
        running=~given_up & ~(exact >= length),
        evaluations_T=jnp.where(reached & for_free_T, 0, noted_T),
        solved_T=state.solved_T | (reached & (asked_T | for_free_T)),
    )
    return jax.tree.map(lambda new, old: jnp.where(state.running, new, old), after, state)


def _nats(model: Model, texts: Sequence[np.ndarray], positions: int) -> np.ndarray:
    """(texts, positions) nats of each token, NaN where there are none."""
    table = np.full((len(texts), positions), np.nan, np.float32)
    skipped = 0 if beginning(model) is not None else 1
    for row, one in zip(table, text_nats(model, texts), strict=True):
        row[skipped : skipped + len(one.nats)] = one.nats
    return table

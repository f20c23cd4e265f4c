"""Gradient evaluations that each further token of a text takes, against its surprisal.

A text grows by one token at a time. Training for a prefix continues from the vectors that give the prefix before it, so
the evaluations between two prefixes are the cost of the token between them (compare *Progressive Cramming*, D. Tarasov
et al.).
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

from onestep_jax.analysis.samples import spearman
from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import UserError, check_known, check_least
from onestep_jax.fitting.optimizers import PRESETS, Optimizer, Preset
from onestep_jax.fitting.slots import Frozen
from onestep_jax.model.decoder import Model, input_scale
from onestep_jax.model.likelihood import beginning, text_nats
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.prefixes import prefix_of, resolve_prefix
from onestep_jax.prototokens.schemes import Array, Leaves, OneStep, draw
from onestep_jax.tokens import batches, check_tokens, id_words, text_ids

BATCH = 32
CONSTANT = Optimizer("adamw", {"learning_rate": 0.01, "b1": 0.9, "b2": 0.9, "weight_decay": 0.01})


class Absorbed(NamedTuple):
    """The cost of each token of each text; arrays are (texts, T), where the longest text has T tokens.

    Attributes:
      evaluations: int32, gradient evaluations, each with an update, between the first vectors that gave the prefix
        before this token exactly and the first that gave the prefix up to this token. It is 0 where the same vectors
        gave both, and the whole budget for a token that was given up. It is −1 for the tokens after that one, for those
        before `first`, and beyond a text's end.
      solved: bool, whether the prefix up to this token became exact.
      nats: float32, −ln P(t_i | t_<i) under the model run autoregressively; NaN beyond a text's end, and for the first
        token where the tokenizer has no BOS.
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
      partial: over the same tokens, controlled for position (partial rank correlation): later tokens cost more
        whatever their nats.
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
    """One growing text; under `vmap` every field has a leading text axis.

    Attributes:
      leaves: leaf → (D,).
      opt_state: of this text alone.
      target: () int32, length of the prefix that is trained now.
      spent: () int32, updates made for its last token.
      running: () bool, whether there is a token left to try.
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
    """Settings of a run, see `absorb`; `scale` is the standard deviation of the start vectors, `prefix` token ids."""

    model: Model
    optimizer: optax.GradientTransformation
    scale: float
    temperature: float
    steps: int
    first: int
    restart: bool
    prefix: tuple[int, ...]


@pinned
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
    prefix: str | Sequence[int] | None = None,
    seed: int = 0,
    chunk: int = 50,
    batch: int = BATCH,
) -> Absorbed:
    """Count the gradient evaluations that each further token takes; every text has its own `e` and `m`.

    The learning rate is constant by default: a schedule would give each token another rate. All texts are padded to one
    length, so that one compiled program serves all texts and prefixes.

    Args:
      model: the frozen model.
      tokens: token ids of each text, without special tokens.
      first: tokens of the first prefix.
      last: tokens of the last prefix; None for the whole text.
      steps: budget of one token, and of the first prefix, in gradient evaluations; a text ends when one is used up.
      preset: gives the scale of the start vectors, the temperature of the loss and the prefix.
      optimizer: any optax optimiser, or `Optimizer` for one by name.
      restart: initialise the optimiser's state again for each token, instead of keeping it.
      prefix: what stands before the vectors, see `prefixes.prefix_tokens`; None for what the preset says.
      seed: of the start vectors.
      chunk: steps between two checks whether any text is still running.
      batch: texts at a time.

    Raises:
      UserError: for token ids that the model does not have, texts that are too long, or numbers out of range.
    """
    check_least(1, steps=steps, chunk=chunk, batch=batch, first=first, last=first if last is None else last)
    texts = [ids[:last] for ids in check_tokens(tokens, model.config.vocab_size, None)]
    if isinstance(preset, str):
        check_known("preset", [preset], PRESETS)
        preset = PRESETS[preset]
    before = prefix_of(resolve_prefix(OneStep(prefix=prefix), model, preset.prefix))  # pyright: ignore[reportArgumentType]
    check_tokens(texts, None, model.config.context - len(before))
    if first > min(map(len, texts)):
        raise UserError(f"first = {first}: the shortest text has {min(map(len, texts))} tokens; give a smaller one")
    growth = _Growth(
        model=model,
        optimizer=optimizer.build() if isinstance(optimizer, Optimizer) else optimizer,
        scale=preset.scale * (1.0 if preset.start == "normal" else input_scale(model)),
        temperature=preset.temperature,
        steps=steps,
        first=first,
        restart=restart,
        prefix=tuple(before.tolist()),
    )
    evaluations, solved = _grow(growth, texts, seed, chunk, batch)
    lengths = np.array([len(text) for text in texts], np.int32)
    return Absorbed(evaluations=evaluations, solved=solved, nats=_nats(model, texts, before), lengths=lengths)


def _grow(
    growth: _Growth, texts: Sequence[np.ndarray], seed: int, chunk: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluations and whether solved, (texts, T) each."""
    advance = jax.jit(jax.vmap(partial(_chunk, growth, chunk), in_axes=(None, 0, 0, 0)))
    ids = np.stack([id_words(name, seed) for name in text_ids(texts)])
    lengths = np.array([len(text) for text in texts], np.int32)
    longest = int(lengths.max())
    model = growth.model
    frozen = Frozen(model.params, model.past(model.params, jnp.array(growth.prefix)) if growth.prefix else None)
    parts = []
    for chosen in batches([longest] * len(texts), batch):  # one padded length, and so one program
        tokens_BT = chosen.pad(texts)
        state = jax.vmap(partial(_begin, growth, longest))(jnp.asarray(ids[chosen.rows]))
        while np.any(jax.device_get(state.running)):
            state = advance(frozen, state, tokens_BT, lengths[chosen.rows])
        evaluations_BT, solved_BT = np.asarray(state.evaluations_T), np.asarray(state.solved_T)
        parts.append((evaluations_BT[: chosen.used], solved_BT[: chosen.used]))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def correlations(absorbed: Absorbed) -> Correlations:
    """Correlate evaluations with nats, over all tokens after the first prefix.

    Args:
      absorbed: see `absorb`.
    """
    tried = (absorbed.evaluations >= 0) & ~np.isnan(absorbed.nats)
    started = np.argmax(absorbed.evaluations >= 0, axis=1)
    position = np.broadcast_to(np.arange(tried.shape[1])[None], tried.shape)
    tried &= position > started[:, None]
    cost, nats, place = absorbed.evaluations[tried], absorbed.nats[tried], position[tried]
    cost_nats, cost_place, nats_place = spearman(cost, nats), spearman(cost, place), spearman(nats, place)
    # Partial correlation: (ρ_cn − ρ_cp ρ_np) / √((1 − ρ_cp²) (1 − ρ_np²)), for cost c, nats n and position p.
    left = (1 - cost_place**2) * (1 - nats_place**2)
    by_text = [
        spearman(e[rows], n[rows]) for e, n, rows in zip(absorbed.evaluations, absorbed.nats, tried, strict=True)
    ]
    known = [rho for rho in by_text if not np.isnan(rho)]
    return Correlations(
        pooled=cost_nats,
        partial=float((cost_nats - cost_place * nats_place) / np.sqrt(left)) if left > 0 else float("nan"),
        within=float(np.mean(known)) if known else float("nan"),
        position=cost_place,
        tokens=int(tried.sum()),
    )


def _begin(growth: _Growth, positions: int, id_4: Array) -> _State:
    """A text at its start vectors, about to be trained for its first prefix."""
    drawn = draw(OneStep(), id_4[None], growth.model.embed_width, growth.scale)
    leaves = {name: leaf[0] for name, leaf in drawn.items()}
    return _State(
        leaves=leaves,
        opt_state=growth.optimizer.init(leaves),
        target=jnp.int32(growth.first),
        spent=jnp.int32(0),
        running=jnp.bool_(True),
        evaluations_T=jnp.full(positions, -1, jnp.int32),
        solved_T=jnp.zeros(positions, bool),
    )


def _chunk(growth: _Growth, count: int, frozen: Frozen, state: _State, tokens_T: Array, length: Array) -> _State:
    return jax.lax.fori_loop(0, count, lambda _, state: _step(growth, frozen, state, tokens_T, length), state)


def _step(growth: _Growth, frozen: Frozen, state: _State, tokens_T: Array, length: Array) -> _State:
    """Score, note which prefixes are exact, move on to the next token if the target is reached, else update.

    One forward pass tells for all positions whether they are right. When the target prefix is exact, this step keeps
    the vectors, and the next step trains them for the first token that they do not give.
    """

    def loss_of(leaves: Leaves) -> tuple[Array, Array]:
        score = score_text(
            growth.model,
            OneStep(),
            frozen.params,
            leaves,
            tokens_T,
            state.target,
            growth.temperature,
            past=frozen.past,
        )
        return score.nats, score.predicted_T

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
    tried_T = place_T == state.target - 1
    for_free_T = (place_T >= state.target) & (place_T < exact)
    noted_T = jnp.where((reached | given_up) & tried_T, state.spent, state.evaluations_T)
    after = _State(
        leaves=leaves,
        opt_state=opt_state,
        target=jnp.where(reached, exact + 1, state.target),
        spent=jnp.where(reached, 0, state.spent + 1),
        running=~given_up & ~(exact >= length),
        evaluations_T=jnp.where(reached & for_free_T, 0, noted_T),
        solved_T=state.solved_T | (reached & (tried_T | for_free_T)),
    )
    return jax.tree.map(lambda new, old: jnp.where(state.running, new, old), after, state)


def _nats(model: Model, texts: Sequence[np.ndarray], prefix: np.ndarray) -> np.ndarray:
    """(texts, T) nats of each token behind a prefix, NaN where there are none."""
    table = np.full((len(texts), max(map(len, texts))), np.nan, np.float32)
    skipped = 0 if len(prefix) or beginning(model) is not None else 1
    for row, one in zip(table, text_nats(model, texts, prefixes=[prefix] * len(texts)), strict=True):
        row[skipped : skipped + len(one.nats)] = one.nats
    return table

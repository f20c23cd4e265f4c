"""Training of an encoder: one compiled update, run over windows that its number names."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.devices.placement import local_devices
from onestep_jax.encoder.design import Design, Encoder, Weights
from onestep_jax.encoder.encoding import figures_of
from onestep_jax.encoder.growing import grown_weights
from onestep_jax.encoder.objective import Figures, Program, init_weights, mean_loss
from onestep_jax.encoder.recipe import Recipe, Update
from onestep_jax.encoder.windows import Pool
from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Array, Model, Params

VALIDATION_TEXTS = 128
_TEXTS = "texts"


class State(NamedTuple):
    """What the next update needs.

    Attributes:
      weights: of the encoder.
      opt_state: of the optimiser.
      update: number of the next update.
      seconds: spent so far.
    """

    weights: Weights
    opt_state: Any
    update: int
    seconds: float


class Report(NamedTuple):
    """Figures of an update, for a progress bar and the log.

    Attributes:
      update, updates: made, and in all.
      length, corrections: of its windows, and its steps.
      nats, accuracy: after its last correction, on the windows of the update; nats at temperature 1.
      tokens_per_second: read and emitted, since the last report.
      validation: (length, figures) on held-out windows, where they were taken; else None.
    """

    update: int
    updates: int
    length: int
    corrections: int
    nats: float
    accuracy: float
    tokens_per_second: float
    validation: tuple[int, Figures] | None = None


class Trainer:
    """Makes the updates of a training.

    The windows of a batch are split over the local devices, and the weights are on each; the gradient is their mean,
    so one device and many make the same updates, up to the order of float32 sums.

    Args:
      model: the frozen decoder.
      design: of the encoder.
      recipe: of the training.
      train, validation: where windows come from.
      optimizer: instead of the recipe's.
      start: an encoder whose weights the training begins with.

    Raises:
      UserError: for a batch that cannot be divided so.
    """

    def __init__(
        self,
        model: Model,
        design: Design,
        recipe: Recipe,
        train: Pool,
        validation: Pool,
        optimizer: optax.GradientTransformation | None = None,
        start: Encoder | None = None,
    ):
        self._start = start
        self.model, self.design, self.recipe, self._train = model, design, recipe, train
        self._optimizer = optimizer or recipe.optimizer()
        self._program = Program(model.network, design, recipe.first_order, recipe.remat)
        devices = local_devices()
        each = len(devices) * recipe.accumulate
        if recipe.batch % each:
            told = f"{len(devices)} devices and {recipe.accumulate} parts"
            raise UserError(f"batch = {recipe.batch}: expected a multiple of {each}, for {told}")
        mesh = Mesh(np.array(devices), (_TEXTS,))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(None, _TEXTS))
        self._frozen = jax.device_put(model.params, self._everywhere)
        held = np.random.default_rng(0)
        self._held_out = validation.windows(held, VALIDATION_TEXTS, design.length)

    @pinned
    def begin(self) -> State:
        """The state before the first update."""
        key = jax.random.key(self.recipe.seed)
        weights = init_weights(self.model.network, self.design, self.model.params, key)
        if self._start is not None:
            weights = jax.tree.map(jnp.asarray, grown_weights(self._start, weights))
        return self.place(State(weights, self._optimizer.init(weights), 0, 0.0))

    def place(self, state: State) -> State:
        """A state with its arrays on the devices."""
        weights, opt_state = jax.device_put((state.weights, state.opt_state), self._everywhere)
        return State(weights, opt_state, state.update, state.seconds)

    def windows(self, number: int, length: int) -> np.ndarray:
        """Windows of an update, (parts, texts of a part, length) int32; a function of seed and number alone."""
        rng = np.random.default_rng([self.recipe.seed, number])
        drawn = self._train.windows(rng, self.recipe.batch, length)
        return drawn.reshape(self.recipe.accumulate, -1, length)

    def next(self, state: State) -> Update:
        """What the update after a state is made on."""
        return self.recipe.update(state.update, self.design)

    @pinned
    def step(self, state: State, kind: Update | None = None) -> tuple[State, Array, Figures]:
        """The state after one update, of a kind that is not its turn if one is given; its loss and figures."""
        began = time.perf_counter()
        length, corrections = kind or self.next(state)
        tokens = jax.device_put(self.windows(state.update, length), self._split)
        weights, opt_state, loss, figures = _update(
            self._program, self._optimizer, corrections, self._frozen, state.weights, state.opt_state, tokens
        )
        jax.block_until_ready(loss)
        seconds = state.seconds + time.perf_counter() - began
        return State(weights, opt_state, state.update + 1, seconds), loss, figures

    @pinned
    def validate(self, weights: Weights) -> Figures:
        """Figures on the held-out windows, after 0 to K corrections."""
        return figures_of(self._program, self._frozen, weights, self._held_out, self.design.corrections)

    def run(
        self,
        state: State,
        *,
        each: Callable[[State, Report | None], bool],
        every: int = 10,
        validate_every: int = 200,
    ) -> State:
        """Make updates until the last one, or until `each` returns False.

        Args:
          state: where to begin.
          each: called after each update, with a report where one is due.
          every, validate_every: updates between reports, and between those with figures on held-out windows.
        """
        updates, began, tokens = self.recipe.updates, time.perf_counter(), 0
        while state.update < updates:
            length, corrections = self.next(state)
            state, _, figures = self.step(state)
            tokens += self.recipe.batch * length
            validated = state.update % validate_every == 0 or state.update == updates
            report = None
            if state.update % every == 0 or validated:
                rate = tokens / (time.perf_counter() - began)
                report = Report(
                    update=state.update,
                    updates=updates,
                    length=length,
                    corrections=corrections,
                    nats=float(figures.nats_K[-1]),
                    accuracy=float(figures.accuracy_K[-1]),
                    tokens_per_second=rate,
                    validation=(self.design.length, self.validate(state.weights)) if validated else None,
                )
                began, tokens = time.perf_counter(), 0
            if not each(state, report):
                break
        return state


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def _update(
    program: Program,
    optimizer: optax.GradientTransformation,
    corrections: int,
    frozen: Params,
    weights: Weights,
    opt_state: Any,
    tokens_ABT: Array,
) -> tuple[Any, Any, Array, Figures]:
    """Weights and state of the optimiser after an update; loss and figures of the update."""

    def loss(weights: Weights, tokens_BT: Array) -> tuple[Array, Figures]:
        return mean_loss(program, frozen, weights, tokens_BT, corrections)

    def part(total: Any, tokens_BT: Array) -> tuple[Any, None]:
        made = jax.value_and_grad(loss, has_aux=True)(weights, tokens_BT)
        return jax.tree.map(jnp.add, total, made), None

    if len(tokens_ABT) == 1:
        (value, figures), gradient = jax.value_and_grad(loss, has_aux=True)(weights, tokens_ABT[0])
    else:
        shape = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), weights, tokens_ABT[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
        total, _ = jax.lax.scan(part, zeros, tokens_ABT)
        (value, figures), gradient = jax.tree.map(lambda leaf: leaf / len(tokens_ABT), total)
    changes, opt_state = optimizer.update(gradient, opt_state, weights)
    return optax.apply_updates(weights, changes), opt_state, value, figures

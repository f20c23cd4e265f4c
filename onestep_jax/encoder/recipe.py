"""The settings of a training, and what each update does; all of it depends on the number of the update alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

from onestep_jax.encoder.design import Design
from onestep_jax.errors import RATE, SEED, SIZE, STEPS, Real, check_kind, check_known

SHARE = Real(0, 1)


class Update(NamedTuple):
    """What an update is made on.

    Attributes:
      length: tokens of its windows.
      corrections: learned steps that it unrolls.
    """

    length: int
    corrections: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an encoder is trained.

    Attributes:
      updates: of the weights.
      batch: windows of an update.
      accumulate: parts that these are taken in, one after the other, for want of memory.
      lr: peak of the learning rate, reached after `warmup` updates and falling along a cosine to a twentieth.
      warmup: updates.
      growth: share of the updates in which the length of the windows doubles from 4 to its greatest. After that three
        of four updates are of the greatest length, and the others of the shorter ones in turn.
      reading: share of the updates, the first ones, that train the reader alone; without a reader there are none.
      first_order: take the gradients inside corrections as constants: no second derivatives, less memory and time.
      remat: keep nothing inside a correction for the derivative, and compute it again: memory of one correction instead
        of K, for more time.
      seed: of first weights and windows.

    Raises:
      UserError: for a value that cannot be.
    """

    updates: int = 2000
    batch: int = 64
    accumulate: int = 1
    lr: float = 2e-3
    warmup: int = 50
    growth: float = 0.3
    reading: float = 0.3
    first_order: bool = False
    remat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        STEPS.check("updates", self.updates)
        SIZE.check("batch", self.batch)
        SIZE.check("accumulate", self.accumulate)
        RATE.check("lr", self.lr)
        STEPS.check("warmup", self.warmup)
        SHARE.check("growth", self.growth)
        SHARE.check("reading", self.reading)
        check_kind("True or False", bool, first_order=self.first_order, remat=self.remat)
        SEED.check("seed", self.seed)

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Recipe:
        """The recipe of a `describe()`.

        Raises:
          UserError: for a key that this version does not know.
        """
        check_known("key of a recipe", described, [field.name for field in dataclasses.fields(cls)])
        return cls(**described)

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with clipped gradients, without weight decay; the same object for the same recipe."""
        return _adamw(self.lr, min(self.warmup, self.updates), self.updates)

    def update(self, number: int, design: Design) -> Update:
        """What the update of a number, from 0, is made on."""
        lengths, longest = design.lengths, design.length
        done = number / self.updates
        if done < self.growth:
            length = lengths[min(int(done / self.growth * len(lengths)), len(lengths) - 1)]
        elif number % 4 or len(lengths) == 1:
            length = longest
        else:
            length = lengths[number // 4 % (len(lengths) - 1)]
        alone = design.reader != "none" and done < self.reading
        return Update(length, 0 if alone else design.corrections)


@functools.cache
def _adamw(lr: float, warmup: int, updates: int) -> optax.GradientTransformation:
    """Made once, as compiled updates are kept by the object that they were made of."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, warmup, updates + 1, lr / 20)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=0.0))

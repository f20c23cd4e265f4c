"""What an encoder is made of, and an encoder with its weights."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from onestep_jax.errors import RATE, SIZE, UserError, Whole, check_kind, check_known, shown
from onestep_jax.prototokens.schemes import ARRANGEMENTS, Leaves, OneStep

Weights: TypeAlias = dict[str, Any]

READERS = ("copy", "lora", "none")
POOLINGS = ("positions", "queries")
STEPS = ("network", "matrix", "diagonal")
CHANNELS = Whole(0, 2**16)
CORRECTIONS = Whole(0, 64)
TOKEN = Whole(0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class Design:
    """The parts of an encoder; hashable, so that it can identify a program.

    Attributes:
      length: tokens of the longest text that it is trained for.
      reader: what reads the text: "copy", a trainable copy of the decoder's blocks; "lora", the decoder's own blocks
        with low-rank adapters; "none", nothing: every text begins at the same vectors, and corrections do it all.
      rank: of the adapters.
      pooling: what e and m are a linear map of: "queries", the last hidden states of two query vectors behind the text;
        "positions", those of all tokens as well, with weights of their own for each position.
      channels: numbers that are taken from each of those states before the map; 0 for the whole state.
      corrections: learned gradient steps that follow (K).
      step: what makes a step of the gradient: "matrix", a learned matrix; "diagonal", a learned number for each
        component; "network", both and a small network, see `corrections`.
      arrangement: of Table 1.
      prefix: token ids that stand before the vectors, and before the text that is read.
      temperature: of the loss that a training minimises, and whose gradient a correction takes; nats are told at 1
        whatever it is.

    Raises:
      UserError: for a part that there is not.
    """

    length: int = 16
    reader: str = "copy"
    rank: int = 16
    pooling: str = "positions"
    channels: int = 64
    corrections: int = 8
    step: str = "network"
    arrangement: str = "one-step"
    prefix: tuple[int, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        SIZE.check("length", self.length)
        SIZE.check("rank", self.rank)
        CHANNELS.check("channels", self.channels)
        CORRECTIONS.check("corrections", self.corrections)
        check_known("reader", [self.reader], READERS)
        check_known("pooling", [self.pooling], POOLINGS)
        check_known("step", [self.step], STEPS)
        check_known("arrangement", [self.arrangement], ARRANGEMENTS)
        RATE.check("temperature", self.temperature)
        check_kind("token ids", (tuple, list), prefix=self.prefix)
        for token in self.prefix:
            TOKEN.check(f"a token of prefix = {shown(self.prefix)}", token)
        object.__setattr__(self, "prefix", tuple(int(token) for token in self.prefix))
        object.__setattr__(self, "temperature", float(self.temperature))
        if self.reader == "none" and not self.corrections:
            raise UserError("an encoder that neither reads nor corrects: give --reader copy, or --corrections 8")

    @property
    def scheme(self) -> OneStep:
        """The arrangement of its vectors, without the prefix."""
        return OneStep(self.arrangement)

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """Names of its vectors, in the order of the rows of z."""
        return tuple(self.scheme.leaf_shapes(1))

    @property
    def lengths(self) -> list[int]:
        """4, 8, 16, … and the longest, which may be less than 4."""
        shorter = itertools.takewhile(lambda length: length < self.length, (4 * 2**i for i in itertools.count()))
        return [*shorter, self.length]

    def leaves(self, z_LD: jax.Array) -> Leaves:
        """The rows of z by name."""
        return dict(zip(self.leaf_names, z_LD, strict=True))

    def describe(self) -> dict[str, Any]:
        """Plain values; see `from_description`.

        A temperature of 1 is left out, so that encoders of versions that did not name it keep their fingerprints.
        """
        described = dataclasses.asdict(self) | {"prefix": list(self.prefix)}
        if self.temperature == 1:
            del described["temperature"]
        return described

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Design:
        """The design of a `describe()`.

        Raises:
          UserError: for a key or a part that this version does not know.
        """
        check_known("key of an encoder's design", described, [field.name for field in dataclasses.fields(cls)])
        return cls(**described)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder with its weights; see `folder.load_encoder`.

    Attributes:
      design: its parts.
      weights: float32 arrays, see `objective.init_weights`.
      model: fingerprint of the decoder that it was trained through.
      model_source: where that came from, such as "default" or a hub id.
      fingerprint: 16 hexadecimal digits that change with the design or any weight.
      trained: what its training was: recipe, data, hours, figures.
    """

    design: Design
    weights: Weights = dataclasses.field(repr=False)
    model: str
    model_source: str = ""
    fingerprint: str = ""
    trained: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def parameters(self) -> int:
        """Number of trained weights."""
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.weights))

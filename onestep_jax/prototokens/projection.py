"""Vectors of few numbers: each is z W / √d + b, where z has d numbers and the map W and b is fixed, own or shared."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import SEED, SIZE, UserError, check_known
from onestep_jax.prototokens.arrangements import (
    Array,
    Cramming,
    Leaves,
    ManyVectors,
    OneStep,
    check_start,
    described_prefix,
    plain_prefix,
)

FIXED, OWN, SHARED = "fixed", "own", "shared"
PROJECTIONS = (FIXED, OWN, SHARED)
MAP = "W"


@dataclasses.dataclass(frozen=True)
class Projected:
    """An arrangement whose vectors lie in a space of d dimensions: e = z W / √d + b, and so m.

    The leaf of a vector holds its z, under the name of the vector: "e" is (d,), or (K, d) for K vectors. All vectors
    that are projected have the same map. W has rows of length about √D, so a component of e starts with the standard
    deviation of one of z, and moves as far as one of z does, whatever d is.

      "fixed"   W is `fixed_map`, b = 0. Nothing of it is stored.
      "own"     W and b are trained for each text.
      "shared"  W and b are trained for all texts of a group.

    A trained map is the leaf "W", (d + 1, D), of which the last row is b. W starts at N(0, 1) and b at 0.

    Attributes:
      of: the arrangement of the vectors; its prefix becomes this one's.
      dimensions: d, at most D.
      projection: "fixed", "own" or "shared".
      leaves: which vectors are projected; by default the first leaf of the arrangement.
      group: number of texts that are optimised together; of the arrangement unless the map is shared.
      seed: that a fixed map is drawn from.
      start: start vectors by leaf, each with a leading axis of texts, instead of random ones.
      prefix: as of `OneStep`.

    Raises:
      UserError: for an unknown projection or leaf, numbers below one, two shared leaves, or two prefixes.
    """

    of: OneStep | ManyVectors | Cramming
    dimensions: int
    projection: str = FIXED
    leaves: tuple[str, ...] = ()
    group: int = 1
    seed: int = 0
    start: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)
    prefix: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        SIZE.check("Projected: dimensions", self.dimensions)
        SIZE.check("Projected: group", self.group)
        SEED.check("Projected: seed", self.seed)
        check_known("projection", [self.projection], PROJECTIONS)
        vectors = list(self.of.leaf_shapes(1))
        check_known(f"vector of {self.of.notation}", self.leaves, vectors)
        if self.of.prefix is not None and self.prefix is not None:
            raise UserError("Projected: a prefix of its own, and one of the arrangement: give one of them")
        if self.of.start is not None:
            raise UserError("Projected: start vectors belong to it and not to the arrangement within")
        if self.projection == SHARED and self.of.shared:
            raise UserError(f"Projected: a shared map, and a shared {min(self.of.shared)}: a group shares one of them")
        if self.projection != SHARED and self.group not in (1, self.of.group):
            raise UserError(f"Projected(group={self.group}): a group shares the map (projection='shared') or a vector")
        prefix = plain_prefix(self.prefix) if self.of.prefix is None else self.of.prefix
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "of", dataclasses.replace(self.of, prefix=None))
        object.__setattr__(self, "leaves", tuple(name for name in vectors if name in (self.leaves or vectors[:1])))
        object.__setattr__(self, "group", self.group if self.projection == SHARED else self.of.group)
        check_start("Projected", self.start, list(self.leaf_shapes(1)))

    def describe(self) -> dict[str, Any]:
        within = {name: value for name, value in self.of.describe().items() if name not in ("share", "group")}
        described = {"arrangement": "projected", "of": within, "dimensions": self.dimensions}
        described |= {"projection": self.projection, "leaves": list(self.leaves)}
        described |= {"seed": self.seed} if self.projection == FIXED else {}
        described |= {"share": next(iter(self.shared), None), "group": self.group}
        return described | described_prefix(self.prefix)

    @property
    def notation(self) -> str:
        map_ = f"W fixed, seed {self.seed}" if self.projection == FIXED else f"W and b {self.projection}"
        return f"{self.of.notation} with {' and '.join(self.leaves)} of {self.dimensions} dimensions ({map_})"

    @property
    def shared(self) -> frozenset[str]:
        return frozenset({MAP}) if self.projection == SHARED else self.of.shared

    @property
    def extra(self) -> int:
        return self.of.extra

    @property
    def teacher_forced(self) -> bool:
        return self.of.teacher_forced

    @property
    def scales(self) -> dict[str, np.ndarray]:
        """Standard deviation of the components of a trained map at the start, (d + 1, 1); see `schemes.draw`."""
        ones = np.ones((self.dimensions, 1), np.float32)
        return {} if self.projection == FIXED else {MAP: np.concatenate([ones, np.zeros((1, 1), np.float32)])}

    def leaf_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        whole = self.of.leaf_shapes(width)
        shapes = {name: (*shape[:-1], self.dimensions) for name, shape in whole.items() if name in self.leaves}
        trained = {} if self.projection == FIXED else {MAP: (self.dimensions + 1, width)}
        return whole | shapes | trained

    def inputs(self, leaves: Leaves, text_TD: Array, length: Array) -> Array:
        width = text_TD.shape[-1]
        vectors = {name: leaves[name] for name in self.of.leaf_shapes(width)}
        whole = {name: self._vector(leaves, vectors[name], width) for name in self.leaves}
        return self.of.inputs(vectors | whole, text_TD, length)

    def _vector(self, leaves: Leaves, z: Array, width: int) -> Array:
        """z (…, d) → (…, D)."""
        scale = 1 / math.sqrt(self.dimensions)
        if self.projection == FIXED:
            return scale * _product(z, jnp.asarray(fixed_map(self.seed, self.dimensions, width)))
        map_dD, offset_D = leaves[MAP][:-1], leaves[MAP][-1]
        x = _product(z, map_dD)
        return scale * x + jnp.broadcast_to(offset_D, x.shape)

    def reads(self, positions: int) -> Array:
        return self.of.reads(positions)


def _product(z: Array, map_dD: Array) -> Array:
    """In float32 on every device: the step and the decode program must see the same vectors."""
    return jnp.dot(z, map_dD, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=8)
def fixed_map(seed: int, dimensions: int, width: int) -> np.ndarray:
    """Make the fixed map of a seed: (d, D) float32, d orthogonal rows of length √D, all directions being as likely.

    It is made of the raw bits of Philox, which no version of numpy changes (NEP 19). Those of its normal distribution
    may change.

    Args:
      seed: of the map.
      dimensions, width: d, D.
    """
    raw = np.random.Philox(seed).random_raw(2 * width * dimensions)
    radius, angle = (raw >> np.uint64(11)).reshape(2, width, dimensions) * 2.0**-53  # uniform, at least 0 and below 1
    normal_Dd = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller (1958)
    # With the signs of R on the diagonal, Q of a normal matrix is uniform among the orthogonal ones (Mezzadri, 2007).
    q_Dd, r_dd = np.linalg.qr(normal_Dd)
    map_dD = np.ascontiguousarray((math.sqrt(width) * q_Dd * np.sign(np.diagonal(r_dd))).T, np.float32)
    map_dD.setflags(write=False)
    return map_dD

"""Arrangements: how a few trainable vectors become the input of a whole text.

A scheme declares named *leaves*, each owned by every text of a group or shared by the group (design: one value per
leaf, vmapped over groups), and is three pure functions: `axes`/`shapes` → what is trained, `inputs` → the vectors that
the model eats, `reads` → which output position predicts which token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.config import UserError, check_known

Array: TypeAlias = jax.Array
Leaves: TypeAlias = dict[str, Array]


class Scheme(Protocol):
    """What the fit engine and the decoder ask of an arrangement; implement it to add one."""

    @property
    def group(self) -> int:
        """Number of texts in a group (G)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Identity of the arrangement in plain values, recorded in a run's configuration; see `from_description`."""
        ...

    @property
    def shared(self) -> frozenset[str]:
        """Leaves that the texts of a group share."""
        ...

    @property
    def start(self) -> Mapping[str, np.ndarray] | None:
        """Given start vectors, leaf → (texts, width); None to draw them."""
        ...

    def leaf_names(self) -> tuple[str, ...]:
        """Names of the leaves in a fixed order."""
        ...

    def inputs(self, leaves: Leaves, positions: int) -> Array:
        """Input vectors (positions, D) of one text from its leaves, each (D,)."""
        ...

    def reads(self, positions: int) -> Array:
        """Output row that predicts each token: (positions,) integers."""
        ...


@dataclasses.dataclass(frozen=True)
class OneStep:
    """The paper's arrangement Z = [e, m, m, …, m] (§1): row i predicts token i, so N inputs give N tokens.

    Attributes:
      share: None, or the leaf ("e" or "m") that the texts of a group share (Table 2).
      group: texts that are optimised together and share that leaf (the paper's S_g).
      start: start vectors by leaf, (texts, D), instead of random ones; every seed of a text starts there.
    """

    share: str | None = None
    group: int = 1
    start: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.share not in (None, "e", "m"):
            raise UserError(f"OneStep(share={self.share!r}): expected None, 'e' or 'm'")
        if self.group < 1:
            raise UserError(f"OneStep(group={self.group}): expected at least 1")
        if self.start is not None and set(self.start) != {"e", "m"}:
            raise UserError(f"OneStep(start=…): expected the leaves 'e' and 'm', got {sorted(self.start)}")

    def describe(self) -> dict[str, Any]:
        return {"arrangement": "one-step", "share": self.share, "group": self.group}

    @property
    def shared(self) -> frozenset[str]:
        return frozenset() if self.share is None else frozenset({self.share})

    def leaf_names(self) -> tuple[str, ...]:
        return ("e", "m")

    def inputs(self, leaves: Leaves, positions: int) -> Array:
        e_D, m_D = leaves["e"], leaves["m"]
        return jnp.concatenate([e_D[None], jnp.repeat(m_D[None], positions - 1, axis=0)])

    def reads(self, positions: int) -> Array:
        return jnp.arange(positions)


def from_description(description: Mapping[str, Any]) -> Scheme:
    """The scheme that `describe` described.

    Raises:
      UserError: for an arrangement that this version does not know.
    """
    arguments = dict(description)
    arrangement = arguments.pop("arrangement", None)
    check_known("arrangement", [str(arrangement)], ["one-step"])
    return OneStep(**arguments)


def axes(scheme: Scheme) -> dict[str, int | None]:
    """vmap axis of each leaf over the texts of a group: 0 if each text has its own, None if shared."""
    return {name: None if name in scheme.shared else 0 for name in scheme.leaf_names()}


def draw(scheme: Scheme, ids_G4: Array, width: int, scale: float | Array) -> Leaves:
    """Random start vectors of one group: N(0, scale²), a function of the texts' identities and nothing else.

    Args:
      ids_G4: (G, 4) uint32, the two halves of the text's hash, the number of its duplicate, and the seed.
      width: D.
      scale: standard deviation of a component.

    Returns:
      leaf → (G, D) float32, or (D,) where shared; a shared leaf is drawn from the identity of the group's first text.
    """

    def one(name_index: int, id_4: Array) -> Array:
        key = jax.random.key(0)
        for word in (*id_4, jnp.uint32(name_index)):
            key = jax.random.fold_in(key, word)
        return scale * jax.random.normal(key, (width,))

    leaves = {}
    for index, name in enumerate(scheme.leaf_names()):
        if name in scheme.shared:
            leaves[name] = one(index, ids_G4[0])
        else:
            leaves[name] = jax.vmap(lambda id_4, index=index: one(index, id_4))(ids_G4)
    return leaves

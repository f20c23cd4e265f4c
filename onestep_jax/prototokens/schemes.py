"""Schemes: how a few trainable vectors become the input of a whole text.

A scheme names its trainable arrays, the *leaves*; each text of a group has its own, or the group shares one. It is
three pure functions: `leaf_shapes` says what is trained, `inputs` makes the vectors that enter the model, and `reads`
says which output row predicts which token. They are written for one text and vmapped over texts and groups.

The package's own are in `arrangements` and `projection`; all of them can be imported from here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import UserError, check_kind, check_known
from onestep_jax.prototokens.arrangements import ARRANGEMENTS, OTHERS, Array, Cramming, Leaves, ManyVectors, OneStep
from onestep_jax.prototokens.projection import MAP, Projected


@runtime_checkable
class Scheme(Protocol):
    """What the fit engine and the reconstruction need of an arrangement; implement it to add one."""

    @property
    def group(self) -> int:
        """Number of texts in a group (G)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Identity of the arrangement in plain values, recorded in a run's configuration; see `from_description`."""
        ...

    @property
    def notation(self) -> str:
        """The input vectors, as the papers write them."""
        ...

    @property
    def shared(self) -> frozenset[str]:
        """Leaves that the texts of a group share."""
        ...

    @property
    def start(self) -> Mapping[str, np.ndarray] | None:
        """Given start vectors, leaf → (texts, *shape of the leaf); None to draw them."""
        ...

    @property
    def extra(self) -> int:
        """Input positions beyond the number of tokens; a prefix is not counted."""
        ...

    @property
    def teacher_forced(self) -> bool:
        """Whether the text itself is among the inputs; if not, `inputs` receives zeros for it."""
        ...

    def leaf_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Shape of each leaf of one text for input vectors of this width, in a fixed order."""
        ...

    def inputs(self, leaves: Leaves, text_TD: Array, length: Array) -> Array:
        """Input vectors (T + extra, D) of one text of `length` tokens, padded to T, from its leaves."""
        ...

    def reads(self, positions: int) -> Array:
        """Output row that predicts each token: (positions,) integers."""
        ...


def floats_of(scheme: Scheme, width: int) -> float:
    """Numbers that are stored for a text: the sizes of its leaves, of a shared one divided by the texts that share it.

    Args:
      scheme: the arrangement.
      width: D.
    """
    shapes = scheme.leaf_shapes(width)
    return sum(math.prod(shape) / (scheme.group if name in scheme.shared else 1) for name, shape in shapes.items())


_KEYS = {
    "many": ["e", "m", "guided", "share", "group"],
    "cramming": ["vectors"],
    "projected": ["of", "dimensions", "projection", "leaves", "seed", "share", "group"],
    **{name: ["share", "group"] for name in ARRANGEMENTS},
}
"""Arrangement → what its description may have beside the arrangement and the prefix."""


def from_description(description: Mapping[str, Any]) -> Scheme:
    """The scheme of a `describe()`.

    Raises:
      UserError: for an arrangement, or a key of it, that this version does not know.
    """
    arguments = {"prefix": (), **description}
    arrangement = str(arguments.get("arrangement"))
    check_known("arrangement", [arrangement], [*ARRANGEMENTS, *OTHERS])
    check_known(f"key of scheme {arrangement}", arguments, ["arrangement", "prefix", *_KEYS[arrangement]])
    if arrangement in ARRANGEMENTS:
        return OneStep(**arguments)
    del arguments["arrangement"]
    if arrangement == "many":
        return ManyVectors(**arguments)
    return Cramming(**arguments) if arrangement == "cramming" else _projected(arguments)


def _projected(arguments: dict[str, Any]) -> Projected:
    """The scheme within has no prefix of its own; the leaf that it shares, and its group, are named outside."""
    of, share = arguments.pop("of", None), arguments.pop("share", None)
    check_kind("the description of a scheme", Mapping, **{"scheme projected: of": of})
    if share != MAP and of.get("arrangement") != "cramming":
        of = {**of, "share": share, "group": arguments.get("group", 1)}
    within = from_description({**of, "prefix": None})
    if not isinstance(within, OneStep | ManyVectors | Cramming):
        raise UserError(f"scheme projected of {of.get('arrangement')}: expected another arrangement within")
    rest = {"dimensions": None, **arguments, "leaves": tuple(arguments.get("leaves", ()))}
    return Projected(within, **rest)


def bare(scheme: Scheme) -> Scheme:
    """The scheme without start vectors and prefix, which programs receive as arrays; no dataclass stays as it is."""
    if not dataclasses.is_dataclass(scheme):
        return scheme
    given = {field.name for field in dataclasses.fields(scheme)} & {"start", "prefix"}
    return dataclasses.replace(scheme, **dict.fromkeys(given))


def axes(scheme: Scheme) -> dict[str, int | None]:
    """vmap axis of each leaf over the texts of a group: 0 if each text has its own, None if shared."""
    return {name: None if name in scheme.shared else 0 for name in scheme.leaf_shapes(1)}


def group_shapes(scheme: Scheme, width: int) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf of a group: (G, *shape), or its plain shape where shared."""
    shapes = scheme.leaf_shapes(width)
    return {name: shape if name in scheme.shared else (scheme.group, *shape) for name, shape in shapes.items()}


def draw(scheme: Scheme, ids_G4: Array, width: int, scale: float | Array) -> Leaves:
    """Random start vectors of one group: N(0, scale²), a function of the texts' identities and of nothing else.

    So they do not depend on slot, batch, device, order or interruption. A scheme may have `scales`: leaf → standard
    deviation of its components in place of `scale`, a number or an array that broadcasts over the leaf.

    Args:
      scheme: names the leaves and their shapes.
      ids_G4: (G, 4) uint32, the two halves of the text's hash, the number of its duplicate, and the seed.
      width, scale: D; the standard deviation of a component.

    Returns:
      leaf → (G, *shape) float32, or its plain shape where shared; a shared leaf is drawn from the identity of the
      group's first text.
    """

    def one(name_index: int, shape: tuple[int, ...], scale: float | Array, id_4: Array) -> Array:
        key = jax.random.key(0)
        for word in (*id_4, jnp.uint32(name_index)):
            key = jax.random.fold_in(key, word)
        return scale * jax.random.normal(key, shape)

    leaves, scales = {}, getattr(scheme, "scales", {})
    for index, (name, shape) in enumerate(scheme.leaf_shapes(width).items()):
        drawn = functools.partial(one, index, shape, scales.get(name, scale))
        leaves[name] = drawn(ids_G4[0]) if name in scheme.shared else jax.vmap(drawn)(ids_G4)
    return leaves

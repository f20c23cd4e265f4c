"""Losses beside Eq. 1: functions of a group's vectors and of what is known of its texts.

Two are here, after *On the Semantic and Syntactic Information Encoded in Proto-Tokens* (arXiv:2602.18301): `Anchor`
pulls each `e` to a point that a teacher gives, `Relational` the similarities of the `e` of a group to a teacher's. Any
other pure function of (leaves, context) does as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import WEIGHT, UserError, check_kind, one_line
from onestep_jax.prototokens.arrangements import Array, Leaves
from onestep_jax.prototokens.projection import fixed_map
from onestep_jax.prototokens.schemes import Scheme, axes, group_shapes

ANCHOR, TEACHER = "anchor", "teacher"


class Context(NamedTuple):
    """What is known of the texts of a group.

    Attributes:
      rows: name → (G, …) float32, as given; zeros in an empty place.
      lengths_G: (G,) int32 tokens of each text; 0 marks an empty place.
    """

    rows: dict[str, Array]
    lengths_G: Array


AuxiliaryLoss: TypeAlias = Callable[[Leaves, Context], Array]
"""(leaves, context) → () float32, added to the mean nats per token. A leaf is (G, …), or without G where shared."""

Losses: TypeAlias = tuple[tuple[str, AuxiliaryLoss], ...]


@dataclasses.dataclass(frozen=True)
class _ByTeacher:
    """What the losses here have in common.

    Attributes:
      weight: λ.
      teacher: where its embeddings come from, as the record of a run shall name it.

    Raises:
      UserError: for a weight that is none.
    """

    weight: float
    teacher: str = ""

    def __post_init__(self) -> None:
        WEIGHT.check(f"{type(self).__name__}: weight", self.weight)


@dataclasses.dataclass(frozen=True)
class Anchor(_ByTeacher):
    """λ · (1 − cos(e, a)), the mean over the texts of a group, with a point a for each text; see `anchor_points`.

    Attributes:
      weight, teacher: see `_ByTeacher`.
      of: name of the points among the rows of the context, each of as many numbers as the e of a text.
    """

    of: str = ANCHOR

    def __call__(self, leaves: Leaves, context: Context) -> Array:
        points_GD = context.rows[self.of]
        cosine_G = jnp.sum(_unit(leaves["e"], len(points_GD)) * _unit(points_GD, len(points_GD)), axis=-1)
        real_G = context.lengths_G > 0
        return self.weight * jnp.sum(jnp.where(real_G, 1 - cosine_G, 0.0)) / jnp.maximum(jnp.sum(real_G), 1)


@dataclasses.dataclass(frozen=True)
class Relational(_ByTeacher):
    """λ · (cos(e_i, e_j) − cos(s_i, s_j))², the mean over the pairs of texts of a group, with a teacher's s.

    Attributes:
      weight, teacher: see `_ByTeacher`.
      of: name of the s among the rows of the context; they may have any number of dimensions.
    """

    of: str = TEACHER

    def __call__(self, leaves: Leaves, context: Context) -> Array:
        teacher_GF = context.rows[self.of]
        learned_GD, given_GF = _unit(leaves["e"], len(teacher_GF)), _unit(teacher_GF, len(teacher_GF))
        off_GG = _product(learned_GD, learned_GD.T) - _product(given_GF, given_GF.T)
        real_G = context.lengths_G > 0
        pairs_GG = jnp.triu(real_G[:, None] & real_G[None], k=1)
        total = jnp.sum(jnp.where(pairs_GG, jnp.square(off_GG), 0.0))
        return self.weight * total / jnp.maximum(jnp.sum(pairs_GG), 1)


def _product(a: Array, b: Array) -> Array:
    """In float32 on every device: cosines near 1 differ by little."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _unit(rows: Array, count: int) -> Array:
    """Rows as vectors (G, F) of unit length; zero stays zero, and its gradient finite."""
    flat_GF = rows.reshape(count, -1)
    return flat_GF * jax.lax.rsqrt(jnp.sum(jnp.square(flat_GF), axis=-1, keepdims=True) + 1e-12)


def auxiliary_loss(losses: Losses, leaves: Leaves, context: Context) -> Array:
    """The sum of the losses, () float32; 0 without any."""
    return sum((loss(leaves, context) for _, loss in losses), jnp.float32(0))


def anchor_points(teacher_NF: Any, size: int, seed: int = 0) -> np.ndarray:
    """A teacher's embeddings through a fixed random linear map into the space of e: the points of `Anchor`.

    The map is orthogonal (`projection.fixed_map`). Where F is at most the size it keeps all cosines; else it keeps them
    up to the noise of a random projection to `size` dimensions.

    Args:
      teacher_NF: an embedding of F numbers for each text.
      size: numbers of the e of one text: D, or K · D where there are K.
      seed: of the map.

    Returns:
      (N, size) float32.

    Raises:
      UserError: for embeddings that are no matrix of numbers.
    """
    try:
        teacher_NF = np.asarray(teacher_NF, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"a teacher's embeddings: expected numbers ({one_line(error)})") from error
    if teacher_NF.ndim != 2:
        raise UserError(f"a teacher's embeddings have shape {teacher_NF.shape}; expected (texts, features)")
    features = teacher_NF.shape[1]
    small, large = sorted((features, size))
    map_sl = fixed_map(seed, small, large)
    return teacher_NF @ (map_sl if features == small else map_sl.T)


def size_of_e(scheme: Scheme, width: int) -> int:
    """Numbers of the e of one text.

    Raises:
      UserError: for a scheme in which a text has no e of its own.
    """
    if axes(scheme).get("e") != 0:
        raise UserError(f"{scheme.notation}: expected an e of each text's own, on which a loss acts; do not share e")
    return int(np.prod(scheme.leaf_shapes(width)["e"]))


def check_losses(
    losses: Mapping[str, AuxiliaryLoss], context: Mapping[str, Any] | None, scheme: Scheme, width: int, texts: int
) -> tuple[Losses, dict[str, np.ndarray]]:
    """Losses by name and rows by name, checked against each other and the scheme.

    Args:
      losses: name → loss.
      context: name → an array whose first axis is the texts.
      scheme: the arrangement.
      width: D.
      texts: how many there are.

    Returns:
      The losses in the order of their names, and float32 rows.

    Raises:
      UserError: for a loss that is no hashable function of (leaves, context) to a number, or rows that are not one for
        each text or not finite.
    """
    check_kind("name → a function of (leaves, context)", Mapping, losses=losses)
    check_kind("name → an array with a row for each text", (Mapping, type(None)), context=context)
    rows = {str(name): _rows(str(name), array, texts) for name, array in (context or {}).items()}
    if rows and not losses:
        raise UserError(f"context={sorted(rows)}: there is no loss to read it; give losses=…")
    ordered = tuple((str(name), losses[name]) for name in sorted(losses, key=str))
    for name, loss in ordered:
        _check_loss(name, loss, rows, scheme, width)
    return ordered, rows


def _rows(name: str, array: Any, texts: int) -> np.ndarray:
    try:
        rows = np.asarray(array, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"context {name}: expected numbers ({one_line(error)})") from error
    if rows.shape[:1] != (texts,):
        raise UserError(f"context {name} has shape {rows.shape}; expected ({texts}, …), a row for each text")
    bad = np.flatnonzero(~np.isfinite(rows.reshape(texts, -1)).all(axis=1))
    if len(bad):
        raise UserError(f"context {name}: row {bad[0]} holds a NaN or an infinity")
    return rows


def _check_loss(name: str, loss: Any, rows: Mapping[str, np.ndarray], scheme: Scheme, width: int) -> None:
    """Refuse a loss that cannot be compiled; nothing is computed."""
    where = f"loss {name}"
    if not callable(loss) or not isinstance(loss, Hashable):
        raise UserError(f"{where}: expected a hashable function of (leaves, context), got {type(loss).__name__}")
    if isinstance(loss, Anchor | Relational):
        _check_own(where, loss, rows, scheme, width)
    G = scheme.group
    leaves = group_shapes(scheme, width)
    of = {leaf: jax.ShapeDtypeStruct(shape, jnp.float32) for leaf, shape in leaves.items()}
    given = {key: jax.ShapeDtypeStruct((G, *array.shape[1:]), jnp.float32) for key, array in rows.items()}
    context = Context(given, jax.ShapeDtypeStruct((G,), jnp.int32))  # pyright: ignore[reportArgumentType]
    try:
        out = jax.eval_shape(loss, of, context)
    except Exception as error:
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{where}: cannot be traced for leaves {leaves} ({told})") from error
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise UserError(f"{where}: expected one number, got {out}")


def _check_own(
    where: str, loss: Anchor | Relational, rows: Mapping[str, np.ndarray], scheme: Scheme, width: int
) -> None:
    size = size_of_e(scheme, width)
    if loss.of not in rows:
        raise UserError(f"{where}: needs context={{{loss.of!r}: …}}, a row for each text")
    found = rows[loss.of].shape
    if isinstance(loss, Anchor) and found[1:] != (size,):
        raise UserError(f"{where}: context {loss.of} is {found}; expected (texts, {size}), as of anchor_points")
    if isinstance(loss, Relational) and scheme.group < 2:
        raise UserError(f"{where}: matches the similarities inside a group: give groups of at least 2 texts (--group)")


def describe_losses(losses: Losses) -> dict[str, Any]:
    """Name → fields of a loss that is a dataclass of plain values; of another, that its name is all that is known."""
    described = {}
    for name, loss in losses:
        if dataclasses.is_dataclass(loss) and not isinstance(loss, type):
            described[name] = {"loss": type(loss).__name__, **dataclasses.asdict(loss)}
        else:
            described[name] = {"object": True}
    return described

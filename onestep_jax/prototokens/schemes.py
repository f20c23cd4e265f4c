"""Arrangements: how a few trainable vectors become the input of a whole text.

A scheme names its trainable arrays, the *leaves*; each text of a group has its own, or the group shares one. It is
three pure functions: `leaf_shapes` says what is trained, `inputs` makes the vectors that enter the model, and `reads`
says which output row predicts which token. They are written for one text and vmapped over texts and groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import SIZE, UserError, check_known, check_list
from onestep_jax.tokens import check_tokens

Array: TypeAlias = jax.Array
Leaves: TypeAlias = dict[str, Array]


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


class Arrangement(NamedTuple):
    """One row of Table 1.

    Attributes:
      notation: as the paper writes it.
      has_m: (input position, number of tokens N) → whether that input is `m`; else it is `e`.
      extra: number of inputs beyond N; they come first and their outputs are ignored.
    """

    notation: str
    has_m: Callable[[Array, Array], Array]
    extra: int = 0


# Table 1. For an odd N the middle position of "halves" is `e`. "unguided-e" is the only reading of the table's [e][m]×N
# that fits its lengths: N + 1 inputs, of which the first `m` predicts the first token.
ARRANGEMENTS = {
    "one-vector": Arrangement("[e]×N", lambda i_T, _: i_T < 0),
    "halves": Arrangement("[e]×N/2 [m]×N/2", lambda i_T, length: 2 * i_T >= length),
    "alternating": Arrangement("[e,m]×N/2", lambda i_T, _: i_T % 2 == 1),
    "unguided-e": Arrangement("[e] [m]×N", lambda i_T, _: i_T > 0, extra=1),
    "one-step": Arrangement("[e] [m]×(N−1)", lambda i_T, _: i_T > 0),
}


@dataclasses.dataclass(frozen=True)
class OneStep:
    """Two trainable vectors, N inputs, N tokens from one forward pass; by default Z = [e, m, m, …, m].

    Attributes:
      arrangement: key of `ARRANGEMENTS` (Table 1).
      share: None, or the leaf ("e" or "m") that the texts of a group share (Table 2).
      group: number of texts that are optimised together and share that leaf (the paper's S_g).
      start: start vectors by leaf, (texts, D), instead of random ones; every seed of a text starts there.
      prefix: what stands before them, frozen: "none", "bos", a text or token ids, see `prefixes.prefix_tokens`; None
        for what the preset says.

    Raises:
      UserError: for an unknown arrangement or leaf, a group below one, or start vectors of other leaves.
    """

    arrangement: str = "one-step"
    share: str | None = None
    group: int = 1
    start: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)
    prefix: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", _plain_prefix(self.prefix))
        check_known("arrangement", [self.arrangement], [*ARRANGEMENTS, "cramming"])
        if self.arrangement not in ARRANGEMENTS:
            raise UserError("OneStep(arrangement='cramming'): that scheme is Cramming(vectors=K)")
        leaves = list(self.leaf_shapes(1))
        if self.share not in (None, *leaves):
            raise UserError(f"OneStep(share={self.share!r}): {self.notation} has {' and '.join(leaves)} to share")
        SIZE.check("OneStep: group", self.group)
        _check_start("OneStep", self.start, leaves)

    def describe(self) -> dict[str, Any]:
        described = {"arrangement": self.arrangement, "share": self.share, "group": self.group}
        return described | _described_prefix(self.prefix)

    @property
    def notation(self) -> str:
        return ARRANGEMENTS[self.arrangement].notation

    @property
    def shared(self) -> frozenset[str]:
        return frozenset() if self.share is None else frozenset({self.share})

    @property
    def extra(self) -> int:
        return ARRANGEMENTS[self.arrangement].extra

    @property
    def teacher_forced(self) -> bool:
        return False

    def leaf_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        names = ("e",) if self.arrangement == "one-vector" else ("e", "m")
        return dict.fromkeys(names, (width,))

    def inputs(self, leaves: Leaves, text_TD: Array, length: Array) -> Array:
        e_D = leaves["e"]
        m_D = leaves.get("m", e_D)
        has_m_T = ARRANGEMENTS[self.arrangement].has_m(jnp.arange(len(text_TD) + self.extra), length)
        return jnp.where(has_m_T[:, None], m_D[None], e_D[None])

    def reads(self, positions: int) -> Array:
        return self.extra + jnp.arange(positions)


@dataclasses.dataclass(frozen=True)
class Cramming:
    """The autoregressive baseline [mem_1 … mem_K, t_1 … t_{N−1}] (Kuratov et al., arXiv:2502.13063), teacher-forced.

    mem_K predicts t_1, and each token predicts the next. Teacher-forced accuracy does not say what the vectors generate
    without the text; `reconstruction.regenerate` does.

    Attributes:
      vectors: number of trainable vectors before the text (K).
      start: start vectors {"mem": (texts, K, D)}, instead of random ones.
      prefix: as of `OneStep`.

    Raises:
      UserError: for less than one vector, or start vectors of other leaves.
    """

    vectors: int = 1
    start: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)
    prefix: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", _plain_prefix(self.prefix))
        SIZE.check("Cramming: vectors", self.vectors)
        _check_start("Cramming", self.start, ["mem"])

    def describe(self) -> dict[str, Any]:
        return {"arrangement": "cramming", "vectors": self.vectors} | _described_prefix(self.prefix)

    @property
    def notation(self) -> str:
        return f"[mem]×{self.vectors} [t_1 … t_(N−1)]"

    @property
    def group(self) -> int:
        return 1

    @property
    def shared(self) -> frozenset[str]:
        return frozenset()

    @property
    def extra(self) -> int:
        return self.vectors - 1

    @property
    def teacher_forced(self) -> bool:
        return True

    def leaf_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        return {"mem": (self.vectors, width)}

    def inputs(self, leaves: Leaves, text_TD: Array, length: Array) -> Array:
        return jnp.concatenate([leaves["mem"], text_TD[:-1].astype(leaves["mem"].dtype)])

    def reads(self, positions: int) -> Array:
        return self.extra + jnp.arange(positions)


def _check_start(scheme: str, start: Mapping[str, np.ndarray] | None, leaves: list[str]) -> None:
    if start is not None and set(start) != set(leaves):
        raise UserError(f"{scheme}(start=…): expected vectors for {' and '.join(leaves)}, got {sorted(start)}")


def _plain_prefix(prefix: Any) -> Any:
    """A prefix that can be hashed and compared: a word or text as it is, ids as a tuple of integers."""
    if prefix is None or isinstance(prefix, str):
        return prefix
    ids = check_list("a text or token ids", "prefix", prefix)
    return tuple(check_tokens([ids], None, None)[0].tolist()) if ids else ()


def _described_prefix(prefix: str | tuple[int, ...] | None) -> dict[str, Any]:
    """A description without a prefix has no such key, as those of runs from before there were prefixes."""
    return {"prefix": list(prefix) if isinstance(prefix, tuple) else prefix} if prefix not in (None, (), "none") else {}


def from_description(description: Mapping[str, Any]) -> Scheme:
    """The scheme of a `describe()`.

    Raises:
      UserError: for an arrangement, or a key of it, that this version does not know.
    """
    arguments = {"prefix": (), **description}
    arrangement = str(arguments.get("arrangement"))
    check_known("arrangement", [arrangement], [*ARRANGEMENTS, "cramming"])
    if arrangement == "cramming":
        check_known("key of scheme cramming", arguments, ["arrangement", "vectors", "prefix"])
        return Cramming(arguments.get("vectors", 1), prefix=arguments["prefix"])
    check_known(f"key of scheme {arrangement}", arguments, ["arrangement", "share", "group", "prefix"])
    return OneStep(**arguments)


def bare(scheme: Scheme) -> Scheme:
    """The scheme without start vectors and prefix, which programs receive as arrays; no dataclass stays as it is."""
    if not dataclasses.is_dataclass(scheme):
        return scheme
    given = {field.name for field in dataclasses.fields(scheme)} & {"start", "prefix"}
    return dataclasses.replace(scheme, **dict.fromkeys(given))


def axes(scheme: Scheme) -> dict[str, int | None]:
    """vmap axis of each leaf over the texts of a group: 0 if each text has its own, None if shared."""
    return {name: None if name in scheme.shared else 0 for name in scheme.leaf_shapes(1)}


def draw(scheme: Scheme, ids_G4: Array, width: int, scale: float | Array) -> Leaves:
    """Random start vectors of one group: N(0, scale²), a function of the texts' identities and of nothing else.

    So they do not depend on slot, batch, device, order or interruption.

    Args:
      scheme: names the leaves and their shapes.
      ids_G4: (G, 4) uint32, the two halves of the text's hash, the number of its duplicate, and the seed.
      width, scale: D; the standard deviation of a component.

    Returns:
      leaf → (G, *shape) float32, or its plain shape where shared; a shared leaf is drawn from the identity of the
      group's first text.
    """

    def one(name_index: int, shape: tuple[int, ...], id_4: Array) -> Array:
        key = jax.random.key(0)
        for word in (*id_4, jnp.uint32(name_index)):
            key = jax.random.fold_in(key, word)
        return scale * jax.random.normal(key, shape)

    leaves = {}
    for index, (name, shape) in enumerate(scheme.leaf_shapes(width).items()):
        if name in scheme.shared:
            leaves[name] = one(index, shape, ids_G4[0])
        else:
            leaves[name] = jax.vmap(lambda id_4, index=index, shape=shape: one(index, shape, id_4))(ids_G4)
    return leaves

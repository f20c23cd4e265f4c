"""The package's arrangements: which trainable vector stands at which input position.

Each is a `schemes.Scheme`. `projection.Projected` makes the vectors of any of them from fewer numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import SIZE, UserError, Whole, check_known, check_list
from onestep_jax.tokens import check_tokens

Array: TypeAlias = jax.Array
Leaves: TypeAlias = dict[str, Array]


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
OTHERS = {
    "many": "ManyVectors(e=K, m=K)",
    "cramming": "Cramming(vectors=K)",
    "projected": "Projected(scheme, dimensions=d)",
}
"""Arrangements of other classes, as `describe` calls them, and how each is made."""


@dataclasses.dataclass(frozen=True)
class OneStep:
    """Two trainable vectors, N inputs, N tokens from one forward pass; by default Z = [e, m, m, …, m].

    Attributes:
      arrangement: key of `ARRANGEMENTS` (Table 1).
      share: None, or the leaf ("e" or "m") that the texts of a group share (Table 2).
      group: number of texts that are optimised together and share that leaf (the paper's S_g).
      start: start vectors by leaf, (texts, D), instead of random ones; the first seed of a text starts there.
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
        object.__setattr__(self, "prefix", plain_prefix(self.prefix))
        check_known("arrangement", [self.arrangement], [*ARRANGEMENTS, *OTHERS])
        if self.arrangement in OTHERS:
            raise UserError(f"OneStep(arrangement={self.arrangement!r}): that scheme is {OTHERS[self.arrangement]}")
        leaves = list(self.leaf_shapes(1))
        check_sharing("OneStep", self.share, self.group, leaves, self.notation)
        check_start("OneStep", self.start, leaves)

    def describe(self) -> dict[str, Any]:
        described = {"arrangement": self.arrangement, "share": self.share, "group": self.group}
        return described | described_prefix(self.prefix)

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
class ManyVectors:
    """Several e before several m in turn, N tokens from one forward pass: [e_1 … e_K] [m_1 … m_M m_1 …].

    Each input but the first K − `guided` predicts a token, in order: with `guided` 1, e_K predicts token 1 and the i-th
    input behind it token i + 1; with 0, the i-th input behind the e predicts token i; with K, e_i predicts token i.
    With one e and one m this is the arrangement "one-step" (`guided` 1) or "unguided-e" (`guided` 0).

    Attributes:
      e: number of vectors in front (K).
      m: number of vectors that follow in turn (M): the j-th input behind the e is m_((j − 1) mod M + 1).
      guided: how many of the e, the last ones, predict a token.
      share: None, or the leaf ("e" or "m") that the texts of a group share, all its vectors together.
      group: number of texts that are optimised together and share that leaf.
      start: start vectors by leaf, (texts, K, D) and (texts, M, D), instead of random ones.
      prefix: as of `OneStep`.

    Raises:
      UserError: for less than one vector, more guided vectors than there are, or what `OneStep` refuses.
    """

    e: int = 1
    m: int = 1
    guided: int = 1
    share: str | None = None
    group: int = 1
    start: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)
    prefix: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", plain_prefix(self.prefix))
        SIZE.check("ManyVectors: e", self.e)
        SIZE.check("ManyVectors: m", self.m)
        Whole(0, self.e).check("ManyVectors: guided", self.guided)
        check_sharing("ManyVectors", self.share, self.group, ["e", "m"], self.notation)
        check_start("ManyVectors", self.start, ["e", "m"])

    def describe(self) -> dict[str, Any]:
        described = {"arrangement": "many", "e": self.e, "m": self.m, "guided": self.guided}
        return described | {"share": self.share, "group": self.group} | described_prefix(self.prefix)

    @property
    def notation(self) -> str:
        front = "[e]" if self.e == 1 else f"[e_1 … e_{self.e}]"
        behind = "[m]" if self.m == 1 else f"[m_1 … m_{self.m} in turn]"
        return f"{front} {behind}×{f'(N−{self.guided})' if self.guided else 'N'}"

    @property
    def shared(self) -> frozenset[str]:
        return frozenset() if self.share is None else frozenset({self.share})

    @property
    def extra(self) -> int:
        return self.e - self.guided

    @property
    def teacher_forced(self) -> bool:
        return False

    def leaf_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        return {"e": (self.e, width), "m": (self.m, width)}

    def inputs(self, leaves: Leaves, text_TD: Array, length: Array) -> Array:
        count, width = len(text_TD) + self.extra, text_TD.shape[-1]
        rounds = -(-count // self.m)
        # Copies are made by broadcasting, the gradient of which is a plain sum; that of indexing adds in any order on
        # some devices.
        m_TD = jnp.broadcast_to(leaves["m"][None], (rounds, self.m, width)).reshape(-1, width)
        return jnp.concatenate([leaves["e"], m_TD])[:count]

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
        object.__setattr__(self, "prefix", plain_prefix(self.prefix))
        SIZE.check("Cramming: vectors", self.vectors)
        check_start("Cramming", self.start, ["mem"])

    def describe(self) -> dict[str, Any]:
        return {"arrangement": "cramming", "vectors": self.vectors} | described_prefix(self.prefix)

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


def check_sharing(scheme: str, share: str | None, group: int, leaves: list[str], notation: str) -> None:
    """Refuse a shared leaf that the scheme does not have, or a group below one."""
    if share not in (None, *leaves):
        raise UserError(f"{scheme}(share={share!r}): {notation} has {' and '.join(leaves)} to share")
    SIZE.check(f"{scheme}: group", group)


def check_start(scheme: str, start: Mapping[str, np.ndarray] | None, leaves: list[str]) -> None:
    """Refuse start vectors of other leaves."""
    if start is not None and set(start) != set(leaves):
        raise UserError(f"{scheme}(start=…): expected vectors for {' and '.join(leaves)}, got {sorted(start)}")


def plain_prefix(prefix: Any) -> Any:
    """A prefix that can be hashed and compared: a word or text as it is, ids as a tuple of integers."""
    if prefix is None or isinstance(prefix, str):
        return prefix
    ids = check_list("a text or token ids", "prefix", prefix)
    return tuple(check_tokens([ids], None, None)[0].tolist()) if ids else ()


def described_prefix(prefix: str | tuple[int, ...] | None) -> dict[str, Any]:
    """A description without a prefix has no such key, as those of runs from before there were prefixes."""
    return {"prefix": list(prefix) if isinstance(prefix, tuple) else prefix} if prefix not in (None, (), "none") else {}

"""The texts of a fit as token ids that model, arrangement and prefix can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import SIZE, UserError
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.prefixes import check_reach, prefix_of, prefix_rows, settle_prefix
from onestep_jax.prototokens.schemes import OneStep, Projected, Scheme
from onestep_jax.prototokens.starts import Starts, scheme_of_start, start_vectors, with_starts
from onestep_jax.tokens import check_text, check_tokens, text_ids, tokenise


class Rows(NamedTuple):
    """What a fit works on: a row for each copy of a text, those of a text one after the other.

    Attributes:
      scheme: the arrangement of all. Its prefix is token ids; its start vectors, if it has some, are a row each.
      tokens: (N,) int32 of each row.
      ids: the identity of each row's text.
      prefixes: (P,) int32 before each row where each text has its own, or empty.
      word: how the prefix was asked for, such as "bos"; None where that was not by a word.
    """

    scheme: Scheme
    tokens: tuple[np.ndarray, ...]
    ids: tuple[str, ...]
    prefixes: tuple[np.ndarray, ...]
    word: str | None

    @property
    def most_before(self) -> int:
        """Tokens of the longest prefix, to which all are padded."""
        return prefix_rows(self.prefixes or [prefix_of(self.scheme)])


def settle_rows(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]] | Sequence[np.ndarray],
    length: int | None,
    scheme: Scheme | None,
    *,
    arrangement: str,
    prefix: str,
    prefixes: Sequence[str] | Sequence[Sequence[int]] | None = None,
    start: Starts | None = None,
    start_missing: str = "error",
    seed: int = 0,
    scale: float = 1.0,
    copies: int = 1,
) -> Rows:
    """The rows of a fit, and the arrangement, prefix and start vectors that they have in the end.

    Args:
      model, texts, length, scheme, prefixes, start, start_missing, seed, copies: as of `fitting.fit`.
      arrangement, prefix: those of the preset, for where nothing else names one.
      scale: deviation of start vectors that are drawn.

    Raises:
      UserError: for texts, prefixes or start vectors that do not go with the model or with each other.
    """
    begun = None if start is None else start_vectors(start, model)
    scheme = scheme if begun is None else scheme_of_start(begun, scheme, prefixes is not None)
    scheme = scheme or OneStep(arrangement)
    asked: Any = getattr(scheme, "prefix", None) or prefix
    scheme, before = settle_prefix(scheme, model, prefix, prefixes, len(texts))
    tokens = prepare(model, texts, length, scheme, before)
    tokens, before = (tuple(row for row in rows for _ in range(copies)) for rows in (tokens, before))
    ids = tuple(text_ids(tokens))
    if begun is not None:
        scheme = with_starts(scheme, begun, start_missing, ids, model.embed_width, seed=seed, scale=scale)
    _check_leaves(scheme, model, len(tokens))
    if scheme.group > max(1, len(tokens)):
        raise UserError(f"group = {scheme.group}: expected at most the number of texts and copies, {len(tokens)}")
    word = asked if isinstance(asked, str) and len(prefix_of(scheme)) else None
    return Rows(scheme, tokens, ids, before, word)


def _check_leaves(scheme: Scheme, model: Model, rows: int) -> None:
    if isinstance(scheme, Projected) and scheme.dimensions > model.embed_width:
        raise UserError(f"{scheme.notation}: expected at most the {model.embed_width} of this model's input vectors")
    for name, shape in scheme.leaf_shapes(model.embed_width).items():
        given = None if scheme.start is None else np.shape(scheme.start[name])
        if given not in (None, (rows, *shape)):
            raise UserError(f"start vectors of {name!r} have shape {given}; expected {(rows, *shape)}, a row a text")


def check_length(length: int, context: int, scheme: Scheme, prefix: int = 0) -> None:
    """Refuse texts of a length for which a model's context has no room behind a prefix of so many tokens.

    Raises:
      UserError: with what takes the room.
    """
    if length > context - scheme.extra - prefix:
        room = f" less {scheme.extra} of {scheme.notation}" if scheme.extra else ""
        room += f" less {prefix} of the prefix" if prefix else ""
        raise UserError(f"length {length} is beyond the model's context of {context} positions{room}")


def prepare(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]] | Sequence[np.ndarray],
    length: int | None,
    scheme: Scheme,
    prefixes: Sequence[np.ndarray] = (),
) -> list[np.ndarray]:
    """Token ids of texts given as strings or ids, cut to `length` and checked against the model and the scheme.

    Args:
      model, texts, length, scheme: as of `resolve`; the scheme's prefix is token ids.
      prefixes: before each text, where each has its own.

    Returns:
      (≤ length,) int32 for each text.

    Raises:
      UserError: for no texts, a text that is empty, too long or of unknown ids, or a length beyond the model's context.
    """
    longest = prefix_rows(prefixes or [prefix_of(scheme)])
    context = model.config.context - scheme.extra - longest
    if length is not None:
        SIZE.check("length", length)
        check_length(length, model.config.context, scheme, longest)
    if len(texts) == 0:
        raise UserError("no texts: expected at least one")
    if any(isinstance(text, str) for text in texts):
        if model.tokenizer is None:
            raise UserError(f"model {model.source!r} has no tokenizer: give lists of token ids instead of strings")
        strings = [check_text("texts", i, text) for i, text in enumerate(texts)]
        tokens = tokenise(model.tokenizer, strings, length)
    else:
        tokens = [ids[:length] for ids in check_tokens(texts, None, None)]
    check_reach(model.config.boundary, longest, max(map(len, tokens)) + scheme.extra)
    return check_tokens(tokens, model.config.vocab_size, context)

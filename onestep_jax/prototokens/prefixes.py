"""Frozen tokens before the proto-tokens: [p_1 … p_P] [e] [m]×(N−1), whose embeddings are never trained.

In many models the first position is an attention sink: later positions attend to it whatever stands there, its hidden
states are far larger than all others, and a token can hardly be read out of it. A frozen token in front takes this
part, so that `e` stands at an ordinary position. A prefix of real text gives the suffix of a known beginning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from onestep_jax.errors import UserError, check_list
from onestep_jax.model.decoder import Model, Network, Params, Past
from onestep_jax.model.sinks import has_sink
from onestep_jax.prototokens.schemes import Array, Scheme
from onestep_jax.tokens import check_tokens

NONE, BOS, AUTO = "none", "bos", "auto"
_S = TypeVar("_S", bound=Scheme)


class Prefixes(NamedTuple):
    """The prefixes of some texts, padded with zeros.

    Attributes:
      tokens_GP: (…, G, P) int32.
      lengths_G: (…, G) int32.
    """

    tokens_GP: Any
    lengths_G: Any


def prefix_of(scheme: Scheme) -> np.ndarray:
    """Token ids that stand before the proto-tokens of every text: (P,) int32; a scheme may leave `prefix` out."""
    prefix = getattr(scheme, "prefix", None)
    assert not isinstance(prefix, str), "resolve_prefix makes ids of words"
    return np.asarray(prefix or (), np.int32)


def resolve_prefix(scheme: _S, model: Model, default: str | None = None) -> _S:
    """The scheme with token ids in place of a word, or of a text, for its prefix.

    Args:
      scheme: as given.
      model: gives tokenizer and vocabulary.
      default: for a scheme that names no prefix: "none", "bos", or "auto", which is the BOS where the first position is
        a sink (`sinks.has_sink`). A model without such a token then has none.

    Raises:
      UserError: for a prefix that the model cannot have.
    """
    given = getattr(scheme, "prefix", None)
    if given is not None:
        return _with_prefix(scheme, prefix_tokens(model, given))
    bos = bos_token(model)
    if default not in (BOS, AUTO) or not hasattr(scheme, "prefix") or bos is None:
        return scheme
    return scheme if default == AUTO and not has_sink(model) else _with_prefix(scheme, np.array([bos], np.int32))


def _with_prefix(scheme: Any, ids: np.ndarray) -> Any:
    return dataclasses.replace(scheme, prefix=tuple(ids.tolist()))


def prefix_tokens(model: Model, prefix: str | Sequence[int]) -> np.ndarray:
    """Token ids of a prefix: (P,) int32, none for "none".

    Args:
      model: gives tokenizer and vocabulary.
      prefix: "none" or an empty text, "bos" (the tokenizer's beginning-of-text token, else its end-of-text token), a
        text, which is tokenised with the tokenizer's special tokens, or token ids.

    Raises:
      UserError: for a model without a tokenizer or without such a token, or an id that it does not have.
    """
    if isinstance(prefix, str):
        if prefix in (NONE, ""):
            return np.zeros(0, np.int32)
        if prefix == BOS:
            bos = bos_token(model)
            if bos is None:
                cure = "give --prefix none, or a text"
                raise UserError(f"model {model.source!r} names neither a BOS nor an end-of-text token; {cure}")
            return np.array([bos], np.int32)
        if model.tokenizer is None:
            raise UserError(f"model {model.source!r} has no tokenizer: give a prefix as token ids")
        prefix = model.tokenizer(prefix, verbose=False)["input_ids"]
    if not len(check_list("none, bos, a text or token ids", "prefix", prefix)):
        return np.zeros(0, np.int32)
    try:
        (ids,) = check_tokens([prefix], model.config.vocab_size, model.config.context)
    except UserError as error:
        raise UserError(f"prefix: {str(error).removeprefix('text 0: ')}") from error
    return ids


def own_prefixes(
    model: Model, scheme: Scheme, prefixes: Sequence[str] | Sequence[Sequence[int]] | None, texts: int
) -> tuple[np.ndarray, ...]:
    """Token ids before each of so many texts, where each has its own prefix; else none.

    Raises:
      UserError: if the scheme has a prefix as well, there is not one for each text, or the model cannot have one.
    """
    if prefixes is None:
        return ()
    if getattr(scheme, "prefix", None) is not None:
        raise UserError("prefixes of the texts, and a prefix of the scheme: give one of them")
    prefixes = check_list("a prefix for each text", "prefixes", prefixes)
    if len(prefixes) != texts:
        raise UserError(f"{len(prefixes)} prefixes for {texts} texts: expected one for each")
    own = tuple(prefix_tokens(model, prefix) for prefix in prefixes)
    return own if any(map(len, own)) else ()


def settle_prefix(
    scheme: _S,
    model: Model,
    default: str | None,
    prefixes: Sequence[str] | Sequence[Sequence[int]] | None,
    texts: int,
) -> tuple[_S, tuple[np.ndarray, ...]]:
    """The scheme with token ids for its prefix, and the token ids before each text where each has its own.

    Texts whose own prefixes are all empty have none. The default is for texts that were given no prefixes.

    Args:
      scheme, model, default: as of `resolve_prefix`.
      prefixes, texts: as of `own_prefixes`.

    Raises:
      UserError: as of both.
    """
    before = own_prefixes(model, scheme, prefixes, texts)
    if prefixes is None or not hasattr(scheme, "prefix"):
        return resolve_prefix(scheme, model, default), before
    return (scheme if before else _with_prefix(scheme, np.zeros(0, np.int32))), before


def bos_token(model: Model) -> int | None:
    """The beginning-of-text token, else the end-of-text token, of the tokenizer, or without one of config.json.

    One for which the embedding table has no row does not count.
    """
    names = ("bos_token_id", "eos_token_id")
    if model.tokenizer is not None:
        found = [getattr(model.tokenizer, name, None) for name in names]
    else:
        found = [model.described.get(name) for name in names]
    firsts = [ids[0] if isinstance(ids, list) and ids else ids for ids in found]
    return next((i for i in firsts if isinstance(i, int) and 0 <= i < model.config.vocab_size), None)


def prefix_rows(prefixes: Sequence[np.ndarray]) -> int:
    """P, to which prefixes are padded together: the longest length."""
    return max(map(len, prefixes), default=0)


def prefix_vectors(model: Model, prefix: np.ndarray) -> np.ndarray:
    """(P, D) input vectors of a prefix, in the dtype of the weights."""
    return np.asarray(model.embed(model.params, jax.numpy.asarray(prefix, np.int32)))


def check_reach(boundary: int | None, rows: int, positions: int) -> None:
    """Refuse a prefix of which the keys would be rotated otherwise than the inputs behind it.

    Args:
      boundary: see `ModelConfig.boundary`.
      rows: tokens of the longest prefix.
      positions: inputs behind it at most.

    Raises:
      UserError: where rotary positions change within prefix and inputs.
    """
    if boundary is not None and rows and rows + positions > boundary:
        reason = f"a prefix of {rows} tokens and {positions} positions behind it reach beyond position {boundary}"
        raise UserError(f"{reason}, where this model's rotary positions change; give a shorter text, or no prefix")


def stack_prefixes(prefixes: Sequence[np.ndarray], rows: int) -> Prefixes | None:
    """The prefixes of texts, one above the other, padded to `rows` tokens (P); None for 0."""
    if not rows:
        return None
    lengths = np.array([len(prefix) for prefix in prefixes], np.int32)
    tokens = np.zeros((len(prefixes), rows), np.int32)
    for row, prefix in zip(tokens, prefixes, strict=True):
        row[: len(prefix)] = prefix
    return Prefixes(tokens, lengths)


def pasts_of(network: Network, params: Params, prefixes: Prefixes | None) -> Past | None:
    """Keys and values of each prefix, with the same leading axes; None without prefixes."""
    if prefixes is None:
        return None

    def one(tokens_P: Array, length: Array) -> Past:
        return network.past(params, tokens_P, length)

    for _ in range(np.ndim(prefixes.lengths_G)):
        one = jax.vmap(one)
    return one(prefixes.tokens_GP, prefixes.lengths_G)

"""The texts of a fit as token ids that model, arrangement and prefix can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onestep_jax.errors import SIZE, UserError
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.prefixes import check_reach, prefix_of, prefix_rows
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.tokens import check_text, check_tokens, tokenise


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
    if length is not None and length > context:
        room = f" less {scheme.extra} of {scheme.notation}" if scheme.extra else ""
        room += f" less {longest} of the prefix" if longest else ""
        raise UserError(f"length {length} is beyond the model's context of {model.config.context} positions{room}")
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

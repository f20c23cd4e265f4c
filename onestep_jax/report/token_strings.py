"""Strings of tokens: the tokenizer of a run's model, and the string of each token of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.model.hub import locate
from onestep_jax.model.tokenizer import load_tokenizer
from onestep_jax.tokens import as_text

_BROKEN = "\ufffd"  # a tokenizer's string for bytes that are no character
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def find_tokenizer(source: str, revision: str | None = None) -> tuple[Any, str]:
    """Load the tokenizer of a model, without its weights.

    Args:
      source, revision: of the model, see `load_model`.

    Returns:
      The tokenizer and "", or None and the reason why there is none.
    """
    try:
        tokenizer = load_tokenizer(locate(source, revision, weights=False))
    except UserError as error:
        return None, str(error)
    return tokenizer, "" if tokenizer is not None else f"model {source!r} has no tokenizer"


def token_pieces(tokenizer: Any, ids: Sequence[int] | np.ndarray) -> list[str]:
    """String of each token of a text: what it adds to the string of the token before it.

    A token that holds a part of a character is shown as bytes, such as "\\xe2". Without a tokenizer a token is shown as
    its id.
    """
    if tokenizer is None:
        return [str(int(token)) for token in ids]
    pieces = []
    for i, token in enumerate(ids):
        alone = as_text(tokenizer, [token])
        before = as_text(tokenizer, ids[i - 1 : i]) if i else ""
        both = as_text(tokenizer, ids[i - 1 : i + 1]) if i else alone
        if both.startswith(before) and _BROKEN not in both:
            pieces.append(both[len(before) :])
        else:
            pieces.append(_spell(tokenizer, int(token)) if _BROKEN in alone else alone)
    return pieces


def _spell(tokenizer: Any, token: int) -> str:
    """String of a token that is no whole character, from its entry in the vocabulary."""
    entry = str(tokenizer.convert_ids_to_tokens(token))
    if byte := _BYTE.fullmatch(entry):
        return f"\\x{byte[1].lower()}"
    if all(character in _BYTES for character in entry):
        return bytes(_BYTES[character] for character in entry).decode(errors="backslashreplace")
    return entry


def _byte_alphabet() -> dict[str, int]:
    """Character → byte in vocabularies of byte-level BPE (GPT-2), where printable bytes are their own characters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()

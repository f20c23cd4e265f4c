"""Windows of texts to train on and to validate on: whole texts are left out for validation, so that none is seen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Model

HELD_OUT = 20  # one text of so many is left out for validation
_PIECE = 200_000  # characters of a piece, which is tokenised by itself
_TOGETHER = 64  # pieces tokenised at a time


@dataclasses.dataclass(frozen=True)
class Pool:
    """Token ids of texts, one after the other.

    Attributes:
      tokens_M: (M,) of all texts, an unsigned type or int32.
      ends: (texts,) where each text ends.
    """

    tokens_M: np.ndarray
    ends: np.ndarray

    def windows(self, rng: np.random.Generator, count: int, length: int) -> np.ndarray:
        """Windows drawn uniformly from all that lie within one text, (count, length) int32.

        Raises:
          UserError: if no text is so long.
        """
        starts = np.concatenate([[0], self.ends[:-1]])
        places = np.maximum(self.ends - starts - length + 1, 0)
        last = np.cumsum(places)
        if not len(last) or not last[-1]:
            raise UserError(f"no text has {length} tokens: give longer texts, or a smaller --length")
        drawn = rng.integers(last[-1], size=count)
        text = np.searchsorted(last, drawn, side="right")
        first = starts[text] + drawn - (last[text] - places[text])
        return np.stack([self.tokens_M[i : i + length] for i in first]).astype(np.int32)


def make_pool(model: Model, texts: Sequence[str]) -> Pool:
    """Tokenise whole texts, without special tokens, in pieces.

    Raises:
      UserError: for a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise UserError(f"model {model.source!r} has no tokenizer, which training on texts needs")
    kept: Any = np.uint16 if model.config.vocab_size <= 2**16 else np.int32
    pieces = [(i, first) for i, text in enumerate(texts) for first in range(0, len(text), _PIECE)]
    ids: list[np.ndarray] = []
    sizes = np.zeros(len(texts), np.int64)
    for begin in range(0, len(pieces), _TOGETHER):  # a list of texts is tokenised on all cores
        some = pieces[begin : begin + _TOGETHER]
        given = [texts[i][first : first + _PIECE] for i, first in some]
        made = model.tokenizer(given, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids += [np.asarray(row, np.int64) for row in made]
        np.add.at(sizes, [i for i, _ in some], [len(row) for row in made])
    tokens = np.concatenate([np.zeros(0, np.int64), *ids])
    check_ids(model, tokens)
    return Pool(tokens.astype(kept), np.cumsum(sizes))


def check_ids(model: Model, tokens_M: np.ndarray) -> None:
    """Refuse token ids beyond the vocabulary of a model, such as those of another one's tokenizer.

    Raises:
      UserError: for such an id.
    """
    if len(tokens_M) and tokens_M.max() >= model.config.vocab_size:
        raise UserError(f"token id {tokens_M.max()} has no row in the model's table of {model.config.vocab_size}")


def tokenizer_digest(model: Model) -> str:
    """16 hexadecimal digits of what decides the ids of a text: a fast tokenizer, or else its tokens and the model."""
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
    else:
        vocabulary = sorted(tokenizer.get_vocab().items()) if hasattr(tokenizer, "get_vocab") else []
        content = json.dumps([model.fingerprint, type(tokenizer).__name__, vocabulary])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def divide(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Texts to train on and whole texts to validate on, the last of each `HELD_OUT`; of one text, its last tenth."""
    if len(texts) == 1:
        cut = len(texts[0]) * 9 // 10
        return [texts[0][:cut]], [texts[0][cut:]]
    every = min(HELD_OUT, len(texts))
    held = [text for i, text in enumerate(texts) if i % every == every - 1]
    return [text for i, text in enumerate(texts) if i % every != every - 1], held

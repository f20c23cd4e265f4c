"""Metrics of one stored result: horizons, nats, and text against vectors in bytes. All are plain host values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onestep_jax.model.decoder import Model
from onestep_jax.store.results import TextResult
from onestep_jax.tokens import as_text

THRESHOLD = 0.99  # accuracy from which the paper counts a text as reconstructed


def horizon(predicted_N: Any, tokens_N: Any, threshold: float = THRESHOLD) -> int:
    """Measure the longest prefix whose accuracy reaches a threshold, in tokens.

    By causality the same vectors, unchanged, reconstruct that prefix. `exact_horizon` tells whether the threshold of
    99 % matters.

    Args:
      predicted_N: (N,) token ids of the one forward pass.
      tokens_N: (N,) target ids.
      threshold: accuracy (Eq. 2) that the prefix must have.
    """
    hits_N = np.asarray(predicted_N) == np.asarray(tokens_N)
    lengths_N = np.arange(1, len(hits_N) + 1)
    return int(lengths_N[np.cumsum(hits_N) / lengths_N >= threshold].max(initial=0))


def exact_horizon(predicted_N: Any, tokens_N: Any) -> int:
    """Measure the longest prefix without an error, in tokens; see `horizon`."""
    return horizon(predicted_N, tokens_N, 1.0)


def reconstructed(result: TextResult, threshold: float = THRESHOLD) -> bool:
    """Tell whether a text counts as reconstructed, by its accuracy (Eq. 2); the paper asks for at least 0.99."""
    return result.accuracy >= threshold


def bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / math.log(2)


def prefix_nats(result: TextResult, length: int) -> float:
    """Add up H_LM (Eq. 3) of the first `length` tokens, in nats; without a BOS the first token has no term."""
    return float(np.nansum(result.nats[:length], dtype=np.float64))


# --- text against vectors ---


@dataclasses.dataclass(frozen=True)
class Compression:
    """Sizes of a text and of the vectors that give it.

    This is not file compression: the vectors take many times the bytes of the text, and they need the model. The paper
    measures how much text a frozen model can be made to emit, per vector or per float.

    Attributes:
      tokens: tokens of the text (N).
      exact_tokens: exact tokens among them (C_tokens, Eq. 2).
      text_bytes: of the decoded text in UTF-8, None without a tokenizer. If the text is cut inside a character, each of
        that character's bytes counts as U+FFFD, three bytes.
      id_bytes: of the token ids at ceil(log2 V) bits each, packed without gaps and rounded up to whole bytes.
      floats: numbers stored for the text; a leaf that G texts share counts 1/G for each of them.
      vector_bytes: of these numbers as stored, in float32.
      model_vector_bytes: of these numbers in the dtype of the model's weights, which they are cast to before use.
      nats: H_LM of the whole text (Eq. 3).
      bits: the same in bits.
      exact_nats: the terms of H_LM that belong to exact tokens, in nats.
    """

    tokens: int
    exact_tokens: int
    text_bytes: int | None
    id_bytes: int
    floats: float
    vector_bytes: float
    model_vector_bytes: float
    nats: float
    bits: float
    exact_nats: float

    @property
    def tokens_per_float(self) -> float:
        """Exact tokens per stored number."""
        return self.exact_tokens / self.floats

    @property
    def nats_per_float(self) -> float:
        """Nats of exact tokens per stored number."""
        return self.exact_nats / self.floats

    @property
    def expansion(self) -> float | None:
        """Bytes of vectors per byte of text, None without a tokenizer; above 1 the text itself is smaller."""
        return None if self.text_bytes is None else self.vector_bytes / self.text_bytes


def compression(model: Model, result: TextResult, scheme: Mapping[str, Any] | None = None) -> Compression:
    """Compare the sizes of a text and of its vectors.

    Args:
      model: the model that the vectors were fitted on.
      result: of one text.
      scheme: description of the arrangement (`Results.scheme`), which names the shared leaf and the number of texts
        that share it (Table 2, S_g); None if nothing is shared.
    """
    scheme = scheme or {}
    sharing = {scheme.get("share"): scheme.get("group", 1)}
    floats = sum(np.size(leaf) / sharing.get(name, 1) for name, leaf in result.vectors.items())
    text = None if model.tokenizer is None else as_text(model.tokenizer, result.tokens)
    exact_N = np.asarray(result.predicted) == result.tokens
    nats = prefix_nats(result, len(result.tokens))
    return Compression(
        tokens=len(result.tokens),
        exact_tokens=int(exact_N.sum()),
        text_bytes=None if text is None else len(text.encode()),
        id_bytes=-(-len(result.tokens) * (model.config.vocab_size - 1).bit_length() // 8),
        floats=floats,
        vector_bytes=floats * np.dtype(np.float32).itemsize,
        model_vector_bytes=floats * np.dtype(model.dtype).itemsize,
        nats=nats,
        bits=bits(nats),
        exact_nats=float(np.nansum(result.nats[exact_N], dtype=np.float64)),
    )

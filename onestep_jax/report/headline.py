"""Numbers of a run: what it reached, and the sizes of its texts and vectors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from onestep_jax.analysis import bits, reconstructed
from onestep_jax.report.inputs import FittedRun
from onestep_jax.tokens import as_text

PLAIN_BITS = 32  # of a token id, if the vocabulary is not known


class Headline(NamedTuple):
    """A run in numbers, over its recorded texts.

    Attributes:
      texts: how many are recorded.
      planned: how many the run was given.
      exact: texts at accuracy 1.
      reconstructed: texts at accuracy 0.99 or more.
      accuracy: mean over the texts.
      c_tokens: exact tokens over all texts (Eq. 2).
      tokens: tokens over all texts.
      nats: H_LM (Eq. 3) of all texts together.
      longest_exact, longest_reconstructed: tokens of the longest such text, 0 if there is none.
      steps: median over the texts of their gradient evaluations.
      seconds: wall-clock time of the fit that belongs to the recorded texts.
    """

    texts: int
    planned: int
    exact: int
    reconstructed: int
    accuracy: float
    c_tokens: int
    tokens: int
    nats: float
    longest_exact: int
    longest_reconstructed: int
    steps: float
    seconds: float


def headline(run: FittedRun) -> Headline:
    """Compute the numbers of a run."""
    texts = run.results.texts
    exact = [len(text.tokens) for text in texts if text.accuracy == 1]
    good = [len(text.tokens) for text in texts if reconstructed(text)]
    return Headline(
        texts=len(texts),
        planned=run.planned,
        exact=len(exact),
        reconstructed=len(good),
        accuracy=float(run.results.accuracy.mean()),
        c_tokens=sum(text.c_tokens for text in texts),
        tokens=sum(len(text.tokens) for text in texts),
        nats=math.fsum(text.h_lm for text in texts),
        longest_exact=max(exact, default=0),
        longest_reconstructed=max(good, default=0),
        steps=float(np.median(run.results.steps)),
        seconds=math.fsum(text.seconds for text in texts),
    )


class Sizes(NamedTuple):
    """Sizes of a run's texts in several forms, and of their vectors, in bytes.

    Attributes:
      text: the texts as UTF-8; None without a tokenizer.
      ids: the texts as token ids of `id_bits` bits each.
      id_bits: bits of a token id, enough for the vocabulary.
      code: the texts as an arithmetic code under the same model, H_LM / (8 ln 2).
      vectors: the learned vectors as float32; a shared one counts once.
    """

    text: int | None
    ids: int
    id_bits: int
    code: int
    vectors: int


def sizes(run: FittedRun) -> Sizes:
    """Compute the sizes of a run's texts and vectors."""
    texts = run.results.texts
    id_bits = PLAIN_BITS if run.tokenizer is None else math.ceil(math.log2(max(2, len(run.tokenizer))))
    written = None
    if run.tokenizer is not None:
        written = sum(len(as_text(run.tokenizer, text.tokens).encode(errors="replace")) for text in texts)
    different = {(leaf, vector.tobytes()) for text in texts for leaf, vector in text.vectors.items()}
    return Sizes(
        text=written,
        ids=sum(math.ceil(len(text.tokens) * id_bits / 8) for text in texts),
        id_bits=id_bits,
        code=math.ceil(bits(headline(run).nats) / 8),
        vectors=sum(len(content) for _, content in different),
    )

"""What is known of each text after a fit: plain host values, the same whether kept in memory or read from a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Trial:
    """One text from one seed.

    Attributes:
      seed: its number.
      status: "solved", "exhausted" or "failed" of a fit; "encoded" of an encoder, "refined" after its corrections.
      accuracy: share of exact tokens at the kept vectors.
      loss: nats per token there, mean over the group.
      steps: gradient evaluations spent.
      best_step: updates made before the kept vectors.
      trace: (points, 3) float64: steps, loss, accuracy (mean over the group) after each chunk.
      first_hit: (tokens,) int32, the gradient evaluation at which a token was first right, −1 for never.
      path: leaf → (points, *shape) float32, the vectors at each point of `trace`, if recording was asked for.
    """

    seed: int
    status: str
    accuracy: float
    loss: float
    steps: int
    best_step: int
    trace: np.ndarray = dataclasses.field(repr=False)
    first_hit: np.ndarray = dataclasses.field(repr=False)
    path: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class TextResult:
    """The best trial of one text, with its vectors.

    Attributes:
      index: place in the source.
      text_id: hash of the token ids, see `tokens.text_ids`.
      tokens: (N,) int32 target ids.
      prefix: (P,) int32 ids of the frozen tokens before the vectors, often none.
      vectors: leaf → (D,) float32, or (K, D) for the `mem` of `schemes.Cramming`.
      predicted: (N,) int32, the argmax ids at the kept vectors, by the decode program.
      nats: (N,) float32, −ln P(t_i | t_<i) under the model run autoregressively behind the prefix, without one behind
        the tokenizer's BOS; NaN for the first token where there is neither.
      accuracy: C_tokens / N by the decode program (Eq. 2).
      c_tokens: number of exact tokens.
      loss: nats per token at the kept vectors, mean over the group.
      steps: gradient evaluations spent, over all seeds.
      best_step: updates made before the kept vectors, in their own trial.
      seconds: share of the wall-clock, over all seeds (chunk time divided by the slots running).
      seed: of the best trial.
      status: of the best trial.
      h_lm: H_LM (Eq. 3), the sum of `nats` without the NaN.
      trials: every seed that was tried.
      margin: logits by which the token that leads least leads the runner-up, by the decode program at the kept vectors,
        negative where one is wrong; NaN in runs of versions that did not keep it.
    """

    index: int
    text_id: str
    tokens: np.ndarray = dataclasses.field(repr=False)
    vectors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    predicted: np.ndarray = dataclasses.field(repr=False)
    nats: np.ndarray = dataclasses.field(repr=False)
    accuracy: float
    c_tokens: int
    loss: float
    steps: int
    best_step: int
    seconds: float
    seed: int
    status: str
    h_lm: float
    trials: tuple[Trial, ...] = dataclasses.field(default=(), repr=False)
    prefix: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32), repr=False)
    margin: float = float("nan")

    @property
    def best_trial(self) -> Trial | None:
        """The trial whose vectors were kept, or None if it was not recorded."""
        return next((trial for trial in self.trials if trial.seed == self.seed), None)


@dataclasses.dataclass(frozen=True)
class Results:
    """Results in source order.

    Attributes:
      texts: one entry a text.
      scheme: description of the arrangement, see `schemes.from_description`.
      model: fingerprint of the model that the vectors belong to.
      source: where that model came from, such as "default" or a hub id.
      revision: of that hub id, None where none was asked for.
    """

    texts: tuple[TextResult, ...]
    scheme: Mapping[str, Any]
    model: str
    source: str = ""
    revision: str | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[TextResult]:
        return iter(self.texts)

    def __getitem__(self, index: int) -> TextResult:
        return self.texts[index]

    @property
    def vectors(self) -> dict[str, np.ndarray]:
        """leaf → (texts, *shape) float32; a shared leaf is repeated."""
        names = self.texts[0].vectors if self.texts else ()
        return {name: np.stack([text.vectors[name] for text in self.texts]) for name in names}

    @property
    def accuracy(self) -> np.ndarray:
        """(texts,) float64."""
        return np.array([text.accuracy for text in self.texts])

    @property
    def margin(self) -> np.ndarray:
        """(texts,) float64, logits; NaN where it is not known."""
        return np.array([text.margin for text in self.texts])

    @property
    def steps(self) -> np.ndarray:
        """(texts,) int64, gradient evaluations over all seeds."""
        return np.array([text.steps for text in self.texts])

    @property
    def status(self) -> list[str]:
        """Status of each text's best trial."""
        return [text.status for text in self.texts]

    @property
    def solved(self) -> int:
        """Number of texts at accuracy 1, whatever their margin."""
        return sum(text.accuracy == 1 for text in self.texts)

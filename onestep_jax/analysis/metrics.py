"""Numbers of stored results: horizons, capacity (Table 3), what is held per stored float; host values only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.reconstruction import as_text
from onestep_jax.store.results import TextResult

THRESHOLD = 0.99  # accuracy from which the paper counts a text as reconstructed


def horizon(predicted_N: Any, tokens_N: Any, threshold: float = THRESHOLD) -> int:
    """Measure how far a text is right: the longest prefix whose accuracy reaches a threshold, in tokens.

    By causality the vectors reconstruct that prefix as they are; whether 99 % is a limit shows beside `exact_horizon`.

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
    """Tell whether a text counts as reconstructed: accuracy (Eq. 2) of at least 0.99 in the paper's capacities."""
    return result.accuracy >= threshold


def bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / math.log(2)


def prefix_nats(result: TextResult, length: int) -> float:
    """Add up H_LM (Eq. 3) of the first `length` tokens, in nats; without a BOS the first token has no term."""
    return float(np.nansum(result.nats[:length], dtype=np.float64))


# --- what the vectors hold ---


@dataclasses.dataclass(frozen=True)
class Compression:
    """What a text's vectors hold, beside what the text takes in a file.

    This is no file compression: the vectors take many times the bytes of the text, and only work together with the
    model. What the paper measures is how much text a frozen model can be made to emit, per vector or per float.

    Attributes:
      tokens: tokens of the text (N).
      exact_tokens: those that come out right (C_tokens, Eq. 2).
      text_bytes: of the decoded text in UTF-8, None without a tokenizer; a text cut inside a character has that
        character's bytes counted as U+FFFD, three bytes for each.
      id_bytes: of the token ids at ceil(log2 V) bits each, packed without gaps and rounded up to whole bytes.
      floats: numbers stored for the text; a leaf that G texts share counts 1/G for each of them.
      vector_bytes: of these as stored, in float32.
      model_vector_bytes: of these in the dtype of the model's weights, to which they are cast on their way in.
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
        """Bytes stored per byte of text, None without a tokenizer; above 1 the text alone would be the smaller."""
        return None if self.text_bytes is None else self.vector_bytes / self.text_bytes


def compression(model: Model, result: TextResult, scheme: Mapping[str, Any] | None = None) -> Compression:
    """Compare what a text's vectors hold with what they take.

    Args:
      model: the model that they were fitted on.
      result: of one text.
      scheme: description of the arrangement (`Results.scheme`), from which the shared leaf and the texts that share
        it are taken (Table 2, S_g); None if nothing is shared.
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


# --- many texts ---


def summary(results: Iterable[TextResult], threshold: float = THRESHOLD) -> dict[str, Any]:
    """Summarise a run in plain values.

    Args:
      results: of `fit`, or read from a run directory.
      threshold: accuracy from which a text counts as reconstructed.

    Returns:
      Numbers of texts: `texts`, `solved` (accuracy 1), `reconstructed` (0.99 in the paper). `accuracy_mean`,
      `accuracy_median` (Eq. 2), `c_tokens` (exact tokens in all), `tokens` (in all), `h_lm_nats_mean`, `h_lm_nats_std`
      and the same in bits (Eq. 3; mean and population standard deviation over texts), `steps_mean`, `steps_median`
      (gradient evaluations of a text, over its seeds) and `seconds` (in all, see `TextResult`). Means, medians and
      deviations are None where there is no text.
    """
    texts = list(results)
    steps = [text.steps for text in texts]
    accuracy = [text.accuracy for text in texts]
    h_lm = [text.h_lm for text in texts]
    nats_mean, nats_std = _or_none(np.mean, h_lm), _or_none(np.std, h_lm)
    return {
        "texts": len(texts),
        "solved": sum(text.accuracy == 1 for text in texts),
        "reconstructed": sum(reconstructed(text, threshold) for text in texts),
        "accuracy_mean": _or_none(np.mean, accuracy),
        "accuracy_median": _or_none(np.median, accuracy),
        "tokens": sum(len(text.tokens) for text in texts),
        "c_tokens": sum(text.c_tokens for text in texts),
        "h_lm_nats_mean": nats_mean,
        "h_lm_nats_std": nats_std,
        "h_lm_bits_mean": None if nats_mean is None else bits(nats_mean),
        "h_lm_bits_std": None if nats_std is None else bits(nats_std),
        "steps_mean": _or_none(np.mean, steps),
        "steps_median": _or_none(np.median, steps),
        "seconds": sum(text.seconds for text in texts),
    }


def _or_none(statistic: Any, values: Sequence[float]) -> float | None:
    return float(statistic(values)) if len(values) else None


# --- capacity ---


@dataclasses.dataclass(frozen=True)
class Capacity:
    """How much of one text a model holds, as far as the tried lengths tell.

    Attributes:
      tokens: the longest tried length that is reconstructed; 0 if none is.
      c_tokens: tokens that are right among those (Eq. 2).
      h_lm: nats of that prefix (Eq. 3).
      exact_tokens: the longest tried length without an error; 0 if there is none.
      exact_h_lm: nats of that prefix.
      horizon: the longest reconstructed prefix of any fit, whether its length was tried or not.
      exact_horizon: the longest prefix of any fit without an error.
      longest_tried: tokens; a capacity that reaches it is only a lower bound.
      best: the fit with the longest horizon; the longest exact one among equals, then the shortest fit.
      evaluations: gradient evaluations spent on this text, over all lengths and seeds.
      token_positions: the same, each times the length it was spent on: proportional to the arithmetic of the matrix
        products.
    """

    tokens: int
    c_tokens: int
    h_lm: float
    exact_tokens: int
    exact_h_lm: float
    horizon: int
    exact_horizon: int
    longest_tried: int
    best: TextResult = dataclasses.field(repr=False)
    evaluations: int
    token_positions: int


def capacity(
    fits: Iterable[TextResult],
    *,
    lengths: Iterable[int] | None = None,
    threshold: float = THRESHOLD,
    nested: bool = False,
) -> Capacity:
    """Read the capacity of one text from fits of its prefixes (Table 3).

    Args:
      fits: results of prefixes of one text, at least one.
      lengths: the tried lengths; those of the fits by default. Others can only be reached with `nested`.
      threshold: accuracy from which a prefix counts as reconstructed.
      nested: let a fit answer for every shorter length as well, by its own first tokens, which causality allows for
        arrangements that do not depend on the length. Without it a length counts by its own fit only, as in the paper.

    Raises:
      UserError: if there is no fit, or the fits are not of one text.
    """
    fits = sorted(fits, key=lambda fit: len(fit.tokens))
    if not fits:
        raise UserError("capacity of no fits: expected at least one length of the text")
    longest = fits[-1].tokens
    for fit in fits:
        if not np.array_equal(fit.tokens, longest[: len(fit.tokens)]):
            raise UserError(f"capacity: fits {fit.text_id} and {fits[-1].text_id} are not prefixes of one text")
    tried = sorted({len(fit.tokens) for fit in fits} if lengths is None else set(lengths))
    tokens, fit = _longest(fits, tried, threshold, nested)
    exact_tokens, _ = _longest(fits, tried, 1.0, nested)
    reach = [(horizon(fit.predicted, fit.tokens, threshold), exact_horizon(fit.predicted, fit.tokens)) for fit in fits]
    return Capacity(
        tokens=tokens,
        c_tokens=int(np.sum(fit.predicted[:tokens] == fit.tokens[:tokens])),
        h_lm=prefix_nats(fits[-1], tokens),
        exact_tokens=exact_tokens,
        exact_h_lm=prefix_nats(fits[-1], exact_tokens),
        horizon=max(far for far, _ in reach),
        exact_horizon=max(exact for _, exact in reach),
        longest_tried=max(tried),
        best=fits[max(range(len(fits)), key=lambda i: (*reach[i], -i))],
        evaluations=sum(fit.steps for fit in fits),
        token_positions=sum(fit.steps * len(fit.tokens) for fit in fits),
    )


def _longest(
    fits: Sequence[TextResult], tried: Sequence[int], threshold: float, nested: bool
) -> tuple[int, TextResult]:
    """The longest tried length that is reconstructed, and by which fit; 0 by the first if there is none."""
    for length in reversed(tried):
        for fit in fits:
            if len(fit.tokens) == length or (nested and len(fit.tokens) > length):
                hits = fit.predicted[:length] == fit.tokens[:length]
                if hits.mean() >= threshold:
                    return length, fit
    return 0, fits[0]


@dataclasses.dataclass(frozen=True)
class CapacitySummary:
    """A cell of Table 3, with what it leaves out.

    Table 3 prints one number of tokens and the mean ± standard deviation of H_LM without saying how the texts were
    put together. Read here: C_tokens is the maximum over texts, H_LM averages over texts, each at its own capacity. A
    mean of tokens would not fall on tried lengths as nearly all of them do, and where tokens and nats of a cell
    disagree (Pythia-1.4B on fanfics: 131 tokens and fewer nats than the 128 of Pythia-410M) the nats are too few for
    the tokens to be typical. Cells like 131, which is no tried length, stay unexplained. Median and mean are given
    beside, for whoever reads it otherwise.

    Attributes:
      texts: how many.
      c_tokens_max, c_tokens_median, c_tokens_mean: over texts, of `Capacity.c_tokens`.
      h_lm_mean, h_lm_std: nats over texts, of `Capacity.h_lm`; the population's standard deviation.
      exact_tokens_max, exact_tokens_median, exact_tokens_mean: over texts, of `Capacity.exact_tokens`.
      exact_h_lm_mean, exact_h_lm_std: nats over texts, of `Capacity.exact_h_lm`.
      at_longest: texts whose capacity is the longest tried length, so that the truth may be longer.
    """

    texts: int
    c_tokens_max: int
    c_tokens_median: float
    c_tokens_mean: float
    h_lm_mean: float
    h_lm_std: float
    exact_tokens_max: int
    exact_tokens_median: float
    exact_tokens_mean: float
    exact_h_lm_mean: float
    exact_h_lm_std: float
    at_longest: int


def summarise_capacities(capacities: Sequence[Capacity]) -> CapacitySummary:
    """Put the capacities of many texts together as in Table 3; see `CapacitySummary` for the reading.

    Raises:
      UserError: if there are none.
    """
    if not capacities:
        raise UserError("no capacities: expected those of at least one text")
    c_tokens, exact = ([getattr(c, name) for c in capacities] for name in ("c_tokens", "exact_tokens"))
    h_lm, exact_h_lm = ([getattr(c, name) for c in capacities] for name in ("h_lm", "exact_h_lm"))
    return CapacitySummary(
        texts=len(capacities),
        c_tokens_max=max(c_tokens),
        c_tokens_median=float(np.median(c_tokens)),
        c_tokens_mean=float(np.mean(c_tokens)),
        h_lm_mean=float(np.mean(h_lm)),
        h_lm_std=float(np.std(h_lm)),
        exact_tokens_max=max(exact),
        exact_tokens_median=float(np.median(exact)),
        exact_tokens_mean=float(np.mean(exact)),
        exact_h_lm_mean=float(np.mean(exact_h_lm)),
        exact_h_lm_std=float(np.std(exact_h_lm)),
        at_longest=sum(c.tokens == c.longest_tried for c in capacities),
    )

"""Reconstruction: the text of given vectors from one forward pass, or token by token from the vectors alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Model, Network, Params
from onestep_jax.model.generation import generate
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.schemes import Array, Leaves, OneStep, Scheme, axes, from_description
from onestep_jax.store.results import Results, TextResult
from onestep_jax.store.verify import Decoding
from onestep_jax.tokens import buckets

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A token that came out wrong.

    Attributes:
      position: counted from 0.
      expected, got: token ids.
    """

    position: int
    expected: int
    got: int


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What came out for one text.

    Attributes:
      text_id: whose vectors they were.
      tokens: (N,) int32, the argmax ids.
      text: decoded string, or None without a tokenizer.
      expected: decoded target string, or None without a tokenizer.
      accuracy: share of tokens equal to the target (Eq. 2).
      wrong: the others.
    """

    text_id: str
    tokens: np.ndarray = dataclasses.field(repr=False)
    text: str | None
    expected: str | None
    accuracy: float
    wrong: tuple[Wrong, ...]


def decode(
    model: Model,
    results: Results | Iterable[TextResult],
    *,
    scheme: Scheme | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> list[Decoded]:
    """Reconstruct every text of `results` from its vectors, one forward pass per batch.

    Texts of the scheme `Cramming` are decoded with teacher forcing, as their accuracy is defined; see `regenerate`.

    Args:
      model: the model that the vectors were fitted on.
      results: of `fit`, or read from a run directory.
      scheme: the arrangement, where it is none of the package's own; by default what `results` say.
      batch: texts at a time.
      progress: called with the texts done and those there are, after each batch.

    Raises:
      UserError: if the vectors belong to another model.
    """
    if isinstance(results, Results):
        _check_model(model, results)
        scheme = scheme or from_description(results.scheme)
    scheme = scheme or OneStep()
    texts = list(results)
    predicted: dict[int, np.ndarray] = {}
    padded = np.array(buckets([len(text.tokens) for text in texts], model.config.boundary, scheme.extra), int)
    for positions in np.unique(padded):
        members = np.flatnonzero(padded == positions)
        for first in range(0, len(members), batch):
            chosen = members[first : first + batch]
            rows = np.resize(chosen, batch)
            leaves = {name: np.stack([texts[i].vectors[name] for i in rows]) for name in axes(scheme)}
            tokens = np.zeros((batch, positions), np.int32)
            for place, i in enumerate(rows):
                tokens[place, : len(texts[i].tokens)] = texts[i].tokens
            lengths = np.array([len(texts[i].tokens) for i in rows], np.int32)
            out = np.asarray(_predict(model.network, scheme, model.params, leaves, tokens, lengths))
            predicted |= {int(i): out[place, : len(texts[i].tokens)] for place, i in enumerate(chosen)}
            if progress is not None:
                progress(len(predicted), len(texts))
    return [_compare(model, text, predicted[i]) for i, text in enumerate(texts)]


def decoding_of(model: Model) -> Decoding:
    """What `store.verify.verify` asks for, to decode the vectors of a run again."""
    return Decoding(functools.partial(decode, model), str(model.dtype))


def regenerate(model: Model, results: Results, *, batch: int = BATCH) -> list[Decoded]:
    """Generate every text of a `Cramming` run greedily from its `mem` vectors alone (Kuratov et al.).

    An error early in a text derails what follows, which teacher-forced accuracy does not show: report both.

    Args:
      model: the model that the vectors were fitted on.
      results: of `fit`, or read from a run directory.
      batch: texts at a time.

    Raises:
      UserError: if the vectors belong to another model or another scheme.
    """
    _check_model(model, results)
    scheme = from_description(results.scheme)
    if not scheme.teacher_forced:
        raise UserError(
            f"{scheme.notation} is no autoregressive scheme: its vectors give the text in one pass (decode)"
        )
    lengths = np.array([len(text.tokens) for text in results], int)
    made: dict[int, np.ndarray] = {}
    for count in np.unique(lengths):
        members = np.flatnonzero(lengths == count)
        prompts = [results[int(i)].vectors["mem"] for i in members]
        new = generate(model, prompts, count=int(count), stop=(), batch=batch)
        made |= {int(i): text.tokens for i, text in zip(members, new, strict=True)}
    return [_compare(model, text, made[i]) for i, text in enumerate(results)]


def _check_model(model: Model, results: Results) -> None:
    if results.model != model.fingerprint:
        raise UserError(
            f"the vectors belong to model {results.source!r} ({results.model}), not to {model.source!r} "
            f"({model.fingerprint}); load the model they were fitted on"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
    network: Network, scheme: Scheme, params: Params, leaves: Leaves, tokens_BT: Array, lengths_B: Array
) -> Array:
    """Argmax ids (B, T) of texts from their leaves."""

    def one(leaves: Leaves, tokens_T: Array, length: Array) -> Array:
        return score_text(network, scheme, params, leaves, tokens_T, length).predicted_T

    return jax.vmap(one)(leaves, tokens_BT, lengths_B)


def _compare(model: Model, text: TextResult, predicted: np.ndarray) -> Decoded:
    places = np.flatnonzero(predicted != text.tokens)
    wrong = tuple(Wrong(int(i), int(text.tokens[i]), int(predicted[i])) for i in places)
    got, expected = None, None
    if model.tokenizer is not None:
        got, expected = as_text(model.tokenizer, predicted), as_text(model.tokenizer, text.tokens)
    accuracy = (len(text.tokens) - len(wrong)) / len(text.tokens)
    return Decoded(text.text_id, predicted, got, expected, accuracy, wrong)


def as_text(tokenizer: Any, ids: Iterable[int]) -> str:
    """String of token ids, special tokens shown and spaces untouched."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)

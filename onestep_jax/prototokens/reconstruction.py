"""Reconstruction of texts from their vectors: in one forward pass, or token by token from the vectors alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.devices.arithmetic import computed_with, pinned
from onestep_jax.devices.placement import local_devices
from onestep_jax.errors import MOST_TEXTS, UserError, check_kind, check_list
from onestep_jax.model.decoder import Model, Network, Params, Past
from onestep_jax.model.generation import generate
from onestep_jax.prototokens.objective import score_text
from onestep_jax.prototokens.prefixes import Prefixes, pasts_of, prefix_rows, prefix_vectors, stack_prefixes
from onestep_jax.prototokens.schemes import Array, Leaves, Scheme, axes, bare, from_description
from onestep_jax.store.results import Results, TextResult
from onestep_jax.store.verify import Decoding
from onestep_jax.tokens import as_text, batches

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A token that differs from the target.

    Attributes:
      position: counted from 0.
      expected: token id of the target.
      got: token id that came out.
    """

    position: int
    expected: int
    got: int


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The reconstruction of one text.

    Attributes:
      text_id: of the text.
      tokens: (N,) int32, the argmax ids.
      text: their string, or None without a tokenizer.
      expected: string of the target, or None without a tokenizer.
      accuracy: share of tokens equal to the target (Eq. 2).
      wrong: the tokens that differ from it.
      margin: logits by which the token that leads least leads the runner-up, negative where one is wrong; NaN where the
        text was generated.
    """

    text_id: str
    tokens: np.ndarray = dataclasses.field(repr=False)
    text: str | None
    expected: str | None
    accuracy: float
    wrong: tuple[Wrong, ...]
    margin: float = float("nan")


@pinned
def decode(
    model: Model,
    results: Results | Iterable[TextResult],
    *,
    scheme: Scheme | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> list[Decoded]:
    """Reconstruct every text of `results` from its vectors, one forward pass per batch.

    The accuracy of the scheme `Cramming` is defined with teacher forcing: each token is predicted after the true tokens
    before it. See `regenerate` for generation without them.

    Args:
      model: the model that the vectors were fitted on.
      results: of `fit`, or read from a run directory.
      scheme: the arrangement; by default the one that `results` name, which must then be one of the package's own. A
        list of texts names none.
      batch: texts in a forward pass.
      progress: called after each batch with the numbers of texts done and in all.

    Raises:
      UserError: if the vectors belong to another model, or the arrangement is not known.
    """
    check_kind("what load_model returns", Model, model=model)
    if isinstance(results, Results):
        check_model(model, results)
        scheme = scheme or from_description(results.scheme)
    MOST_TEXTS.check("batch", batch)
    texts = check_list("results of fit or of read_results", "results", results)
    check_kind("results of fit or of read_results", TextResult, **{f"results[{i}]": one for i, one in enumerate(texts)})
    if scheme is None:
        raise UserError("scheme: a list of texts does not say how their vectors are arranged; give it, or the results")
    batch = min(batch, max(BATCH, len(texts)))
    targets = [text.tokens for text in texts]
    lengths = [len(ids) for ids in targets]
    made: dict[int, np.ndarray] = {}
    margins: dict[int, float] = {}
    rows = prefix_rows([text.prefix for text in texts])
    before = scheme.extra + rows
    for chosen in batches(lengths, batch, boundary=model.config.boundary, extra=before, full=True):
        leaves = {name: np.stack([texts[i].vectors[name] for i in chosen.rows]) for name in axes(scheme)}
        tokens_BT, of_rows = chosen.pad(targets), stack_prefixes([texts[i].prefix for i in chosen.rows], rows)
        found = _predict(model.network, bare(scheme), model.params, leaves, tokens_BT, chosen.lengths, of_rows)
        predicted_BT, margin_B = map(np.asarray, found)
        made |= {i: ids_T[: lengths[i]] for i, ids_T in zip(chosen.texts, predicted_BT, strict=False)}
        margins |= zip(chosen.texts, margin_B.tolist(), strict=False)
        if progress is not None:
            progress(len(made), len(texts))
    return [_compare(model, text, made[i], margins[i]) for i, text in enumerate(texts)]


def decoding_of(model: Model) -> Decoding:
    """What `store.verify.verify` asks for, to decode the vectors of a run again."""
    return Decoding(functools.partial(decode, model), {"dtype": str(model.dtype), **computed_with(local_devices())})


@pinned
def regenerate(model: Model, results: Results, *, batch: int = BATCH) -> list[Decoded]:
    """Generate every text of a `Cramming` run greedily from its vectors alone (Kuratov et al., arXiv:2502.13063).

    One wrong token changes all that follow, which the teacher-forced accuracy of `decode` does not show. Report both.

    Args:
      model: the model that the vectors were fitted on.
      results: of `fit`, or read from a run directory.
      batch: texts in a forward pass at most.

    Raises:
      UserError: if the vectors belong to another model or another scheme.
    """
    MOST_TEXTS.check("batch", batch)
    check_model(model, results)
    scheme = from_description(results.scheme)
    if not scheme.teacher_forced:
        raise UserError(
            f"{scheme.notation} is not autoregressive; its vectors give the text in one forward pass, see decode"
        )
    lengths = np.array([len(text.tokens) for text in results], int)
    made: dict[int, np.ndarray] = {}
    for count in np.unique(lengths):
        members = np.flatnonzero(lengths == count)
        prompts = [behind_prefix(model, results[int(i)], _before_text(model, scheme, results[int(i)])) for i in members]
        new = generate(model, prompts, count=int(count), stop=(), batch=batch)
        made |= {int(i): text.tokens for i, text in zip(members, new, strict=True)}
    return [_compare(model, text, made[i]) for i, text in enumerate(results)]


def _before_text(model: Model, scheme: Scheme, text: TextResult) -> np.ndarray:
    """The inputs that do not depend on the text: (K, D) float32, what a teacher-forced scheme gives for one token."""
    leaves = {name: jnp.asarray(leaf) for name, leaf in text.vectors.items()}
    return np.asarray(scheme.inputs(leaves, jnp.zeros((1, model.embed_width)), jnp.int32(1)))


def behind_prefix(model: Model, text: TextResult, x_TD: np.ndarray) -> np.ndarray:
    """Input vectors of a text (T, D), with those of its prefix before them: (P + T, D) float32."""
    return np.concatenate([prefix_vectors(model, text.prefix).astype(np.float32), x_TD])


def check_model(model: Model, results: Results) -> None:
    """Refuse results of another model.

    Raises:
      UserError: naming both models, or what is no model or no results.
    """
    check_kind("what load_model returns", Model, model=model)
    check_kind("results of fit or of read_results", Results, results=results)
    if results.model != model.fingerprint:
        theirs, ours = (_named(one.source, one.revision) for one in (results, model))
        raise UserError(
            f"the vectors belong to model {theirs} ({results.model}), not to {ours} ({model.fingerprint}); "
            "load the model they were fitted on"
        )


def _named(source: str, revision: str | None) -> str:
    return f"{source!r}" if revision is None else f"{source!r} at revision {revision!r}"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
    network: Network,
    scheme: Scheme,
    params: Params,
    leaves: Leaves,
    tokens_BT: Array,
    lengths_B: Array,
    prefixes: Prefixes | None,
) -> tuple[Array, Array]:
    """Argmax ids (B, T), whose padded positions have no meaning, and margins (B,) of texts behind their prefixes."""

    def one(leaves: Leaves, tokens_T: Array, length: Array, past: Past | None) -> tuple[Array, Array]:
        score = score_text(network, scheme, params, leaves, tokens_T, length, past=past, margin=0.0)
        assert score.leads_T is not None
        return score.predicted_T, jnp.min(score.leads_T)

    return jax.vmap(one)(leaves, tokens_BT, lengths_B, pasts_of(network, params, prefixes))


def _compare(model: Model, text: TextResult, predicted: np.ndarray, margin: float = float("nan")) -> Decoded:
    places = np.flatnonzero(predicted != text.tokens)
    strings = model.tokenizer is not None
    return Decoded(
        text_id=text.text_id,
        tokens=predicted,
        text=as_text(model.tokenizer, predicted) if strings else None,
        expected=as_text(model.tokenizer, text.tokens) if strings else None,
        accuracy=(len(text.tokens) - len(places)) / len(text.tokens),
        wrong=tuple(Wrong(position=int(i), expected=int(text.tokens[i]), got=int(predicted[i])) for i in places),
        margin=margin,
    )

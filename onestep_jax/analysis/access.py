"""The access test: can the model read a text out of `e` and `m` token by token?

Generation starts from `e`, `m` and BOS in several orders. "Nothing related comes out" is measured: what comes out is
compared with the text of the vectors and, by the same measures, with other texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from onestep_jax.analysis.attention import check_belongs
from onestep_jax.errors import UserError, check_known
from onestep_jax.model.decoder import Model
from onestep_jax.model.generation import BATCH, generate
from onestep_jax.model.likelihood import beginning
from onestep_jax.store.results import Results, TextResult

# What generation starts from; "t" is the embedding of the text's first token and, like "BOS" alone, a control.
COMBINATIONS = ("e", "e m", "m", "m e", "BOS e", "BOS e m", "BOS", "t", "BOS t")
MEASURES = ("exact", "prefix", "substring", "overlap")


class Relatedness(NamedTuple):
    """How near generated texts come to the texts of their vectors, and to other texts.

    Attributes:
      start: what generation started from, one of `COMBINATIONS`.
      temperature: 0 for greedy.
      measure: "exact" (share of places with the same token), "prefix" and "substring" (length of the longest common
        one, in tokens), "overlap" (F1 of the multisets of tokens).
      own: mean over the texts, against the text itself.
      other: mean against other texts.
      difference: own − other.
      p: chance of such a difference if the own text were no different from the others, by permutation, one-sided.
      texts: number of texts.
      tokens: tokens compared in each.
    """

    start: str
    temperature: float
    measure: str
    own: float
    other: float
    difference: float
    p: float
    texts: int
    tokens: int


class Access(NamedTuple):
    """Outcome of the access test.

    Attributes:
      rows: one a combination, temperature and measure.
      generated: (combination, temperature) → (texts, count) int32, all that was generated.
    """

    rows: list[Relatedness]
    generated: dict[tuple[str, float], np.ndarray]


def access(
    model: Model,
    results: Results,
    *,
    combinations: Sequence[str] | None = None,
    temperatures: Sequence[float] = (0.0, 1.0),
    others: int = 8,
    permutations: int = 10_000,
    seed: int = 0,
    batch: int = BATCH,
) -> Access:
    """Generate from `e`, `m` and BOS and measure whether what comes out is related to the text of the vectors.

    All texts are cut to the shortest, so that own and other texts are of one length. Generation goes on past stop
    tokens. Tokens that the one pass itself was trained to give are not compared: `e` alone gives the first token, and
    `e m` the second. After `e` the model therefore sees the text's true first token, and only what goes beyond that of
    the control "t", which starts from that token's embedding alone, is read out of the vectors.

    Args:
      model: the model that the vectors were fitted on.
      results: of an arrangement with one `e` in front.
      combinations: of `COMBINATIONS`, all by default, those with BOS only where the tokenizer has one.
      temperatures: of the softmax that tokens are drawn from, 0 for greedy.
      others: how many other texts each is compared with, drawn at random.
      permutations: of the test.
      seed: of the drawing, of tokens, other texts and permutations alike.
      batch: texts at a time.

    Raises:
      UserError: for another model or arrangement, texts too short or all alike, or BOS without one.
    """
    check_belongs(model, results)
    bos = beginning(model)
    combinations = (
        [c for c in COMBINATIONS if bos is not None or "BOS" not in c] if combinations is None else combinations
    )
    check_known("combination", combinations, COMBINATIONS)
    if bos is None and any("BOS" in c for c in combinations):
        raise UserError(f"model {model.source!r} has no BOS: leave the combinations with it out")
    if others < 1 or permutations < 1:
        raise UserError(f"others = {others}, permutations = {permutations}: expected at least 1")
    texts = list(results)
    targets = np.stack([text.tokens[: min(len(text.tokens) for text in texts)] for text in texts])
    choice = _other_texts(texts, others, np.random.default_rng((seed, 0)))
    unguided = results.scheme["arrangement"] == "unguided-e"
    found = Access([], {})
    for start in combinations:
        prompts = start_vectors(model, texts, start)
        skipped, trained = _aligned(start, unguided)
        count = min(targets.shape[1] - skipped, model.config.context - len(prompts[0]))
        if count - trained < 1:
            raise UserError(f"texts of {targets.shape[1]} tokens are too short to compare anything after {start!r}")
        for temperature in temperatures:
            options = {"count": count, "temperature": temperature, "seed": seed, "stop": (), "batch": batch}
            out = np.stack([one.tokens for one in generate(model, prompts, **options)])
            found.generated[start, temperature] = out
            wanted = targets[:, skipped + trained : skipped + count]
            found.rows.extend(_rows((start, temperature), out[:, trained:], wanted, choice, permutations, seed))
    return found


def start_vectors(model: Model, texts: Sequence[TextResult], start: str) -> list[np.ndarray]:
    """Input vectors (T, D) that generation starts from, for each text."""
    bos = beginning(model)
    # one lookup of all first tokens, with BOS (or any id) behind
    ids = np.array([*(text.tokens[0] for text in texts), 0 if bos is None else bos])
    embedded = np.asarray(model.embed(model.params, jnp.asarray(ids)), np.float32)
    named = [{**text.vectors, "BOS": embedded[-1], "t": embedded[i]} for i, text in enumerate(texts)]
    return [np.stack([vectors[part] for part in start.split()]) for vectors in named]


def _aligned(start: str, unguided: bool) -> tuple[int, int]:
    """Target tokens that come before the first generated one, and generated tokens that the one pass was trained on.

    A beginning of the arrangement gives at its last position what it was trained to give there: in "one-step" that is
    token 0 for [e] and token 1 for [e, m]; where `e` is unguided nothing for [e], and token 0 for [e, m].
    """
    if start in ("t", "BOS t"):
        return 1, 0
    if unguided:
        return (0, 1) if start == "e m" else (0, 0)
    return {"e": (0, 1), "e m": (1, 1)}.get(start, (0, 0))


def _other_texts(texts: Sequence[TextResult], count: int, rng: np.random.Generator) -> np.ndarray:
    """(texts, 1 + count) indices: each text itself, then others with other tokens, as many as all of them have."""
    names = np.array([text.text_id.partition("-")[0] for text in texts])
    unlike = [np.flatnonzero(names != name) for name in names]
    count = min(count, *map(len, unlike), len(texts))
    if count < 1:
        raise UserError("only one text (or copies of one): expected at least two different ones to compare")
    return np.array([[i, *rng.choice(rows, count, replace=False)] for i, rows in enumerate(unlike)])


def _rows(
    case: tuple[str, float], out: np.ndarray, wanted: np.ndarray, choice: np.ndarray, permutations: int, seed: int
) -> list[Relatedness]:
    """One row a measure, from generated (texts, tokens) and the targets at the same places."""
    rows = []
    for measure in MEASURES:
        scores = _scores(out, wanted, choice, measure)
        p = permutation_p(scores, permutations, np.random.default_rng((seed, 1)))
        own, other = float(scores[:, 0].mean()), float(scores[:, 1:].mean())
        rows.append(Relatedness(*case, measure, own, other, own - other, p, *out.shape))
    return rows


def _scores(out: np.ndarray, wanted: np.ndarray, choice: np.ndarray, measure: str) -> np.ndarray:
    """(texts, 1 + others) of each generated text against its own text, then the others."""
    compare = {"exact": exact, "prefix": common_prefix, "substring": common_substring, "overlap": overlap}[measure]
    return np.array([[compare(one, wanted[j]) for j in row] for one, row in zip(out, choice, strict=True)], float)


def permutation_p(scores: np.ndarray, permutations: int, rng: np.random.Generator) -> float:
    """Chance that a random column of each row sums to as much as the first, if all columns are exchangeable.

    Args:
      scores: (texts, 1 + others), own first.
      permutations: drawn ones; the given one counts too, so p is at least 1 / (1 + permutations).
    """
    rows, own, reached = np.arange(len(scores))[None], scores[:, 0].sum(), 0
    for first in range(0, permutations, 1000):
        columns = rng.integers(scores.shape[1], size=(min(1000, permutations - first), len(scores)))
        # sums of the same numbers in other columns may differ by rounding
        reached += int(np.sum(scores[rows, columns].sum(-1) >= own - 1e-9))
    return (1 + reached) / (1 + permutations)


def exact(a: np.ndarray, b: np.ndarray) -> float:
    """Share of places with the same token; a and b are of one length."""
    return float(np.mean(a == b))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens before the first difference; a and b are of one length."""
    return int(np.argmin(np.append(a == b, False)))


def common_substring(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest run of tokens that occurs in both."""
    best, runs = 0, np.zeros(len(b) + 1, int)
    for token in a:
        # runs[j + 1]: how far the run reaches back that ends at this token and at b[j]
        runs[1:] = np.where(b == token, runs[:-1] + 1, 0)
        best = max(best, int(runs.max()))
    return best


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """F1 of the multisets of tokens (unigrams)."""
    shared = (Counter(a.tolist()) & Counter(b.tolist())).total()
    return 2 * shared / (len(a) + len(b))

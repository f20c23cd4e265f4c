"""The access test: can the model read a text out of `e` and `m` token by token?

Generation starts from `e`, `m` and BOS in several orders. To test the claim that nothing related comes out, the
generated tokens are compared with the text of the vectors and, by the same measures, with other texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from onestep_jax.analysis.attention import check_belongs
from onestep_jax.analysis.samples import permutation_p, sign_flip_p
from onestep_jax.errors import UserError, check_known, check_least
from onestep_jax.model.decoder import Model
from onestep_jax.model.generation import BATCH, generate
from onestep_jax.model.likelihood import beginning
from onestep_jax.prototokens.reconstruction import behind_prefix
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import plain_id

# Vectors that generation starts from. "t" and "t2" are the embeddings of the text's first and second token. What holds
# neither `e` nor `m` is a control.
COMBINATIONS = ("e", "e m", "m", "m e", "BOS e", "BOS e m", "BOS", "t", "t t2", "BOS t")
# True tokens that a start sees before anything is compared → the control that sees the same ones, and nothing else.
CONTROLS = {1: "t", 2: "t t2"}


# --- measures ---


def exact(a: np.ndarray, b: np.ndarray) -> float:
    """Share of positions with the same token; a and b are of one length."""
    return float(np.mean(a == b))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens before the first difference; a and b are of one length."""
    return int(np.argmin(np.append(a == b, False)))


def common_substring(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest run of tokens that occurs in both."""
    best, runs = 0, np.zeros(len(b) + 1, int)
    for token in a:
        # runs[j + 1]: length of the longest common run that ends at this token and at b[j]
        runs[1:] = np.where(b == token, runs[:-1] + 1, 0)
        best = max(best, int(runs.max()))
    return best


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """F1 of the multisets of tokens (unigrams)."""
    shared = (Counter(a.tolist()) & Counter(b.tolist())).total()
    return 2 * shared / (len(a) + len(b))


MEASURES = {"exact": exact, "prefix": common_prefix, "substring": common_substring, "overlap": overlap}


class Relatedness(NamedTuple):
    """How similar generated texts are to the texts of their vectors, and to other texts.

    Attributes:
      start: what generation started from, one of `COMBINATIONS`.
      temperature: 0 for greedy.
      measure: "exact" (share of positions with the same token), "prefix" and "substring" (length of the longest common
        one, in tokens), "overlap" (F1 of the multisets of tokens).
      own: mean over the texts, against the text itself.
      other: mean against other texts.
      difference: own − other.
      p: one-sided p-value of that difference by permutation; the null hypothesis is that the own text is no different
        from the others.
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


def relatedness(
    start: str,
    temperature: float,
    out: np.ndarray,
    wanted: np.ndarray,
    choice: np.ndarray,
    *,
    measures: Sequence[str] = tuple(MEASURES),
    permutations: int,
    seed: Sequence[int],
) -> list[Relatedness]:
    """Compare generated tokens with the texts themselves and with other texts.

    Args:
      start, temperature: see `Relatedness`.
      out: (texts, tokens) generated ids.
      wanted: (texts, tokens) ids of the texts at the same positions.
      choice: (texts, 1 + others) indices of the texts that each is compared with, itself first.
      measures: of `MEASURES`.
      permutations: of the test.
      seed: of the permutations.

    Returns:
      One row for each measure.
    """
    rows = []
    for measure in measures:
        compare = MEASURES[measure]
        compared = [[compare(one, wanted[j]) for j in row] for one, row in zip(out, choice, strict=True)]
        scores = np.array(compared, float)
        own, other = float(scores[:, 0].mean()), float(scores[:, 1:].mean())
        found = Relatedness(
            start=start,
            temperature=temperature,
            measure=measure,
            own=own,
            other=other,
            difference=own - other,
            p=permutation_p(scores, permutations, np.random.default_rng(seed)),
            texts=out.shape[0],
            tokens=out.shape[1],
        )
        rows.append(found)
    return rows


# --- against a control ---

Scores: TypeAlias = dict[tuple[str, float], tuple[np.ndarray, int]]  # start, temperature → (measures, texts), tokens


def beyond_control(
    start: str, control: str, temperature: float, scores: Scores, *, permutations: int, seed: Sequence[int]
) -> list[Relatedness]:
    """Compare what a start generates with what its control generates, both with the text itself, text by text.

    Returns:
      One row for each measure. `other` is the mean of the control, and p that of `sign_flip_p`.
    """
    (own_ME, tokens), (control_ME, _) = scores[start, temperature], scores[control, temperature]
    rows = []
    for measure, own, other in zip(MEASURES, own_ME, control_ME, strict=True):
        p = sign_flip_p(own - other, permutations, np.random.default_rng(seed))
        means = {"own": float(own.mean()), "other": float(other.mean()), "difference": float((own - other).mean())}
        rows.append(Relatedness(start, temperature, measure, **means, p=p, texts=len(own), tokens=tokens))
    return rows


def _own_scores(out: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, int]:
    """(measures, texts) of generated texts against the texts themselves, and how many tokens were compared."""
    scores = [[compare(*pair) for pair in zip(out, wanted, strict=True)] for compare in MEASURES.values()]
    return np.array(scores, float), out.shape[1]


# --- the test ---


class Access(NamedTuple):
    """Outcome of the access test.

    Attributes:
      rows: one for each combination, temperature and measure.
      beyond: control → rows of the starts that see the same true tokens as this control, see `beyond_control`.
      generated: (combination, temperature) → (texts, count) int32, all tokens that were generated.
    """

    rows: list[Relatedness]
    beyond: dict[str, list[Relatedness]]
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
    """Generate from `e`, `m` and BOS and measure whether the result is related to the text of the vectors.

    All texts are cut to the shortest, so that own and other texts have one length. Stop tokens end nothing. Tokens that
    the one forward pass was trained to give are not compared: `e` alone gives the first token, and `e m` the second.
    After `e` the model therefore sees the true first token, and after `e m` the true second one. The controls "t" and
    "t t2" start from the embeddings of the first token, and of the first two, alone. Only what exceeds the control was
    read out of the vectors.

    Args:
      model: the model that the vectors were fitted on.
      results: of an arrangement with one `e` in front.
      combinations: of `COMBINATIONS`, each behind the prefix of its text; by default all, without BOS where the
        tokenizer has none, or the texts have a prefix. A start is compared with its control where both are named.
      temperatures: of the softmax that tokens are drawn from; 0 for greedy.
      others: number of other texts that each is compared with, drawn at random.
      permutations: of the test.
      seed: of all that is drawn: tokens, other texts and permutations.
      batch: texts in a forward pass at most.

    Raises:
      UserError: for another model or arrangement, texts that are too short or all alike, or a combination with BOS
        where the tokenizer has none.
    """
    check_belongs(model, results)
    check_least(1, others=others, permutations=permutations)
    texts = list(results)
    shortest = min(len(text.tokens) for text in texts)
    targets = np.stack([text.tokens[:shortest] for text in texts])
    choice = _other_texts(texts, others, np.random.default_rng((seed, 0)))
    unguided = results.scheme["arrangement"] == "unguided-e"
    found = Access(rows=[], beyond={}, generated={})
    scores: Scores = {}
    for start in _combinations(model, texts, combinations):
        prompts = start_vectors(model, texts, start)
        skipped, trained = _aligned(start, unguided)
        count = min(shortest - skipped, model.config.context - max(map(len, prompts)))
        if count - trained < 1:
            raise UserError(f"texts of {shortest} tokens are too short to compare anything after {start!r}")
        wanted = targets[:, skipped + trained : skipped + count]
        for temperature in temperatures:
            made = generate(model, prompts, count=count, temperature=temperature, seed=seed, stop=(), batch=batch)
            found.generated[start, temperature] = out = np.stack([one.tokens for one in made])
            compared = out[:, trained:]
            found.rows.extend(
                relatedness(start, temperature, compared, wanted, choice, permutations=permutations, seed=(seed, 1))
            )
            scores[start, temperature] = _own_scores(compared, wanted)
    for start, temperature in scores:
        control = CONTROLS.get(sum(_aligned(start, unguided)))
        if control not in (None, start) and (control, temperature) in scores and "e" in start.split():
            rows = beyond_control(start, control, temperature, scores, permutations=permutations, seed=(seed, 3))
            found.beyond.setdefault(control, []).extend(rows)
    return found


def _combinations(model: Model, texts: Sequence[TextResult], given: Sequence[str] | None) -> Sequence[str]:
    """The combinations asked for, by default all that the tokenizer and the prefixes allow."""
    bos = beginning(model) is not None
    if given is None:
        free = bos and not any(len(text.prefix) for text in texts)
        return [start for start in COMBINATIONS if free or "BOS" not in start]
    check_known("combination", given, COMBINATIONS)
    if not bos and any("BOS" in start for start in given):
        raise UserError(f"model {model.source!r} has no BOS: leave the combinations with it out")
    return given


def start_vectors(model: Model, texts: Sequence[TextResult], start: str) -> list[np.ndarray]:
    """Input vectors (T, D) that generation starts from, for each text: its prefix, then the combination."""
    bos = beginning(model)
    # One lookup for all first and second tokens, with BOS (or any id, where there is none) as the last.
    pairs = [np.resize(text.tokens[:2], 2) for text in texts]
    ids = np.array([*np.concatenate(pairs), 0 if bos is None else bos])
    embedded = np.asarray(model.embed(model.params, jnp.asarray(ids)), np.float32)
    named = [
        {**text.vectors, "BOS": embedded[-1], "t": embedded[2 * i], "t2": embedded[2 * i + 1]}
        for i, text in enumerate(texts)
    ]
    starts = [np.stack([vectors[part] for part in start.split()]) for vectors in named]
    return [behind_prefix(model, text, x_TD) for text, x_TD in zip(texts, starts, strict=True)]


def _aligned(start: str, unguided: bool) -> tuple[int, int]:
    """(target tokens before the first generated one, generated tokens that the one forward pass was trained to give).

    At its last position, the beginning of an arrangement gives what it was trained to give there. In "one-step" that is
    token 0 for [e] and token 1 for [e, m]. Where `e` is unguided it is nothing for [e], and token 0 for [e, m].
    """
    if start.endswith(("t", "t2")):
        return sum(part in ("t", "t2") for part in start.split()), 0
    if unguided:
        return (0, 1) if start == "e m" else (0, 0)
    return {"e": (0, 1), "e m": (1, 1)}.get(start, (0, 0))


def _other_texts(texts: Sequence[TextResult], count: int, rng: np.random.Generator) -> np.ndarray:
    """(texts, 1 + count) indices: each text, then others with other tokens; fewer if some text has fewer others."""
    names = np.array([plain_id(text.text_id) for text in texts])
    unlike = [np.flatnonzero(names != name) for name in names]
    count = min(count, *map(len, unlike), len(texts))
    if count < 1:
        raise UserError("only one text (or copies of one): expected at least two different ones to compare")
    return np.array([[i, *rng.choice(rows, count, replace=False)] for i, rows in enumerate(unlike)])

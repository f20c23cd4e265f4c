"""Are two solutions of one text connected? Straight lines and trained curves between them (Figure 7, Eq. 4 and 5).

Between the solutions of a text runs a quadratic Bézier curve whose control point is trained until the text is
reconstructed all along it. `bezier` has the mathematics of one; this module runs it over many pairs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from onestep_jax.analysis import bezier as curves
from onestep_jax.analysis.bezier import Method, Problem, curve_length, line_length
from onestep_jax.errors import UserError
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import buckets, check_tokens, id_words

# Chosen on one pair of solutions of 16 tokens of the packaged model. On two other pairs the
# accuracy along the curve has the mean 0.53 and 0.60 with temperature 1, 0.90 and 0.89 with 0.25, 0.98 and 0.95
# with 0.1, and the minimum 0.44 and 0.38, 0.75 and 0.63, 0.81 and 0.50, at a constant learning rate of 0.01 and two τ a
# step; with 0.1 and what follows, and four τ a step, the mean is 0.998 and 0.991.
LEARNING_RATE = 0.02  # at the start, decaying to zero as a cosine
TEMPERATURE = 0.1


class Pair(NamedTuple):
    """Two solutions of one text.

    Attributes:
      tokens: (N,) int32 target ids.
      first, second: leaf → array, the ends of the curve.
      names: what the two are called: text_id and seed of each.
      words: (8,) uint32, their identities (`tokens.id_words`), which the random numbers hang on.
    """

    tokens: np.ndarray
    first: Mapping[str, np.ndarray]
    second: Mapping[str, np.ndarray]
    names: tuple[str, str]
    words: np.ndarray


class Connection(NamedTuple):
    """What lies between two solutions.

    Attributes:
      names: of the pair.
      tau: (points,) float64, from 0 to 1.
      line_accuracy, curve_accuracy: (points,) float64, share of exact tokens (Eq. 2) at each τ.
      line_loss, curve_loss: (points,) float64, nats per token (Eq. 1) at each τ.
      control: leaf → float32 array, the control point π.
      best_step: updates made before it.
      line_length, curve_length: Euclidean, all leaves concatenated.
    """

    names: tuple[str, str]
    tau: np.ndarray
    line_accuracy: np.ndarray
    curve_accuracy: np.ndarray
    line_loss: np.ndarray
    curve_loss: np.ndarray
    control: dict[str, np.ndarray]
    best_step: int
    line_length: float
    curve_length: float

    @property
    def ratio(self) -> float:
        """Length of the curve in lengths of the straight line, at least 1."""
        return self.curve_length / self.line_length

    def row(self) -> dict[str, Any]:
        """One row of a table: least, mean and greatest accuracy along the line and the curve, lengths."""
        row: dict[str, Any] = {"first": self.names[0], "second": self.names[1]}
        for way, accuracy in (("line", self.line_accuracy), ("curve", self.curve_accuracy)):
            extremes = {"min": accuracy.min(), "mean": accuracy.mean(), "max": accuracy.max()}
            row |= {f"{way}_accuracy_{name}": float(value) for name, value in extremes.items()}
        lengths = {"line_length": self.line_length, "curve_length": self.curve_length, "ratio": self.ratio}
        return row | lengths | {"best_step": self.best_step}

    def rows(self) -> list[dict[str, Any]]:
        """One row a point of the grid: τ, accuracies and losses."""
        columns = ("tau", "line_accuracy", "curve_accuracy", "line_loss", "curve_loss")
        values = zip(*(getattr(self, name).tolist() for name in columns), strict=True)
        names = {"first": self.names[0], "second": self.names[1]}
        return [names | dict(zip(columns, point, strict=True)) for point in values]


class Progress(NamedTuple):
    """How far `connect` is.

    Attributes:
      pairs_done, pairs: of all.
      step, steps: of the batch of pairs at work.
      loss: nats per token along its kept curves, mean over the batch.
    """

    pairs_done: int
    pairs: int
    step: int
    steps: int
    loss: float


# --- pairs of solutions ---


def solution_pairs(results: Results | Iterable[TextResult], *, accuracy: float = 1.0) -> list[Pair]:
    """All unordered pairs of solutions of the same text.

    Args:
      results: with several rows a text, of `fit(…, copies=R)` or of fits with different seeds put together.
      accuracy: what a solution reaches; the others are left out.
    """
    by_tokens: dict[bytes, list[TextResult]] = {}
    for text in results:
        if text.accuracy >= accuracy:
            by_tokens.setdefault(np.asarray(text.tokens, np.int32).tobytes(), []).append(text)
    return [pair_of(*two) for same in by_tokens.values() for two in itertools.combinations(same, 2)]


def pair_of(first: TextResult, second: TextResult) -> Pair:
    """Two results of one text as a pair.

    Raises:
      UserError: if they are of different texts.
    """
    if not np.array_equal(first.tokens, second.tokens):
        raise UserError(f"texts {first.text_id} and {second.text_id} differ; a curve joins solutions of the same text")
    ends = (first, second)
    names = (f"{first.text_id}:{first.seed}", f"{second.text_id}:{second.seed}")
    words = np.concatenate([id_words(text.text_id, text.seed) for text in ends])
    return Pair(np.asarray(first.tokens, np.int32), first.vectors, second.vectors, names, words)


def connect(
    model: Model,
    scheme: Scheme,
    pairs: Sequence[Pair],
    *,
    steps: int = 1000,
    learning_rate: float | optax.Schedule | None = None,
    samples: int = 4,
    points: int = 33,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    batch: int = 8,
    chunk: int = 50,
    progress: Callable[[Progress], None] | None = None,
) -> list[Connection]:
    """Train a Bézier curve between the two solutions of each pair and look along it and along the straight line.

    The control point starts on the middle of the line and follows Adam on the expected loss over τ ~ U[0, 1] (Eq. 5),
    estimated each step from one τ in each of `samples` equal parts of [0, 1]. The one kept is that of the least mean
    loss at the middles between the points that are reported, looked at every `chunk` steps. A pair's curve depends on
    its two solutions and the seed, not on the pairs that share its batch.

    Args:
      model: the frozen model that the solutions belong to.
      scheme: their arrangement.
      pairs: see `solution_pairs`.
      steps: updates of each control point.
      learning_rate: of Adam, or an optax schedule; by default a cosine from `LEARNING_RATE` to zero.
      samples: values of τ in a gradient.
      points: values of τ that are reported, the ends among them.
      temperature: of the softmax in the training loss; Eq. 5 is 1. Reported losses are at 1.
      seed: of the values of τ.
      batch: pairs at a time; `batch · samples` forward and backward passes share the device's memory.
      chunk: steps between looks of the host.
      progress: called after each chunk.

    Returns:
      One connection a pair, in order.

    Raises:
      UserError: for settings out of range, or a pair whose solutions are the same point.
    """
    sizes = {"samples": (samples, 1), "points": (points, 2), "batch": (batch, 1), "chunk": (chunk, 1)}
    _check_settings(temperature, steps=(steps, 0), **sizes)
    _check_pairs(model, pairs)
    if learning_rate is None:
        learning_rate = optax.cosine_decay_schedule(LEARNING_RATE, max(steps, 1))
    method = Method(model, scheme, optax.adam(learning_rate), samples, points, temperature)
    start = jax.jit(jax.vmap(functools.partial(curves.start, method), in_axes=(None, 0)))
    train = jax.jit(jax.vmap(functools.partial(curves.train, method), in_axes=(None, 0, 0, None, None)))
    look = jax.jit(jax.vmap(functools.partial(curves.look, method), in_axes=(None, 0, 0)))
    found: dict[int, Connection] = {}
    for positions, chosen, places in _batches(model, scheme, pairs, batch):
        problem = _stack([pairs[i] for i in places], positions)
        state = start(model.params, problem)
        for step in range(0, steps, chunk):
            state = train(model.params, problem, state, min(chunk, steps - step), seed)
            if progress is not None:
                loss = float(np.mean(np.asarray(state.kept_loss)[: len(chosen)]))
                progress(Progress(len(found), len(pairs), min(step + chunk, steps), steps, loss))
        seen = jax.device_get((state.kept, state.kept_step, *look(model.params, problem, state.kept)))
        for place, i in enumerate(chosen):
            found[i] = _connection(pairs[i], points, *jax.tree.map(lambda x, place=place: x[place], seen))
    return [found[i] for i in range(len(pairs))]


def _check_settings(temperature: float, **numbers: tuple[int, int]) -> None:
    """Refuse numbers given as (value, least) below their least."""
    for name, (value, least) in numbers.items():
        if value < least:
            raise UserError(f"{name} = {value}: expected at least {least}")
    if not temperature > 0:
        raise UserError(f"temperature = {temperature}: expected more than 0")


def _check_pairs(model: Model, pairs: Sequence[Pair]) -> None:
    check_tokens([pair.tokens for pair in pairs], model.config.vocab_size, model.config.context)
    for pair in pairs:
        for name in pair.first:
            shapes = np.shape(pair.first[name]), np.shape(pair.second[name])
            if shapes[0] != shapes[1] or shapes[0][-1] != model.embed_width:
                raise UserError(
                    f"pair {pair.names}: leaf {name!r} has shapes {shapes[0]} and {shapes[1]}; expected equal ones of "
                    f"width {model.embed_width}"
                )
        if line_length(pair.first, pair.second) == 0:
            raise UserError(f"pair {pair.names}: both solutions are the same point; give solutions of different seeds")


def _batches(
    model: Model, scheme: Scheme, pairs: Sequence[Pair], batch: int
) -> Iterator[tuple[int, list[int], list[int]]]:
    """(padded length, pairs, the same filled up by repeats) of each batch; all of one padded length are of one size."""
    lengths = [len(pair.tokens) for pair in pairs]
    padded = np.array(buckets(lengths, model.config.boundary, scheme.extra), int)
    for positions in np.unique(padded).tolist():
        members = np.flatnonzero(padded == positions)
        for first in range(0, len(members), batch):
            chosen = members[first : first + batch]
            yield positions, chosen.tolist(), np.resize(chosen, min(batch, len(members))).tolist()


def _stack(pairs: Sequence[Pair], positions: int) -> Problem:
    """Pairs as arrays that lead with the pair, tokens padded to `positions`."""
    tokens_BT = np.stack([np.pad(pair.tokens, (0, positions - len(pair.tokens))) for pair in pairs])
    lengths_B = np.array([len(pair.tokens) for pair in pairs], np.int32)

    def ends(which: str) -> dict[str, np.ndarray]:
        points = [getattr(pair, which) for pair in pairs]
        return {name: np.stack([np.asarray(point[name], np.float32) for point in points]) for name in points[0]}

    words_B8 = np.stack([pair.words for pair in pairs])
    return Problem(tokens_BT, lengths_B, ends("first"), ends("second"), words_B8)  # pyright: ignore[reportArgumentType]


def _connection(pair: Pair, points: int, control: Any, step: Any, line: Any, curve: Any) -> Connection:
    line_loss, line_accuracy, curve_loss, curve_accuracy = (np.asarray(x, np.float64) for x in (*line, *curve))
    return Connection(
        pair.names,
        np.linspace(0.0, 1.0, points),
        line_accuracy,
        curve_accuracy,
        line_loss,
        curve_loss,
        control,
        int(step),
        line_length(pair.first, pair.second),
        curve_length(pair.first, control, pair.second),
    )

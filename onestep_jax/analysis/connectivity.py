"""Are two solutions of one text connected? Straight lines and trained curves between them (Figure 7, Eq. 4 and 5).

A quadratic Bézier curve joins two solutions of a text. Its control point is trained so that every point of the curve
gives the text. `bezier` has the mathematics of one curve; this module runs it over many pairs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from onestep_jax.analysis import bezier
from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import UserError, check_least
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.prefixes import pasts_of, prefix_rows, stack_prefixes
from onestep_jax.prototokens.schemes import Scheme, bare
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import Batch, batches, check_tokens, id_words

# Chosen on one pair of solutions of 16 tokens of the packaged model. On two other pairs, with a constant learning rate
# of 0.01 and two τ in a step, the accuracy along the curve was
#   temperature   mean          minimum
#   1             0.53, 0.60    0.44, 0.38
#   0.25          0.90, 0.89    0.75, 0.63
#   0.1           0.98, 0.95    0.81, 0.50
# With temperature 0.1, a cosine from 0.02 and four τ in a step, the mean was 0.998 and 0.991. The ends of those pairs
# lay 0.6 apart (root mean square of the components). On four pairs that lie 2.6 apart, that cosine from
#   rate       mean accuracy   greatest length ratio
#   0.02       0.885           1.10
#   0.09       0.995           1.20
#   0.2        0.999           1.32
# So the rate is given in units of this distance.
TEMPERATURE = 0.1
LEARNING_RATE = 1 / 30


class Pair(NamedTuple):
    """Two solutions of one text.

    Attributes:
      tokens: (N,) int32 target ids.
      first, second: leaf → array, the ends of the curve.
      names: "text_id:seed" of each.
      words: (8,) uint32, their identities (`tokens.id_words`); the random numbers follow from them.
      prefix: (P,) int32 ids of the frozen tokens before both, often none.
    """

    tokens: np.ndarray
    first: Mapping[str, np.ndarray]
    second: Mapping[str, np.ndarray]
    names: tuple[str, str]
    words: np.ndarray
    prefix: np.ndarray = np.zeros(0, np.int32)


class Connection(NamedTuple):
    """Accuracy and loss between two solutions.

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
        """Length of the curve over the length of the straight line, at least 1."""
        return self.curve_length / self.line_length

    def row(self) -> dict[str, Any]:
        """One row of a table: least, mean and greatest accuracy along the line and the curve, and lengths."""
        row: dict[str, Any] = {"first": self.names[0], "second": self.names[1]}
        for way, accuracy in (("line", self.line_accuracy), ("curve", self.curve_accuracy)):
            extremes = {"min": accuracy.min(), "mean": accuracy.mean(), "max": accuracy.max()}
            row |= {f"{way}_accuracy_{name}": float(value) for name, value in extremes.items()}
        row |= {"line_length": self.line_length, "curve_length": self.curve_length, "ratio": self.ratio}
        return row | {"best_step": self.best_step}

    def rows(self) -> list[dict[str, Any]]:
        """One row for each τ: accuracies and losses."""
        columns = ("tau", "line_accuracy", "curve_accuracy", "line_loss", "curve_loss")
        values = zip(*(getattr(self, name).tolist() for name in columns), strict=True)
        names = {"first": self.names[0], "second": self.names[1]}
        return [names | dict(zip(columns, point, strict=True)) for point in values]


class Progress(NamedTuple):
    """How far `connect` is.

    Attributes:
      pairs_done, pairs: numbers of pairs that are finished, and of all.
      step, steps: updates made of the current batch of pairs, and planned.
      loss: nats per token along its best curves so far, mean over the batch.
    """

    pairs_done: int
    pairs: int
    step: int
    steps: int
    loss: float


# --- pairs of solutions ---


def solution_pairs(results: Results | Iterable[TextResult], *, accuracy: float = 1.0) -> list[Pair]:
    """Form all unordered pairs of solutions of the same text behind the same prefix.

    Args:
      results: with several rows for a text, of `fit(…, copies=R)` or of several fits with different seeds.
      accuracy: rows with a lower accuracy are left out.
    """
    alike: dict[tuple[bytes, bytes], list[TextResult]] = {}
    for text in results:
        if text.accuracy >= accuracy:
            ids = (np.asarray(ids, np.int32).tobytes() for ids in (text.prefix, text.tokens))
            alike.setdefault(tuple(ids), []).append(text)  # pyright: ignore[reportArgumentType]
    return [pair_of(*two) for same in alike.values() for two in itertools.combinations(same, 2)]


def pair_of(first: TextResult, second: TextResult) -> Pair:
    """Make a pair of two results of one text.

    Raises:
      UserError: if they are of different texts, or stand behind different prefixes.
    """
    if not np.array_equal(first.prefix, second.prefix):
        raise UserError(f"results {first.text_id} and {second.text_id} stand behind different prefixes")
    if not np.array_equal(first.tokens, second.tokens):
        raise UserError(f"texts {first.text_id} and {second.text_id} differ; a curve joins solutions of the same text")
    return Pair(
        tokens=np.asarray(first.tokens, np.int32),
        first=first.vectors,
        second=second.vectors,
        names=(f"{first.text_id}:{first.seed}", f"{second.text_id}:{second.seed}"),
        words=np.concatenate([id_words(text.text_id, text.seed) for text in (first, second)]),
        prefix=first.prefix,
    )


@pinned
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
    """Train a Bézier curve between the two solutions of each pair, and score the curve and the straight line.

    The control point starts at the middle of the line. Adam minimises the expected loss over τ ~ U[0, 1] (Eq. 5), which
    each step estimates from one τ in each of `samples` equal parts of [0, 1]. Every `chunk` steps the mean loss at the
    middles between the reported points is computed, and the control point with the least is returned. A pair's curve
    depends on its two solutions and the seed, not on the other pairs of its batch.

    Args:
      model: the frozen model that the solutions belong to.
      scheme: their arrangement.
      pairs: see `solution_pairs`.
      steps: updates of each control point.
      learning_rate: of Adam, or an optax schedule, in units of the distance of the two ends (root mean square of the
        components); by default a cosine from `LEARNING_RATE` to zero.
      samples: values of τ in a gradient.
      points: values of τ that are reported, both ends included.
      temperature: of the softmax in the training loss; Eq. 5 has 1. Reported losses have 1.
      seed: of the values of τ.
      batch: pairs at a time; `batch · samples` forward and backward passes share the device's memory.
      chunk: steps between two computations of the loss at the middles.
      progress: called after each chunk.

    Returns:
      One connection for each pair, in order.

    Raises:
      UserError: for settings out of range, or a pair whose solutions are the same point.
    """
    check_least(0, steps=steps)
    check_least(1, samples=samples, batch=batch, chunk=chunk)
    check_least(2, points=points)
    if not temperature > 0:
        raise UserError(f"temperature = {temperature}: expected more than 0")
    _check_pairs(model, pairs)
    if learning_rate is None:
        learning_rate = optax.cosine_decay_schedule(LEARNING_RATE, max(steps, 1))
    start, train, look = _programs(
        bezier.Method(
            model=model,
            scheme=bare(scheme),
            optimizer=optax.adam(learning_rate),
            samples=samples,
            points=points,
            temperature=temperature,
        )
    )
    found: dict[int, Connection] = {}
    lengths = [len(pair.tokens) for pair in pairs]
    rows = prefix_rows([pair.prefix for pair in pairs])
    for chosen in batches(lengths, batch, boundary=model.config.boundary, extra=scheme.extra + rows):
        of_rows = stack_prefixes([pairs[i].prefix for i in chosen.rows], rows)
        padded = _padded(pairs, chosen)._replace(past=_pasts(model.network, model.params, of_rows))
        state = start(model.params, padded)
        for step in range(0, steps, chunk):
            count = min(chunk, steps - step)
            state = train(model.params, padded, state, count, seed)
            if progress is not None:
                loss = float(np.mean(np.asarray(state.kept_loss)[: chosen.used]))
                done = Progress(pairs_done=len(found), pairs=len(pairs), step=step + count, steps=steps, loss=loss)
                progress(done)
        looked = jax.device_get((state.kept, state.kept_step, look(model.params, padded, state.kept)))
        for place, i in enumerate(chosen.texts):
            kept, kept_step, scores = jax.tree.map(lambda x, place=place: x[place], looked)
            found[i] = _connection(pairs[i], kept, kept_step, scores)
    return [found[i] for i in range(len(pairs))]


_pasts = jax.jit(pasts_of, static_argnums=0)


def _programs(method: bezier.Method) -> tuple[Callable[..., Any], ...]:
    """`bezier.start`, `train` and `look`, compiled for many pairs; params, steps and seed are the same for all."""
    start = jax.jit(jax.vmap(functools.partial(bezier.start, method), in_axes=(None, 0)))
    train = jax.jit(jax.vmap(functools.partial(bezier.train, method), in_axes=(None, 0, 0, None, None)))
    look = jax.jit(jax.vmap(functools.partial(bezier.look, method), in_axes=(None, 0, 0)))
    return start, train, look


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
        if bezier.line_length(pair.first, pair.second) == 0:
            raise UserError(f"pair {pair.names}: both solutions are the same point; give solutions of different seeds")


def _padded(pairs: Sequence[Pair], chosen: Batch) -> bezier.PaddedPair:
    """The pairs of a batch as arrays with a leading pair axis."""
    rows = [pairs[i] for i in chosen.rows]

    def stacked(points: Sequence[Mapping[str, np.ndarray]]) -> Any:
        return {name: np.stack([np.asarray(point[name], np.float32) for point in points]) for name in points[0]}

    return bezier.PaddedPair(
        tokens_T=chosen.pad([pair.tokens for pair in pairs]),  # pyright: ignore[reportArgumentType]
        length=chosen.lengths,  # pyright: ignore[reportArgumentType]
        first=stacked([pair.first for pair in rows]),
        second=stacked([pair.second for pair in rows]),
        words=np.stack([pair.words for pair in rows]),  # pyright: ignore[reportArgumentType]
    )


def _connection(pair: Pair, control: dict[str, np.ndarray], step: np.ndarray, looked: bezier.Look) -> Connection:
    line_accuracy = np.asarray(looked.line_accuracy, np.float64)
    return Connection(
        names=pair.names,
        tau=np.linspace(0.0, 1.0, len(line_accuracy)),
        line_accuracy=line_accuracy,
        curve_accuracy=np.asarray(looked.curve_accuracy, np.float64),
        line_loss=np.asarray(looked.line_loss, np.float64),
        curve_loss=np.asarray(looked.curve_loss, np.float64),
        control=control,
        best_step=int(step),
        line_length=bezier.line_length(pair.first, pair.second),
        curve_length=bezier.curve_length(pair.first, control, pair.second),
    )

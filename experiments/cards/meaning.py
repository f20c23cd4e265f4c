"""Meaning: what does it cost to give the vectors the similarities that a sentence encoder sees?

    onestep experiment meaning --model HuggingFaceTB/SmolLM2-135M --texts excerpts:FILE

Learned e say little about what their texts mean (Figures 5 and 6). Two losses beside Eq. 1 pull them to a teacher, with
weight λ (`prototokens.auxiliary`):

    anchor       each e to the teacher's embedding of its text, through a fixed linear map, by their cosine
    relational   the cosines between the e of a group to the teacher's

*On the Semantic and Syntactic Information Encoded in Proto-Tokens* (arXiv:2602.18301, autoregressive) finds that an
anchor costs accuracy and relational distillation little. Texts are the model's own continuations of contexts, so that
some have a context in common. Groups of `group` follow the order of the texts, so those of a context are together.

Controls: the fit alone ("none"), the fit of whole groups without a loss ("group"), and, at the greatest λ of each kind,
the teacher's embeddings in random order ("shuffled"): vectors that can be given any similarities carry no meaning.

For each way: the share of exact texts and the gradient evaluations; Spearman's correlation of the cosine distances of
the e with those of the teacher, over all pairs, the pairs in a group and those across groups; the same with what the e
were pulled to, which differs where it was shuffled; the share of texts whose nearest e is of a text after the same
context, beside that by the teacher and by chance; and the mean cosine of e and its point.

Writes meaning.csv (a row a way and λ) and meaning.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from onestep_jax import Anchor, OneStep, Relational, Results
from onestep_jax.analysis.distances import cosine_distances, learned_vectors
from onestep_jax.analysis.similarity import agreement, chance, retrieval
from onestep_jax.experiment.study import Study
from onestep_jax.prototokens.auxiliary import ANCHOR, TEACHER, anchor_points
from onestep_jax.texts import continued_texts
from onestep_jax.texts.embeddings import text_embeddings


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the card; see `onestep experiment meaning --card`.

    `texts` is the source of the contexts, `count` how many there are, `context` and `length` the tokens of a context
    and of a continuation; `anchors` and `relations` are the λ of each loss; `teacher` is as of `onestep fit --anchor`.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M"
    texts: str = "pg19"
    count: int = 16
    context: int = 64
    continuations: int = 4
    length: int = 32
    group: int = 8
    anchors: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    relations: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    teacher: str = "minilm"
    preset: str = "fast"
    steps: int = 3000
    seed: int = 0


def config(smoke: bool) -> Config:
    """The size of a real model, or seconds."""
    if smoke:
        sizes: dict[str, Any] = {"count": 2, "context": 8, "continuations": 3, "length": 5, "group": 3}
        return Config("default", "demo", **sizes, anchors=(3.0,), relations=(30.0,), teacher="model", steps=300)
    return Config()


def packaged() -> Config:
    """The packaged model on a small machine; its own hidden states are the teacher."""
    return Config("default", "demo", count=12, context=32, length=16, teacher="model", steps=2000)


class Way(NamedTuple):
    """One fit of all texts.

    Attributes:
      name: "none", "group", "anchor" or "relational".
      weight: λ.
      shuffled: whether the teacher's embeddings are in random order.
    """

    name: str
    weight: float = 0.0
    shuffled: bool = False


def ways(config: Config) -> Iterator[Way]:
    """All fits: without a loss, with each λ, and the controls."""
    yield Way("none")
    yield Way("group")
    for name, weights in (("anchor", config.anchors), ("relational", config.relations)):
        yield from (Way(name, weight) for weight in weights)
        yield Way(name, max(weights), shuffled=True)


def run(config: Config, study: Study) -> None:
    """Fit in every way, then compare with the teacher."""
    sizes = {name: getattr(config, name) for name in ("count", "context", "length", "seed")}
    owners, texts = continued_texts(study.model, config.texts, **sizes, per_context=config.continuations, seeds=1)
    teacher_NF = text_embeddings(study.model, texts, config.teacher)
    order_N = np.random.default_rng(config.seed).permutation(len(texts))
    rows = []
    for way in ways(config):
        given_NF = teacher_NF[order_N] if way.shuffled else teacher_NF
        points_ND = anchor_points(given_NF, study.model.embed_width)
        results = fitted(config, study, way, texts, given_NF, points_ND)
        row = {"way": way.name, "weight": way.weight, "teacher": "shuffled" if way.shuffled else "true"}
        row |= {
            "texts": len(results),
            "exact": np.mean(results.accuracy == 1),
            "accuracy mean": results.accuracy.mean(),
        }
        row |= {"evaluations": results.steps.mean()}
        rows.append(row | compared(config, results, owners, teacher_NF, given_NF, points_ND))
    study.table("meaning", rows)
    draw(study, rows)


def fitted(
    config: Config, study: Study, way: Way, texts: list[np.ndarray], given_NF: np.ndarray, points_ND: np.ndarray
) -> Results:
    """The fit of a way."""
    options: dict[str, Any] = {"preset": config.preset, "steps": config.steps, "seed": config.seed}
    if way.name == "anchor":
        options |= {"losses": {"anchor": Anchor(way.weight, config.teacher)}, "context": {ANCHOR: points_ND}}
    if way.name == "relational":
        options |= {"losses": {"relational": Relational(way.weight, config.teacher)}, "context": {TEACHER: given_NF}}
    scheme = OneStep(group=config.group) if way.name in ("group", "relational") else OneStep()
    name = f"{way.name}-{way.weight:g}{'-shuffled' if way.shuffled else ''}"
    return study.fit(name, texts, scheme=scheme, **options)


def compared(
    config: Config,
    results: Results,
    owners: list[int],
    teacher_NF: np.ndarray,
    given_NF: np.ndarray,
    points_ND: np.ndarray,
) -> dict[str, float]:
    """What the e of a fit have of the teacher."""
    e_ND, count = learned_vectors(results), len(results)
    pairs_P2 = np.stack(np.triu_indices(count, k=1), axis=-1)
    groups_P2 = pairs_P2 // config.group
    inside_P = groups_P2[:, 0] == groups_P2[:, 1]
    beside_P2 = np.arange(count)[:, None] + np.array([0, count])  # each e with its own point
    return {
        "correlation": agreement(e_ND, teacher_NF, pairs_P2),
        "correlation in groups": agreement(e_ND, teacher_NF, pairs_P2[inside_P]),
        "correlation across groups": agreement(e_ND, teacher_NF, pairs_P2[~inside_P]),
        "correlation with what was given": agreement(e_ND, given_NF, pairs_P2),
        "same context nearest": retrieval(e_ND, owners),
        "by the teacher": retrieval(teacher_NF, owners),
        "by chance": chance(owners),
        "cosine to the point": 1 - cosine_distances(np.concatenate([e_ND, points_ND]), beside_P2).mean(),
    }


def draw(study: Study, rows: list[dict[str, Any]]) -> None:
    """The frontier: what is exact, and what it costs, against the agreement with the teacher."""
    styles = {"anchor": ("o-", "C0"), "relational": ("s-", "C1")}
    with study.figure("meaning", columns=2) as axes:
        for axis, column in zip(axes, ("exact", "evaluations"), strict=True):
            for name, (style, colour) in styles.items():
                own = [row for row in rows if row["way"] == name and row["teacher"] == "true"]
                begin = [row for row in rows if row["way"] == ("none" if name == "anchor" else "group")]
                line = [(row["correlation"], row[column]) for row in [*begin, *own]]
                axis.plot(*zip(*line, strict=True), style, color=colour, label=name, markersize=5)
                for row in own:
                    axis.annotate(f"{row['weight']:g}", (row["correlation"], row[column]), fontsize="x-small")
                for row in (row for row in rows if row["way"] == name and row["teacher"] == "shuffled"):
                    axis.plot(row["correlation"], row[column], "x", color=colour, label=f"{name}, shuffled teacher")
            axis.set(xlabel="rank correlation with the teacher, all pairs")
            axis.legend(frameon=False, fontsize="x-small")
        axes[0].set(ylabel="share of texts exact", ylim=(-0.02, 1.02))
        axes[1].set(ylabel="gradient evaluations, mean over all texts", ylim=(0, None))

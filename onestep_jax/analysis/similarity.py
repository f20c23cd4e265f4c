"""Distances of texts, and distances of learned vectors against them (Figure 5).

Texts are compared in two ways: *token-level*, by the cosine distance of TF-IDF vectors whose terms are the model's own
tokens, and *semantic*, by the cosine distance of sentence embeddings by all-MiniLM-L6-v2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.analysis.distances import ROWS_AT_A_TIME, Relations, cosine_distances, distinct
from onestep_jax.errors import UserError, check_least

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
_EXPORTED = "model.onnx"  # in fastembed's own download
_IN_HUB_FOLDER = "onnx/model.onnx"  # in the encoder's repository on the hub


class Bin(NamedTuple):
    """Pairs of one relation with similar text distances.

    Attributes:
      relation: such as "same_context", see `distances.Relations`.
      low, high: text distances of the bin, without `high` except in the last bin.
      pairs: how many.
      text_distance: their mean text distance.
      mean, std: mean and standard deviation of their vector distances.
    """

    relation: str
    low: float
    high: float
    pairs: int
    text_distance: float
    mean: float
    std: float


def token_distances(tokens: Sequence[Any], pairs_P2: np.ndarray) -> np.ndarray:
    """Token-level distance of the two texts of each pair: cosine distance of TF-IDF vectors over token ids.

    Document frequencies are counted over the distinct texts, so that a text fitted with many seeds counts once.

    Args:
      tokens: token ids of each row.
      pairs_P2: (P, 2) row numbers.

    Returns:
      (P,) float64, 0 for equal texts, 1 for texts that share no token.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    keys = [tuple(np.asarray(ids).tolist()) for ids in tokens]
    texts, place_N = distinct(keys)
    identity: Any = list
    vectors = TfidfVectorizer(analyzer=identity).fit_transform(texts).tocsr()
    distances = np.empty(len(pairs_P2))
    step = max(1, ROWS_AT_A_TIME // max(map(len, keys), default=1))
    for begin in range(0, len(pairs_P2), step):
        first, second = place_N[pairs_P2[begin : begin + step]].T
        apart = vectors[first] - vectors[second]
        distances[begin : begin + step] = np.asarray(apart.multiply(apart).sum(axis=1)).ravel() / 2
    return np.minimum(distances, 1.0)


def semantic_distances(texts: Sequence[str], pairs_P2: np.ndarray, *, folder: str | Path | None = None) -> np.ndarray:
    """Semantic distance of the two texts of each pair: cosine distance of their sentence embeddings.

    Args:
      texts: string of each row.
      pairs_P2: (P, 2) row numbers.
      folder: see `sentence_embeddings`.

    Returns:
      (P,) float64 from 0 to 2.
    """
    strings, place_N = distinct(texts)
    return cosine_distances(sentence_embeddings(strings, folder=folder), place_N[pairs_P2])


def sentence_embeddings(texts: Sequence[str], *, folder: str | Path | None = None, batch: int = 64) -> np.ndarray:
    """Embeddings of texts by all-MiniLM-L6-v2, mean-pooled and of unit length, computed by `fastembed`.

    Longer texts are cut to the encoder's context, the least of the lengths named in tokenizer_config.json.

    Args:
      texts: strings.
      folder: a local copy of the encoder with model.onnx or onnx/model.onnx beside tokenizer.json,
        tokenizer_config.json, special_tokens_map.json and config.json; None to download fastembed's copy.
      batch: texts at a time.

    Returns:
      (texts, 384) float64.

    Raises:
      UserError: without fastembed, or if the encoder cannot be loaded.
    """
    encoder = _encoder(folder)
    return np.stack([np.asarray(vector, np.float64) for vector in encoder(list(texts), batch)])


def _encoder(folder: str | Path | None) -> Callable[[list[str], int], Any]:
    try:
        import fastembed
    except ImportError as error:
        cure = "pip install 'onestep_jax[analysis]'"
        raise UserError(f"sentence embeddings need fastembed, which is not installed: {cure}") from error
    name, arguments = ENCODER, {}
    if folder is not None:
        name, arguments = _local_name(Path(folder)), {"specific_model_path": str(folder), "local_files_only": True}
    try:
        encoder = fastembed.TextEmbedding(name, **arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        where = ENCODER if folder is None else str(folder)
        raise UserError(
            f"{where}: the sentence encoder cannot be loaded ({reason}); give a folder that holds it"
        ) from error
    return lambda texts, batch: encoder.embed(texts, batch_size=batch)


def _local_name(folder: Path) -> str:
    """Name by which fastembed reads a local copy of the encoder, in either of the two layouts."""
    import fastembed
    from fastembed.common.model_description import ModelSource, PoolingType

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with {_EXPORTED} in it, or none to download the encoder")
    if (folder / _EXPORTED).is_file():
        return ENCODER
    if not (folder / _IN_HUB_FOLDER).is_file():
        cure = f"hf download {ENCODER} --local-dir {folder}"
        raise UserError(f"{folder}: neither {_EXPORTED} nor {_IN_HUB_FOLDER} in it, which fastembed reads; {cure}")
    name = f"{ENCODER}/{_IN_HUB_FOLDER}"
    if name not in {model["model"] for model in fastembed.TextEmbedding.list_supported_models()}:
        fastembed.TextEmbedding.add_custom_model(
            name, PoolingType.MEAN, True, ModelSource(hf=ENCODER), dim=384, model_file=_IN_HUB_FOLDER
        )
    return name


# --- Figure 5 ---


def binned(
    text_distances: Mapping[str, np.ndarray] | Relations,
    vector_distances: Mapping[str, np.ndarray] | Relations,
    *,
    bins: int = 20,
) -> list[Bin]:
    """Bin vector distances by text distance, one curve for each relation, with the same bins for all (Figure 5).

    The bins have equal widths and span the text distances of all relations; empty ones are left out.

    Args:
      text_distances: relation → (P,).
      vector_distances: relation → (P,), of the same pairs.
      bins: how many.

    Raises:
      UserError: if the two are not of the same pairs.
    """
    check_least(1, bins=bins)
    x, y = _named(text_distances), _named(vector_distances)
    if {name: len(values) for name, values in x.items()} != {name: len(values) for name, values in y.items()}:
        raise UserError("text distances and vector distances are not of the same relations and numbers of pairs")
    everything = np.concatenate([np.zeros(0), *x.values()])
    if not len(everything):
        return []
    edges = np.linspace(everything.min(), everything.max(), bins + 1)
    found = []
    for relation in x:
        place = np.clip(np.searchsorted(edges, x[relation], side="right") - 1, 0, bins - 1)
        for i in np.unique(place):
            inside = y[relation][place == i]
            found.append(
                Bin(
                    relation=relation,
                    low=float(edges[i]),
                    high=float(edges[i + 1]),
                    pairs=len(inside),
                    text_distance=float(x[relation][place == i].mean()),
                    mean=float(inside.mean()),
                    std=float(inside.std()),
                )
            )
    return found


def gap(curves: Sequence[Bin], nearer: str = "same_context", farther: str = "different_contexts") -> float:
    """How much nearer the vectors of one relation are at equal text distance, Figure 5 in one number.

    It is the difference of the mean vector distances of two relations in a bin, averaged over the bins that both have,
    weighted by the pairs of the relation that has fewer; NaN if they have no bin in common.
    """
    sides = [{bin.low: bin for bin in curves if bin.relation == name} for name in (nearer, farther)]
    shared = [(sides[0][low], sides[1][low]) for low in sides[0] if low in sides[1]]
    weights = np.array([min(near.pairs, far.pairs) for near, far in shared], float)
    differences = np.array([far.mean - near.mean for near, far in shared])
    return float(weights @ differences / weights.sum()) if shared else float("nan")


def _named(distances: Mapping[str, np.ndarray] | Relations) -> Mapping[str, np.ndarray]:
    return distances._asdict() if isinstance(distances, Relations) else distances

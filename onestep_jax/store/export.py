"""Proto-tokens as one safetensors file that any framework reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onestep_jax.errors import UserError
from onestep_jax.store.results import Results
from onestep_jax.store.storage import replace, writing

FORMAT = "1"


def write_safetensors(results: Results, path: Path) -> None:
    """Write one row a text, in source order.

    Tensors: each leaf by its name, float32: "e" and "m" (texts, D), "mem" (texts, K, D); `tokens` int32
    (texts, longest) padded with −1; `lengths` int32, `accuracy` float32 and `steps` int32 (texts,). Where a text has a
    prefix: `prefix` int32 (texts, longest), its token ids, padded with −1; their embeddings come before the vectors.
    Metadata: `format`, `model` (source), `fingerprint`, `scheme` and `text_ids` (JSON).

    Raises:
      UserError: if there is nothing to export or the file cannot be written.
    """
    from safetensors.numpy import save

    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file in it, such as {path / 'vectors.safetensors'}")
    if not len(results):
        raise UserError("nothing to export: the run has no finished text yet")
    lengths = np.array([len(text.tokens) for text in results], np.int32)
    tokens, prefix = (_padded([getattr(text, name) for text in results]) for name in ("tokens", "prefix"))
    tensors = {name: np.ascontiguousarray(vectors) for name, vectors in results.vectors.items()}
    tensors |= {"tokens": tokens, "lengths": lengths, "accuracy": results.accuracy.astype(np.float32)}
    tensors |= {"steps": results.steps.astype(np.int32)} | ({"prefix": prefix} if prefix.size else {})
    metadata = {"format": FORMAT, "model": results.source, "fingerprint": results.model}
    metadata |= {"scheme": json.dumps(dict(results.scheme)), "text_ids": json.dumps([text.text_id for text in results])}
    with writing(path):
        replace(path, save(tensors, metadata))


def _padded(ids: Sequence[np.ndarray]) -> np.ndarray:
    """Token ids of texts, (texts, longest) int32, padded with −1."""
    table = np.full((len(ids), max(map(len, ids))), -1, np.int32)
    for row, of_text in zip(table, ids, strict=True):
        row[: len(of_text)] = of_text
    return table

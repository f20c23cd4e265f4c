"""Proto-tokens as one file that other programs read: safetensors, npz or Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import UserError, check_kind, check_known
from onestep_jax.store.results import Results
from onestep_jax.store.storage import replace, writing

FORMAT = "1"


class InputRows(NamedTuple):
    """What enters the model for one text, see `prototokens.assembly.input_rows`.

    Attributes:
      vectors_PD: (positions, D) float32.
      first: the position whose output predicts the first token; the next one predicts the second.
    """

    vectors_PD: np.ndarray
    first: int


def write_vectors(
    results: Results, path: str | Path, form: str | None = None, inputs: Sequence[InputRows] | None = None
) -> None:
    """Write one row a text, in source order.

    Arrays: each leaf by its name, float32: "e" and "m" (texts, D), "mem" (texts, K, D); `tokens` int32
    (texts, longest) padded with −1; `lengths` int32, `accuracy` float32 and `steps` int32 (texts,). Where a text has a
    prefix: `prefix` int32 (texts, longest), its token ids, padded with −1; their embeddings come before the vectors.
    With `inputs`: `inputs_embeds` float32 (texts, longest, D), padded behind with zeros, and `first` int32 (texts,).
    Metadata: `format`, `model` (source), `fingerprint`, `scheme` and `text_ids` (JSON).

    A Parquet table has a column for each array, `text_id` beside them, and nothing padded.

    Args:
      results: of a fit or an encoder.
      path: the file.
      form: key of `FORMS`; None for what the name ends with, and for safetensors where that says nothing.
      inputs: assembled inputs of each text, to be written as well.

    Raises:
      UserError: for an unknown format, if there is nothing to export, or if the file cannot be written.
    """
    check_kind("results of fit or of read_results", Results, results=results)
    check_kind("a path", (str, Path), path=path)
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file in it, such as {path / 'vectors.safetensors'}")
    if form is None:
        form = path.suffix[1:].lower() if path.suffix[1:].lower() in FORMS else "safetensors"
    check_known("format", [form], FORMS)
    if not len(results):
        raise UserError("nothing to export: the run has no finished text yet")
    lengths = np.array([len(text.tokens) for text in results], np.int32)
    arrays = {name: np.ascontiguousarray(vectors) for name, vectors in results.vectors.items()}
    arrays |= {"tokens": _padded([text.tokens for text in results]), "lengths": lengths}
    arrays |= {"accuracy": results.accuracy.astype(np.float32), "steps": results.steps.astype(np.int32)}
    counts = {"tokens": lengths}
    if any(len(text.prefix) for text in results):
        arrays["prefix"] = _padded([text.prefix for text in results])
        counts["prefix"] = np.array([len(text.prefix) for text in results])
    if inputs is not None:
        arrays["inputs_embeds"] = _padded([one.vectors_PD for one in inputs], 0.0)
        arrays["first"] = np.array([one.first for one in inputs], np.int32)
        counts["inputs_embeds"] = np.array([len(one.vectors_PD) for one in inputs])
    metadata = {"format": FORMAT, "model": results.source, "fingerprint": results.model}
    metadata |= {"scheme": json.dumps(dict(results.scheme)), "text_ids": json.dumps([text.text_id for text in results])}
    with writing(path):
        replace(path, FORMS[form](arrays, metadata, counts))


def _padded(of_texts: Sequence[np.ndarray], filling: float = -1) -> np.ndarray:
    """Arrays of texts, (texts, longest, …), each padded behind."""
    first = of_texts[0]
    table = np.full((len(of_texts), max(map(len, of_texts)), *first.shape[1:]), filling, first.dtype)
    for row, of_text in zip(table, of_texts, strict=True):
        row[: len(of_text)] = of_text
    return table


def _safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], counts: Mapping[str, Any]) -> bytes:
    from safetensors.numpy import save

    del counts
    return save(dict(arrays), dict(metadata))


def _npz(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], counts: Mapping[str, Any]) -> bytes:
    """As `numpy.savez` writes it; the metadata are a JSON string, the array `metadata`."""
    del counts
    written = io.BytesIO()
    np.savez(written, allow_pickle=False, metadata=np.array(json.dumps(dict(metadata))), **arrays)
    return written.getvalue()


def _parquet(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], counts: Mapping[str, Any]) -> bytes:
    """A row a text; an array of a text is a list, and one of its vectors a list of fixed size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"text_id": json.loads(metadata["text_ids"])}
    for name, array in arrays.items():
        if name != "lengths":
            columns[name] = _column(array, counts.get(name))
    about = {name: value for name, value in metadata.items() if name != "text_ids"}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata(about), sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _column(array: np.ndarray, counts: np.ndarray | None) -> Any:
    """(texts, …) → a column; with counts, of each text so many of its first entries."""
    import pyarrow as pa

    if counts is not None:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        kept = np.concatenate([row[:count] for row, count in zip(array, counts, strict=True)])
        return pa.ListArray.from_arrays(pa.array(offsets), _column(kept, None))
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(_column(array.reshape(-1, *array.shape[2:]), None), array.shape[1])


FORMS: dict[str, Callable[..., bytes]] = {"safetensors": _safetensors, "npz": _npz, "parquet": _parquet}
"""How a file is written: (arrays, metadata, numbers of entries of those that are padded) → bytes."""

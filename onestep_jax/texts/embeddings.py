"""Embeddings of texts by a teacher: a sentence encoder, the frozen model's own hidden states, or a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import UserError, one_line
from onestep_jax.model.decoder import Model
from onestep_jax.model.hidden_states import mean_hidden_states
from onestep_jax.tokens import as_text

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
_EXPORTED = "model.onnx"  # in fastembed's own download
_IN_HUB_FOLDER = "onnx/model.onnx"  # in the encoder's repository on the hub
MINILM, MODEL, ROWS = "minilm", "model", ".npy"


def text_embeddings(model: Model, tokens: Sequence[np.ndarray], source: str) -> np.ndarray:
    """Embeddings of texts by a teacher that is named in a word.

    Args:
      model: the frozen model, whose tokenizer makes the strings.
      tokens: token ids of each text.
      source: "minilm" for `sentence_embeddings`, downloaded; a folder for those of a local copy; "model" for
        `hidden_embeddings`; or FILE.npy, which holds a row for each text, in their order.

    Returns:
      (texts, F) float64.

    Raises:
      UserError: for an encoder or a file that cannot be read, or a file with another number of rows.
    """
    if source == MODEL:
        return hidden_embeddings(model, tokens)
    if source.endswith(ROWS):
        return _rows(Path(source), len(tokens))
    if source != MINILM and not Path(source).is_dir():
        raise UserError(f"{source}: no such folder; a teacher is {MINILM}, {MODEL}, a folder or FILE{ROWS}")
    if model.tokenizer is None:
        raise UserError(f"model {model.source!r} has no tokenizer to make the strings that a sentence encoder reads")
    strings = [as_text(model.tokenizer, ids) for ids in tokens]
    return sentence_embeddings(strings, folder=None if source == MINILM else source)


def _rows(path: Path, count: int) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); give what numpy.save writes") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind not in "fiu":
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise UserError(f"{path}: holds {found}; expected numbers of shape (texts, features)")
    if len(rows) != count:
        raise UserError(f"{path}: {len(rows)} rows for {count} texts; expected a row for each text, in their order")
    return rows.astype(np.float64)


def hidden_embeddings(model: Model, tokens: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the frozen model's last hidden states over each text, less the mean over the texts.

    Hidden states of a language model point nearly the same way for all texts; without what is common to them, what is
    left tells texts apart.

    Args:
      model: the model.
      tokens: token ids of each text.

    Returns:
      (texts, D) float64; zeros for a single text.
    """
    means_ND = mean_hidden_states(model, tokens)
    return means_ND - means_ND.mean(axis=0)


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

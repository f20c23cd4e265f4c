"""Which tensor of a checkpoint's files is which weight of ours, and back; strict about names, shapes and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from onestep_jax.errors import UserError, nearest
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Model, parameter_shapes
from onestep_jax.model.families import Family, Weight, read_config
from onestep_jax.model.gguf import GgufTensor, gguf_tensors, is_gguf
from onestep_jax.model.hub import shards
from onestep_jax.model.safetensors_files import StoredTensor, stored_tensors

CheckpointTensor = StoredTensor | GgufTensor
_PIECE = 1 << 18  # numbers looked at at a time: they stay in the cache for the second look


def weight_rows(family: Family, config: ModelConfig) -> dict[str, list[Weight]]:
    """Name in the checkpoint → the weights of ours that the tensor of that name holds, several where it is fused."""
    table: dict[str, list[Weight]] = {}
    for row in family.weights(config):
        table.setdefault(row.name, []).append(row)
    paths = sorted(row.path for rows in table.values() for row in rows)
    assert paths == sorted(parameter_shapes(config)), "the weight table does not match the decoder"
    return table


def match_tensors(
    folder: Path, family: Family, config: ModelConfig, table: Mapping[str, list[Weight]]
) -> dict[str, CheckpointTensor]:
    """Name in the weight table → tensor, in the order of the names, after checking that the files hold just those.

    The files of a bare decoder, saved without its head, leave the family's prefix out of every name.

    Raises:
      UserError: for a damaged file, and for a missing, unknown, duplicate or wrong-shaped weight.
    """
    found = _stored_by_name(folder)
    described = "its metadata" if is_gguf(folder) else "config.json"
    bare = not any(name.startswith(family.prefix) for name in found)
    in_files = {name: name.removeprefix(family.prefix) if bare else name for name in sorted(table)}
    known = set(in_files.values())
    for name in sorted(known - found.keys()):
        cure = f"complete the download, or correct {described}"
        raise UserError(f"{folder}: missing weight {name}{nearest(name, found)}; {cure}")
    for name in sorted(found.keys() - known):
        if name.endswith(family.buffers):
            continue
        if not (config.tied and name == family.head):
            reason = f"{config.family} as {described} describes it has no place for it"
            raise UserError(f"{found[name].path}: unknown weight {name}{nearest(name, known)}; {reason}")
        original = next(in_files[row] for row, weights in table.items() if weights[0].path == "embed/embedding")
        if not np.array_equal(found[name].read(), found[original].read()):
            reason = f"{name} is no copy of {original}, though config.json has tie_word_embeddings"
            raise UserError(f"{found[name].path}: {reason}")
    matched = {name: found[stored] for name, stored in in_files.items()}
    _check_shapes(matched, config, table, described)
    return matched


def _check_shapes(
    matched: Mapping[str, CheckpointTensor], config: ModelConfig, table: Mapping[str, list[Weight]], described: str
) -> None:
    shapes = parameter_shapes(config)
    for name, tensor in matched.items():
        expected = _stored_shape(table[name][0], shapes)
        if tensor.shape != expected:
            reason = f"{tensor.name} has shape {tensor.shape}, expected {expected} from {described}"
            raise UserError(f"{tensor.path}: {reason}")


def _stored_by_name(folder: Path) -> dict[str, CheckpointTensor]:
    """Every tensor of a folder's files by its name there."""
    found: dict[str, CheckpointTensor] = {}
    for path in shards(folder):
        for tensor in gguf_tensors(path) if is_gguf(path) else stored_tensors(path):
            if tensor.name in found:
                raise UserError(f"{path}: duplicate weight {tensor.name}, also in {found[tensor.name].path}")
            found[tensor.name] = tensor
    return found


def _stored_shape(row: Weight, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a row's tensor in the checkpoint."""
    features, *rest = shapes[row.path]
    if row.part is not None:
        features = features // row.part.size * row.part.of
    return (*rest, features) if row.transposed else (features, *rest)


def take_part(host: np.ndarray, row: Weight) -> np.ndarray:
    """A row's part of its tensor, output features first."""
    host = host.T if row.transposed else host
    if row.part is None:
        return host
    first, size, of = row.part
    return host.reshape(-1, of, *host.shape[1:])[:, first : first + size].reshape(-1, *host.shape[1:])


def all_finite(host: np.ndarray, dtype: Any) -> bool:
    """Whether every number is finite and stays so in `dtype`, from the bits: many times faster than `np.isfinite`."""
    signed, unsigned = (np.int16, np.uint16) if host.itemsize == 2 else (np.int32, np.uint32)
    limit = int(np.array(np.inf, host.dtype).view(unsigned))
    if host.dtype == np.float32 and dtype == jnp.bfloat16:
        limit = 0x7F7F8000  # the least number that rounds to infinity
    sign, bits = np.iinfo(signed).max + 1, host.reshape(-1).view(unsigned)
    for first in range(0, bits.size, _PIECE):
        piece = bits[first : first + _PIECE]
        # infinities and NaNs are the highest: as signed integers those without a minus, as unsigned ones those with it
        if piece.view(signed).max() >= limit or piece.max() >= sign + limit:
            return False
    return True


def not_finite(tensor: CheckpointTensor, dtype: Any) -> str:
    """What is wrong with a tensor that `all_finite` refuses."""
    if np.isfinite(tensor.read().astype(np.float64)).all():
        return f"{tensor.path}: {tensor.name} is too large for {jnp.dtype(dtype).name}; use float32"
    return f"{tensor.path}: {tensor.name} holds a NaN or an infinity; download or convert it again"


def stored_arrays(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of the checkpoint by name, fused ones put together again."""
    family, _ = read_config(model.described)
    leaves = flatten_dict(model.params, sep="/")
    for name, rows in weight_rows(family, model.config).items():
        array = _fused([(row, np.asarray(leaves[row.path])) for row in rows])
        yield name, np.ascontiguousarray(array.T if rows[0].transposed else array)


def _fused(parts: list[tuple[Weight, np.ndarray]]) -> np.ndarray:
    """The tensor whose parts `take_part` took, output features first."""
    row, array = parts[0]
    if row.part is None:
        return array
    rest = array.shape[1:]
    whole = np.empty((len(array) // row.part.size, row.part.of, *rest), array.dtype)
    for one, piece in parts:
        assert one.part is not None
        whole[:, one.part.first : one.part.first + one.part.size] = piece.reshape(-1, one.part.size, *rest)
    return whole.reshape(-1, *rest)

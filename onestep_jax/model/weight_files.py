"""Which tensor of a checkpoint's files is which weight of ours, and back; strict about names, shapes and numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from onestep_jax.errors import UserError
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Model, parameter_shapes
from onestep_jax.model.families import FAMILIES, Family, Weight
from onestep_jax.model.families.wrappers import decoder_name, is_wrapped
from onestep_jax.model.gguf import GgufTensor, gguf_tensors, is_gguf
from onestep_jax.model.hub import shards
from onestep_jax.model.safetensors_files import StoredTensor, stored_tensors
from onestep_jax.model.stacked import weight_of

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


def decoder_tensors(folder: Path, family: Family) -> dict[str, CheckpointTensor]:
    """Name in the weight table → tensor of a folder's files, buffers left out.

    The files of a bare decoder, saved without its head, leave the family's prefix out of every name. Those of a decoder
    that is part of a whole have names of their own, and tensors of other parts, which are left out.

    Raises:
      UserError: for a damaged file or a duplicate weight.
    """
    found = _stored_by_name(folder)
    if any(map(is_wrapped, found)):
        named = {decoder_name(name): tensor for name, tensor in found.items()}
        found = {name: tensor for name, tensor in named.items() if name is not None}
    elif not any(name.startswith(family.prefix) for name in found):
        found = {name if name == family.head else family.prefix + name: tensor for name, tensor in found.items()}
    return {name: tensor for name, tensor in found.items() if not name.endswith(family.buffers)}


def settle_head(
    found: Mapping[str, CheckpointTensor], family: Family, config: ModelConfig
) -> tuple[dict[str, CheckpointTensor], ModelConfig]:
    """Tensors and architecture of a decoder after its files have said whether its head is its embedding table.

    As transformers has it: where config.json ties them and only the head is stored, it is the table too; where both are
    stored and differ, they are not tied.

    Args:
      found: of `decoder_tensors`.
    """
    tensors = dict(found)
    if not config.tied or family.head not in tensors:
        return tensors, config
    table = next(row.name for row in family.weights(config) if row.path == "embed/embedding")
    head = tensors.pop(family.head)
    stored = tensors.setdefault(table, head)
    same = stored is head or (stored.shape == head.shape and np.array_equal(stored.read(), head.read()))
    if same:
        return tensors, config
    return dict(found), dataclasses.replace(config, tied=False)


def match_tensors(
    folder: Path, found: Mapping[str, CheckpointTensor], config: ModelConfig, table: Mapping[str, list[Weight]]
) -> dict[str, CheckpointTensor]:
    """The tensors in the order of their names, after checking that they are just those of the weight table.

    Raises:
      UserError: for a missing, unknown or wrong-shaped weight.
    """
    described = "its metadata" if is_gguf(folder) else "config.json"
    for name in sorted(table.keys() - found.keys()):
        cure = f"complete the download, or correct {described}"
        raise UserError(f"{folder}: missing weight {name}; {cure}")
    for name in sorted(found.keys() - table.keys()):
        reason = f"{config.family} as {described} describes it has no place for it"
        raise UserError(f"{found[name].path}: unknown weight {found[name].name}; {reason}")
    matched = {name: found[name] for name in sorted(table)}
    _check_shapes(matched, config, table, described)
    return matched


def _check_shapes(
    matched: Mapping[str, CheckpointTensor], config: ModelConfig, table: Mapping[str, list[Weight]], described: str
) -> None:
    shapes = parameter_shapes(config)
    for name, tensor in matched.items():
        expected = _stored_shape(table[name][0], shapes)
        if tensor.shape != expected:
            origin = f"from {described}, where absent keys have transformers' defaults"
            raise UserError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, expected {expected} {origin}")


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
    """Each tensor of the checkpoint by name, fused ones put together again; one at a time is fetched from a device."""
    family = FAMILIES[model.config.family]
    weights: dict[str, Any] = flatten_dict(model.params, sep="/")
    for name, rows in weight_rows(family, model.config).items():
        array = _fused([(row, np.asarray(weight_of(model.config, weights, row.path))) for row in rows])
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

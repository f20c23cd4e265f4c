"""A Hugging Face checkpoint, from a folder or the hub, as a frozen `Model`, and back; strict, and without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from onestep_jax.devices.weight_split import weight_sharding
from onestep_jax.errors import UserError, check_known, nearest
from onestep_jax.model.config import ModelConfig, stated
from onestep_jax.model.decoder import Model, Params, parameter_shapes
from onestep_jax.model.families import Family, Weight, read_config
from onestep_jax.model.hub import DEFAULT, locate, read_object, shards
from onestep_jax.model.safetensors_files import StoredTensor, read_in_turn, stored_tensors

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_PIECE = 1 << 18  # numbers looked at at a time: they stay in the cache for the second look

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all."""


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load_model(
    source: str | Path = DEFAULT,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    tokenizer: bool = True,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a checkpoint as frozen params.

    Args:
      source: "default" (the packaged model), a folder in Hugging Face format, or a hub id.
      dtype: "float32" or "bfloat16", of weights and activations; None for `default_dtype()`.
      revision: branch, tag or commit on the hub.
      tokenizer: load the tokenizer too, where the checkpoint has one.
      mesh: split the weights over its axis "model": each device gets its part and no more (`weight_split`).
      progress: called as the weights are read.

    Raises:
      UserError: if the checkpoint cannot be had, is damaged, or describes a model that is not supported.
    """
    dtype = dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    folder = locate(source, revision)
    described, family, config = describe(folder)
    params, fingerprint = load_params(folder, family, config, DTYPES[dtype], mesh, progress)
    loaded = load_tokenizer(folder, config) if tokenizer else None
    return Model(config, params, loaded, str(source), fingerprint, described, _stop_tokens(folder, described))


def describe(folder: Path) -> tuple[dict[str, Any], Family, ModelConfig]:
    """A folder's config.json, its family and its architecture.

    Raises:
      UserError: if it is missing, damaged or describes a model that is not supported.
    """
    path = folder / "config.json"
    described = read_object(path)
    try:
        return described, *read_config(described)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_params(
    folder: Path,
    family: Family,
    config: ModelConfig,
    dtype: Any,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> tuple[Params, str]:
    """Params of a checkpoint, tensor by tensor in the wanted dtype and place, and the model's fingerprint.

    Raises:
      UserError: for a damaged file, a missing, unknown, duplicate or wrong-shaped weight, or a NaN or infinity.
    """
    shapes, rows = parameter_shapes(config), family.weights(config)
    assert sorted(row.path for row in rows) == sorted(shapes), "the weight table does not match the decoder"
    table: dict[str, list[Weight]] = {}
    for row in rows:
        table.setdefault(row.name, []).append(row)
    stored = _match(folder, family, config, table)
    for name, tensor in stored.items():
        expected = _stored_shape(table[name][0], shapes)
        if tensor.shape != expected:
            reason = f"{tensor.name} has shape {tensor.shape}, expected {expected} from config.json"
            raise UserError(f"{tensor.path}: {reason}")

    params: dict[str, jax.Array] = {}
    digest = hashlib.sha256(_statement(config).encode())
    checksums: dict[str, str] = {}
    done, total = 0, sum(tensor.nbytes for tensor in stored.values())
    names = {tensor: name for name, tensor in stored.items()}
    for tensor, host in read_in_turn(sorted(names, key=lambda tensor: (tensor.path, tensor.offset))):
        name = names[tensor]
        checksums[name] = xxhash.xxh3_64_hexdigest(host.view(np.uint8).data)
        if host.dtype == np.float64:
            with np.errstate(over="ignore"):  # found out by `_all_finite`
                host = host.astype(np.float32)
        if not _all_finite(host, dtype):
            raise UserError(_not_finite(tensor, dtype))
        for row in table[name]:
            params[row.path] = _place(_take(host, row), dtype, mesh, row.path, config.kv_heads)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    for name, tensor in stored.items():
        digest.update(f"{name} {tensor.dtype} {checksums[name]}\n".encode())
    return unflatten_dict(params, sep="/"), digest.hexdigest()[:16]


def _statement(config: ModelConfig) -> str:
    """An architecture in words that do not change when a later version knows more options."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {"": type(value).__name__} | {name: plain(inner) for name, inner in stated(value).items()}
        return [plain(inner) for inner in value] if isinstance(value, tuple) else value

    return json.dumps(plain(config), sort_keys=True)


def _match(
    folder: Path, family: Family, config: ModelConfig, table: Mapping[str, list[Weight]]
) -> dict[str, StoredTensor]:
    """Name in the weight table → tensor, by name, after checking that the files hold just those."""
    found: dict[str, StoredTensor] = {}
    for path in shards(folder):
        for tensor in stored_tensors(path):
            if tensor.name in found:
                raise UserError(f"{path}: duplicate weight {tensor.name}, also in {found[tensor.name].path}")
            found[tensor.name] = tensor
    bare = not any(name.startswith(family.prefix) for name in found)
    names = {name.removeprefix(family.prefix) if bare else name: name for name in sorted(table)}
    for name in sorted(names.keys() - found.keys()):
        cure = "complete the download, or correct config.json"
        raise UserError(f"{folder}: missing weight {name}{nearest(name, found)}; {cure}")
    for name in sorted(found.keys() - names.keys()):
        tensor = found[name]
        if name.endswith(family.buffers):
            continue
        if not (config.tied and name == family.head):
            reason = f"{config.family} as config.json describes it has no place for it"
            raise UserError(f"{tensor.path}: unknown weight {name}{nearest(name, names)}; {reason}")
        original = next(ours for ours, theirs in names.items() if table[theirs][0].path == "embed/embedding")
        if not np.array_equal(tensor.read(), found[original].read()):
            raise UserError(
                f"{tensor.path}: {name} is no copy of {original}, though config.json has tie_word_embeddings"
            )
    return {theirs: found[ours] for ours, theirs in names.items()}


def _stored_shape(row: Weight, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a row's tensor in the checkpoint."""
    features, *rest = shapes[row.path]
    if row.part is not None:
        features = features // row.part.size * row.part.of
    return (*rest, features) if row.transposed else (features, *rest)


def _take(host: np.ndarray, row: Weight) -> np.ndarray:
    """A row's part of its tensor, output features first."""
    host = host.T if row.transposed else host
    if row.part is None:
        return host
    first, size, of = row.part
    return host.reshape(-1, of, *host.shape[1:])[:, first : first + size].reshape(-1, *host.shape[1:])


def _place(host: np.ndarray, dtype: Any, mesh: Mesh | None, path: str, kv_heads: int) -> jax.Array:
    if mesh is None:
        placed = jax.device_put(host)
    else:
        sharding = weight_sharding(mesh, path, host.shape, kv_heads)
        placed = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    return placed if placed.dtype == dtype else placed.astype(dtype)


def _all_finite(host: np.ndarray, dtype: Any) -> bool:
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


def _not_finite(tensor: StoredTensor, dtype: Any) -> str:
    if np.isfinite(tensor.read().astype(np.float64)).all():
        return f"{tensor.path}: {tensor.name} is too large for {jnp.dtype(dtype).name}; use float32"
    return f"{tensor.path}: {tensor.name} holds a NaN or an infinity; download or convert it again"


def save_model(model: Model, folder: str | Path) -> None:
    """Write a model back as a checkpoint folder that transformers opens: config.json, weights and tokenizer.

    Args:
      model: with the config.json that it was loaded with.
      folder: created if need be; files of these names in it are replaced.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(_stored_arrays(model))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = {key: value for key, value in model.described.items() if key != "torch_dtype"}  # the older spelling
    described["dtype"] = jnp.dtype(model.dtype).name
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _stored_arrays(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of the checkpoint by name, fused ones put together again."""
    family, _ = read_config(model.described)
    leaves = flatten_dict(model.params, sep="/")
    table: dict[str, list[tuple[Weight, np.ndarray]]] = {}
    for row in family.weights(model.config):
        table.setdefault(row.name, []).append((row, np.asarray(leaves[row.path])))
    for name, parts in table.items():
        row, array = parts[0]
        if row.part is not None:
            of, rest = row.part.of, array.shape[1:]
            whole = np.empty((len(array) // row.part.size, of, *rest), array.dtype)
            for one, piece in parts:
                assert one.part is not None
                whole[:, one.part.first : one.part.first + one.part.size] = piece.reshape(-1, one.part.size, *rest)
            array = whole.reshape(-1, *rest)
        yield name, np.ascontiguousarray(array.T if row.transposed else array)


def _stop_tokens(folder: Path, described: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a generated text: of generation_config.json, or else of config.json."""
    path = folder / "generation_config.json"
    generation = read_object(path) if path.exists() else {}
    ids = generation.get("eos_token_id", described.get("eos_token_id"))
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """The checkpoint's transformers tokenizer, or None if it has none. Code that lies in the folder is never run.

    Raises:
      UserError: if it is damaged, needs code of the folder, or gives ids that the embedding table does not have.
    """
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        if "trust_remote_code" in str(error):
            reason = "its tokenizer is code in that folder (auto_map in tokenizer_config.json), which is never run"
            cure = "take auto_map out and name one of transformers' own classes as tokenizer_class"
            raise UserError(f"{folder}: {reason}; {cure}") from error
        raise UserError(f"{folder}: the tokenizer cannot be read ({error})") from error
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer's ids reach {highest}, the embedding table has {config.vocab_size} rows"
        )
    return tokenizer

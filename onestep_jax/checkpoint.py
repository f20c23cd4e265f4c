"""A Hugging Face checkpoint, from a folder or the hub, as a frozen `Model`: strict about weights, no torch."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from onestep_jax.config import ModelConfig, UserError, check_known, nearest
from onestep_jax.families import Family, Weight, read_config
from onestep_jax.model import Decoder, Model, Params
from onestep_jax.source import DEFAULT, locate, read_object, shards

_STORED = ("F32", "F16", "BF16", "F64")  # as safetensors names them
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load_model(
    source: str | Path = DEFAULT, *, dtype: str | None = None, revision: str | None = None, tokenizer: bool = True
) -> Model:
    """Load a checkpoint as frozen params.

    Args:
      source: "default" (the packaged model), a folder in Hugging Face format, or a hub id.
      dtype: "float32" or "bfloat16", of weights and activations; None for `default_dtype()`.
      revision: branch, tag or commit on the hub.
      tokenizer: load the tokenizer too, where the checkpoint has one.

    Raises:
      UserError: if the checkpoint cannot be had, is damaged, or describes a model that is not supported.
    """
    dtype = dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    folder = locate(source, revision)
    path = folder / "config.json"
    described = read_object(path)
    try:
        family, config = read_config(described)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    params, fingerprint = load_params(folder, family, config, DTYPES[dtype])
    loaded = load_tokenizer(folder, config) if tokenizer else None
    return Model(config, params, loaded, str(source), fingerprint)


def load_params(folder: Path, family: Family, config: ModelConfig, dtype: Any) -> tuple[Params, str]:
    """Params of a checkpoint, tensor by tensor in the wanted dtype, and the model's fingerprint.

    Raises:
      UserError: for a damaged file, a missing, unknown, duplicate or wrong-shaped weight, or a NaN or infinity.
    """
    template = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.zeros((1, config.width)))["params"]
    template["embed"] = {"embedding": jax.ShapeDtypeStruct((config.vocab_size, config.width), jnp.float32)}
    shapes = {
        "/".join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(template)
    }
    rows = family.weights(config)
    assert {row.path for row in rows} == set(shapes), "the weight table does not match the decoder"

    params: Params = {}
    checks: dict[str, tuple[jax.Array, jax.Array, jax.Array]] = {}
    with ExitStack() as stack:
        where = _open_all(stack, shards(folder), config, family, rows)
        for row in rows:
            path, tensor = where[row.name][0], _read(where, row.name)
            expected = shapes[row.path][::-1] if row.transposed else shapes[row.path]
            if tensor.shape != expected:
                raise UserError(f"{path}: {row.name} has shape {tensor.shape}, expected {expected} from config.json")
            stored = jnp.asarray(tensor)
            placed = _place(stored, dtype, row.transposed)
            checks[row.name] = (*_check(stored), jnp.isfinite(placed).all())
            _insert(params, row.path, placed)
    digest = hashlib.sha256(repr(config).encode())
    for name, (finite, checksum, fits) in sorted(checks.items()):
        if not finite:
            raise UserError(f"{where[name][0]}: {name} holds a NaN or an infinity; download or convert it again")
        if not fits:
            raise UserError(f"{where[name][0]}: {name} is too large for {jnp.dtype(dtype).name}; use float32")
        digest.update(f"{name}:{int(checksum)}".encode())
    return params, digest.hexdigest()[:16]


def _open_all(
    stack: ExitStack, files: list[Path], config: ModelConfig, family: Family, rows: list[Weight]
) -> Mapping[str, tuple[Path, Any]]:
    """Tensor name → (file, open handle), after checking the names against the weight table."""
    where: dict[str, tuple[Path, Any]] = {}
    for path in files:
        try:
            handle = stack.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or truncated safetensors file ({error})") from error
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            if name in where:
                raise UserError(f"{path}: duplicate weight {name}, also in {where[name][0]}")
            where[name] = (path, handle)
    names = {row.name for row in rows}
    for name in sorted(names - where.keys()):
        cure = "complete the download, or correct config.json"
        raise UserError(f"{files[0].parent}: missing weight {name}{nearest(name, where)}; {cure}")
    for name in sorted(where.keys() - names):
        path, original = where[name][0], family.ignorable(config, name)
        if original is None:
            reason = f"{config.family} as config.json describes it has no place for it"
            raise UserError(f"{path}: unknown weight {name}{nearest(name, names)}; {reason}")
        if original and not np.array_equal(_read(where, name), _read(where, original)):
            raise UserError(f"{path}: {name} is no copy of {original}, though config.json has tie_word_embeddings")
    return where


def _read(where: Mapping[str, tuple[Path, Any]], name: str) -> np.ndarray:
    path, handle = where[name]
    try:
        stored = handle.get_slice(name).get_dtype()
        tensor = handle.get_tensor(name) if stored in _STORED else None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read {name} ({error})") from error
    if tensor is None:
        raise UserError(f"{path}: {name} is stored as {stored}; expected one of {', '.join(_STORED)}")
    return tensor


@functools.partial(jax.jit, static_argnums=(1, 2))
def _place(tensor: jax.Array, dtype: Any, transposed: bool) -> jax.Array:
    tensor = tensor.astype(dtype)
    return tensor.T if transposed else tensor


@jax.jit
def _check(tensor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether all numbers are finite, and a checksum of their bits and places (uint32).

    Bits and place go through the finaliser of MurmurHash3 before they are summed, so that no pattern cancels.
    """
    bits = jax.lax.bitcast_convert_type(tensor, jnp.uint32 if tensor.dtype.itemsize == 4 else jnp.uint16)
    mixed = bits.astype(jnp.uint32).ravel() ^ _mix(jax.lax.iota(jnp.uint32, tensor.size))
    return jnp.isfinite(tensor).all(), jnp.sum(_mix(mixed), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _insert(params: Params, path: str, leaf: jax.Array) -> None:
    *branches, name = path.split("/")
    for branch in branches:
        params = params.setdefault(branch, {})
    params[name] = leaf


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """The checkpoint's transformers tokenizer, or None if it has none.

    Raises:
      UserError: if it is damaged or gives ids that the embedding table does not have.
    """
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"{folder}: the tokenizer cannot be read ({error})") from error
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer's ids reach {highest}, the embedding table has {config.vocab_size} rows"
        )
    return tokenizer

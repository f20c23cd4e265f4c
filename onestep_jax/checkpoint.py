"""A Hugging Face checkpoint, from a folder or the hub, as a frozen `Model`: strict about weights, no torch."""

from __future__ import annotations

import functools
import hashlib
import json
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

DEFAULT = "default"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt")


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
    folder = locate(str(source), revision)
    family, config = read_config(read_json(folder / "config.json"))
    params, fingerprint = load_params(folder, family, config, DTYPES[dtype])
    loaded = load_tokenizer(folder, config) if tokenizer else None
    return Model(config, params, loaded, str(source), fingerprint)


def locate(source: str, revision: str | None = None) -> Path:
    """Folder that holds the checkpoint `source`, downloading the needed files of a hub id.

    Raises:
      UserError: if there is no such folder or the hub does not give it.
    """
    if source == DEFAULT:
        return Path(__file__).parent / "data" / "default"
    if Path(source).is_dir():
        return Path(source)
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).exists():
        raise UserError(f"model {source!r}: no such folder; give a folder, a hub id like 'org/name', or 'default'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_WANTED)))
    except GatedRepoError as error:
        raise UserError(
            f"model {source!r} is gated: accept its licence on the hub and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"model {source!r}: no such repository on the hub, or no access to it; `hf auth login` if private"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"model {source!r}: not in the local cache and the hub cannot be reached ({type(error).__name__})"
        ) from error


def read_json(path: Path) -> Any:
    """Contents of a JSON file.

    Raises:
      UserError: if it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; a checkpoint folder needs config.json and safetensors weights"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def shards(folder: Path) -> list[Path]:
    """Weight files of a checkpoint folder, in order.

    Raises:
      UserError: if there are none, one that the index names is missing, or there are only pickles.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
        for name in names:
            if not (folder / name).exists():
                raise UserError(f"{folder / name}: missing; {index.name} names it")
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if list(folder.glob("*.bin")):
        raise UserError(
            f"{folder}: only pickled weights (.bin), which can run code when read; convert them once with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise UserError(f"{folder}: no model.safetensors and no {index.name}")


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
    checks: dict[str, tuple[jax.Array, jax.Array]] = {}
    with ExitStack() as stack:
        where = _open_all(stack, shards(folder), config, family, rows)
        for row in rows:
            path, handle = where[row.name]
            tensor = _read(handle, row.name, path)
            expected = shapes[row.path][::-1] if row.transposed else shapes[row.path]
            if tensor.shape != expected:
                raise UserError(f"{path}: {row.name} has shape {tensor.shape}, expected {expected} from config.json")
            stored = jnp.asarray(tensor)
            checks[row.name] = _check(stored)
            _insert(params, row.path, _place(stored, dtype, row.transposed))
    digest = hashlib.sha256(repr(config).encode())
    for name, (finite, checksum) in sorted(checks.items()):
        if not finite:
            raise UserError(f"{where[name][0]}: {name} holds a NaN or an infinity")
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
        raise UserError(f"{files[0].parent}: missing weight {name}{nearest(name, where)}")
    for name, (path, _) in where.items():
        if name not in names and not family.ignorable(config, name):
            raise UserError(f"{path}: unknown weight {name}{nearest(name, names)}; {config.family} has no place for it")
    return where


def _read(handle: Any, name: str, path: Path) -> np.ndarray:
    try:
        return handle.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read {name} ({error})") from error


@functools.partial(jax.jit, static_argnums=(1, 2))
def _place(tensor: jax.Array, dtype: Any, transposed: bool) -> jax.Array:
    tensor = tensor.astype(dtype)
    return tensor.T if transposed else tensor


@jax.jit
def _check(tensor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether all numbers are finite, and a checksum of their bits and places (uint32)."""
    bits = jax.lax.bitcast_convert_type(tensor, jnp.uint32 if tensor.dtype.itemsize == 4 else jnp.uint16)
    places = jax.lax.iota(jnp.uint32, tensor.size) * jnp.uint32(2654435761) | jnp.uint32(1)
    return jnp.isfinite(tensor).all(), jnp.sum(bits.astype(jnp.uint32).ravel() * places, dtype=jnp.uint32)


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

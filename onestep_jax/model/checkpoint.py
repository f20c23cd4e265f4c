"""A Hugging Face checkpoint or a GGUF file as a frozen `Model`, and back; strict, and without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding

from onestep_jax.devices.placement import local_devices
from onestep_jax.devices.weight_split import weight_sharding
from onestep_jax.errors import UserError, check_kind, check_known, one_line
from onestep_jax.model.config import ModelConfig, stated
from onestep_jax.model.decoder import Model, Params
from onestep_jax.model.families import Family, read_described
from onestep_jax.model.gguf import gguf_config, is_gguf
from onestep_jax.model.hub import DEFAULT, locate, read_object
from onestep_jax.model.safetensors_files import read_in_turn
from onestep_jax.model.stacked import place_of, row_writer, rows
from onestep_jax.model.tokenizer import load_tokenizer
from onestep_jax.model.weight_files import (
    all_finite,
    decoder_tensors,
    match_tensors,
    not_finite,
    settle_head,
    stored_arrays,
    take_part,
    weight_rows,
)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all."""


def default_scan() -> bool:
    """Whether layers are stacked where nobody says: not on a CPU, where a step over a stack takes longer."""
    return local_devices()[0].platform != "cpu"


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return "float32" if local_devices()[0].platform == "cpu" else "bfloat16"


def load_model(
    source: str | Path = DEFAULT,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    tokenizer: bool = True,
    mesh: Mesh | None = None,
    scan_layers: bool | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a checkpoint as frozen params.

    Args:
      source: "default" (the packaged model), a folder in Hugging Face format, a GGUF file, or a hub id.
      dtype: "float32" or "bfloat16", of weights and activations; None for `default_dtype()`.
      revision: branch, tag or commit on the hub.
      tokenizer: load the tokenizer too, where the checkpoint has one.
      mesh: split the weights over its axis "model": each device gets its part and no more (`weight_split`).
      scan_layers: keep the weights of layers of one kind as one array, over which programs scan (`stacked`): they
        compile in a time that does not grow with the depth. None: where the device is no CPU.
      progress: called as the weights are read.

    Raises:
      UserError: if the checkpoint cannot be had, is damaged, or describes a model that is not supported.
    """
    check_kind("a folder, a GGUF file, a hub id or 'default'", (str, os.PathLike), source=source)
    dtype = dtype or default_dtype()
    check_known("dtype", [dtype], DTYPES)
    check_kind("True, False or None", (bool, type(None)), scan_layers=scan_layers)
    scan = default_scan() if scan_layers is None else scan_layers
    folder = locate(source, revision)
    described, family, config = describe(folder)
    params, settled, fingerprint = load_params(folder, family, config, DTYPES[dtype], mesh, scan, progress)
    if settled != config:
        described["tie_word_embeddings"] = settled.tied
    loaded = load_tokenizer(folder) if tokenizer else None
    local = source != DEFAULT and os.path.exists(source)
    name = str(folder if local else source)  # the absolute path: a run finds it from any folder
    return Model(settled, params, loaded, name, fingerprint, described, _stop_tokens(folder, described), revision)


def describe(folder: Path) -> tuple[dict[str, Any], Family, ModelConfig]:
    """A folder's config.json, its family and its architecture; of the text decoder where this is a part of a whole.

    Of a GGUF file it is what the metadata say. Warns of what config.json holds without effect.

    Raises:
      UserError: if it is missing, damaged or describes a model that is not supported.
    """
    gguf = is_gguf(folder)
    path = folder if gguf else folder / "config.json"
    content = gguf_config(path) if gguf else read_object(path)
    try:
        described, family, config, notes = read_described(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=1)  # at this line for every caller, so a process says it once
    return described, family, config


def load_params(
    folder: Path,
    family: Family,
    config: ModelConfig,
    dtype: Any,
    mesh: Mesh | None = None,
    scan_layers: bool = False,
    progress: Progress | None = None,
) -> tuple[Params, ModelConfig, str]:
    """Params of a checkpoint, tensor by tensor in the wanted dtype and place.

    Returns:
      The params; the architecture, in which the files say whether the head is tied; the model's fingerprint.

    Raises:
      UserError: for a damaged file, a missing, unknown, duplicate or wrong-shaped weight, or a NaN or infinity.
    """
    found, config = settle_head(decoder_tensors(folder, family), family, config)
    table = weight_rows(family, config)
    stored = match_tensors(folder, found, config, table)
    placed = _Placed(config, dtype, mesh, scan_layers)
    digest = hashlib.sha256(_statement(config).encode())
    checksums: dict[str, str] = {}
    done, total = 0, sum(tensor.nbytes for tensor in stored.values())
    names = {tensor: name for name, tensor in stored.items()}
    for tensor, host in read_in_turn(sorted(names, key=lambda tensor: (tensor.path, tensor.offset))):
        name = names[tensor]
        checksums[name] = xxhash.xxh3_64_hexdigest(host.view(np.uint8).data)
        if host.dtype == np.float64:
            with np.errstate(over="ignore"):  # found out by `all_finite`
                host = host.astype(np.float32)
        if not all_finite(host, dtype):
            raise UserError(not_finite(tensor, dtype))
        for row in table[name]:
            placed.put(row.path, take_part(host, row))
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    for name, tensor in stored.items():
        digest.update(f"{name} {tensor.dtype} {checksums[name]}\n".encode())
    return unflatten_dict(placed.params, sep="/"), config, digest.hexdigest()[:16]


def _statement(config: ModelConfig) -> str:
    """An architecture in words that do not change when a later version knows more options."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {"": type(value).__name__} | {name: plain(inner) for name, inner in stated(value).items()}
        return [plain(inner) for inner in value] if isinstance(value, tuple) else value

    return json.dumps(plain(config), sort_keys=True)


class _Placed:
    """Params, put where they are used one after another; a weight of a stack goes straight into its row.

    Attributes:
      params: path → weight, in the wanted layout.
    """

    def __init__(self, config: ModelConfig, dtype: Any, mesh: Mesh | None, scan_layers: bool):
        self._config, self._dtype, self._mesh, self._scan = config, dtype, mesh, scan_layers
        self.params: dict[str, jax.Array] = {}

    def put(self, path: str, host: np.ndarray) -> None:
        """Place the weight of a layer-wise path."""
        weight = self._place(path, host)
        where, row = place_of(self._config, path) if self._scan else (path, None)
        if row is None:
            self.params[path] = weight
            return
        shape = (rows(self._config), *host.shape)
        sharding = self._sharding(where, shape)
        if where not in self.params:
            self.params[where] = jnp.zeros(shape, self._dtype, device=sharding)
        self.params[where] = row_writer(sharding)(self.params[where], weight, row)

    def _place(self, path: str, host: np.ndarray) -> jax.Array:
        sharding = self._sharding(path, host.shape)
        if sharding is None:
            weight = jax.device_put(host)
        else:
            weight = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
        return weight if weight.dtype == self._dtype else weight.astype(self._dtype)

    def _sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding | None:
        return None if self._mesh is None else weight_sharding(self._mesh, path, shape, self._config.kv_heads)


def save_model(model: Model, folder: str | Path) -> None:
    """Write a model back as a checkpoint folder that transformers opens: config.json, weights and tokenizer.

    Where the model stops at other tokens than its config.json says, there is a generation_config.json that names them.

    Args:
      model: with the config.json that it was loaded with.
      folder: created if need be; files of these names in it are replaced.

    Raises:
      UserError: if the folder cannot be made.
    """
    from safetensors.numpy import save_file

    check_kind("what load_model returns", Model, model=model)
    check_kind("a path", (str, os.PathLike), folder=folder)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: no folder can be made there ({one_line(error)}); give another path") from error
    tensors = dict(stored_arrays(model))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = {key: value for key, value in model.described.items() if key != "torch_dtype"}  # the older spelling
    described["dtype"] = jnp.dtype(model.dtype).name
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    _save_stop_tokens(model, folder / "generation_config.json")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _save_stop_tokens(model: Model, path: Path) -> None:
    """Write them to a file unless config.json has them; one that is there already would go before config.json."""
    stops = [int(token) for token in model.stop_tokens]
    if stops == _listed(model.described.get("eos_token_id")) and not path.exists():
        return
    # transformers takes these of config.json only where there is no such file
    others = {key: model.described[key] for key in ("bos_token_id", "pad_token_id") if key in model.described}
    written = others | {"eos_token_id": stops[0] if len(stops) == 1 else stops or None}
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _listed(ids: Any) -> list[Any]:
    """The ids of an `eos_token_id`, which may be null, a single one or a list."""
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _stop_tokens(folder: Path, described: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a generated text: of generation_config.json, or else of config.json."""
    path = folder / "generation_config.json"
    generation = read_object(path) if path.exists() else {}
    ids = generation.get("eos_token_id", described.get("eos_token_id"))
    listed = _listed(ids)
    if not all(type(one) is int for one in listed):
        where = path if "eos_token_id" in generation else folder / "config.json"
        raise UserError(f"{where}: eos_token_id = {ids!r}: expected a token id, or a list of them")
    return tuple(listed)

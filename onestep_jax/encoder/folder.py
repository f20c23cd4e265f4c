"""An encoder on disk: a folder with config.json, model.safetensors and a model card."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.encoder.card import model_card
from onestep_jax.encoder.design import Design, Encoder, Weights
from onestep_jax.encoder.objective import init_weights
from onestep_jax.errors import Damaged, UserError, check_kind, check_known, nearest, one_line, shown
from onestep_jax.model.decoder import Model
from onestep_jax.model.safetensors_files import stored_tensors
from onestep_jax.store.storage import make_folder, replace, writing
from onestep_jax.tokens import check_tokens

FORMAT = 1
DEFAULT = "default"
DTYPES = ("float32", "bfloat16")
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_MOST_BYTES = 2**24  # of a config.json


def fingerprint(design: Design, weights: Weights) -> str:
    """16 hexadecimal digits of a design and weights."""
    digest = hashlib.sha256(json.dumps(design.describe(), sort_keys=True).encode())
    for name, leaf in sorted(flatten_dict(weights, sep="/").items()):
        digest.update(name.encode() + np.ascontiguousarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]


def rounded(weights: Weights, dtype: str) -> Weights:
    """Weights as a folder of a dtype holds them, as float32 numpy arrays."""
    kept = jnp.dtype(dtype)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32).astype(kept).astype(np.float32), weights)


def make_encoder(model: Model, design: Design, weights: Weights, trained: Mapping[str, Any]) -> Encoder:
    """An encoder of a decoder, with its fingerprint; weights as numpy arrays."""
    host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)
    return Encoder(design, host, model.fingerprint, model.source, fingerprint(design, host), trained)


def save_encoder(encoder: Encoder, folder: str | Path, dtype: str = "float32") -> None:
    """Write an encoder; config.json comes last, so that a folder with one is whole.

    Args:
      encoder: to write.
      folder: created if need be; files of these names in it are replaced.
      dtype: "float32", or "bfloat16" for half the size, into which the weights are rounded.

    Raises:
      UserError: if the folder cannot be written.
    """
    from safetensors.numpy import save

    check_kind("an encoder", Encoder, encoder=encoder)
    check_known("dtype of an encoder", [dtype], DTYPES)
    folder = Path(folder)
    kept = jnp.dtype(dtype)
    tensors = {
        name: np.ascontiguousarray(np.asarray(leaf, np.float32).astype(kept))
        for name, leaf in flatten_dict(encoder.weights, sep="/").items()
    }
    about = {
        "format": FORMAT,
        "kind": "encoder",
        "design": encoder.design.describe(),
        "model": encoder.model,
        "model source": encoder.model_source,
        "fingerprint": fingerprint(encoder.design, rounded(encoder.weights, dtype)),
        "dtype": dtype,
        "trained": dict(encoder.trained),
    }
    with writing(folder):
        make_folder(folder)
        replace(folder / WEIGHTS, save(tensors, {"format": "pt"}))
        replace(folder / CARD, model_card(about, encoder.parameters).encode())
        replace(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def load_encoder(source: str | Path, model: Model) -> Encoder:
    """Read an encoder for a decoder.

    Args:
      source: "default", the packaged one of the packaged model, or a folder that `save_encoder` wrote.
      model: the frozen decoder that it was trained through.

    Raises:
      UserError: if it is missing or damaged, holds a NaN or an infinity, or belongs to another model.
    """
    check_kind("what load_model returns", Model, model=model)
    check_kind("a folder", (str, os.PathLike), source=source)
    folder = _folder(source)
    about = _read_config(folder, source)
    if about.get("model") != model.fingerprint:
        raise UserError(
            f"encoder {str(source)!r} belongs to model {shown(about.get('model source'))} "
            f"({shown(about.get('model')).strip(chr(39))}), not to "
            f"{model.source!r} ({model.fingerprint}); give that model, or train an encoder for this one"
        )
    try:
        design = _read_design(folder / CONFIG, about, model)
        weights = _read_weights(folder / WEIGHTS, _expected(model, design))
    except UserError as error:
        raise Damaged(f"{error}; copy or train the encoder again") from error
    written = dataclasses.replace(design, temperature=about["design"].get("temperature", 1.0))
    found = fingerprint(written, weights)
    if found != about.get("fingerprint"):
        told = f"its weights have the fingerprint {found}, config.json says {shown(about.get('fingerprint'))}"
        raise Damaged(f"{folder / WEIGHTS}: damaged encoder: {told}; copy or train it again")
    found = found if written == design else fingerprint(design, weights)
    return Encoder(design, weights, model.fingerprint, model.source, found, _trained(about))


def check_encoder(source: str | Path) -> None:
    """Refuse what describes no encoder; neither its weights nor those of a decoder are read.

    Raises:
      UserError: if it is missing, or its config.json is damaged.
    """
    _read_config(_folder(source), source)


def _folder(source: str | Path) -> Path:
    return Path(__file__).parent.parent / "data" / "encoder" if source == DEFAULT else Path(source)


def _read_config(folder: Path, source: str | Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        cure = "give a folder that `onestep encoder train` wrote"
        if source == DEFAULT:
            cure = "this installation has no packaged encoder; train one with experiments/packaged/train_encoder.py"
        raise UserError(f"encoder {str(source)!r}: {path} cannot be read ({one_line(error)}); {cure}") from error
    try:
        about = json.loads(content) if len(content) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("kind") != "encoder" or not isinstance(about.get("design"), dict):
        raise UserError(f"{path}: describes no encoder; give a folder that `onestep encoder train` wrote")
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: encoder format {shown(about.get('format'))}; this version reads {FORMAT}")
    return about


def _expected(model: Model, design: Design) -> dict[str, tuple[int, ...]]:
    """Shape of each weight by name."""
    make = functools.partial(init_weights, model.network, design)
    leaves: dict[str, Any] = flatten_dict(jax.eval_shape(make, model.params, jax.random.key(0)), sep="/")
    return {name: leaf.shape for name, leaf in leaves.items()}


def _trained(about: Mapping[str, Any]) -> dict[str, Any]:
    trained = about.get("trained")
    return trained if isinstance(trained, dict) else {}


def _read_design(path: Path, about: Mapping[str, Any], model: Model) -> Design:
    described, recipe = dict(about["design"]), _trained(about).get("recipe")
    if isinstance(recipe, dict) and "temperature" in recipe:  # where earlier versions kept it
        described = {"temperature": recipe["temperature"]} | described
    try:
        design = Design.from_description(described)
        if design.prefix:
            check_tokens([design.prefix], model.config.vocab_size, None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return design


def _read_weights(path: Path, expected: Mapping[str, tuple[int, ...]]) -> Weights:
    tensors = {tensor.name: tensor for tensor in stored_tensors(path)}
    for name in (*expected, *tensors):
        if name not in tensors:
            raise UserError(f"{path}: missing weight {name!r}")
        if name not in expected:
            raise UserError(f"{path}: unknown weight {shown(name)}{nearest(name, expected)}")
        if tensors[name].shape != expected[name]:
            raise UserError(f"{path}: {name} has shape {tensors[name].shape}, expected {expected[name]}")
    weights = {name: tensor.read().astype(np.float32) for name, tensor in tensors.items()}
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds a NaN or an infinity")
    return unflatten_dict(weights, sep="/")

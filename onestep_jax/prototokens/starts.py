"""Start vectors of texts that come from elsewhere: another run, an exported file, an encoder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np

from onestep_jax.errors import UserError, check_kind, check_known, one_line
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.projection import MAP
from onestep_jax.prototokens.schemes import Scheme, draw, from_description
from onestep_jax.store.results import Results
from onestep_jax.tokens import id_words

MISSING = ("error", "draw")
_S = TypeVar("_S", bound=Scheme)


class StartVectors(NamedTuple):
    """Vectors of texts, and what they were made for.

    Attributes:
      vectors: text_id → leaf → vector.
      scheme: the arrangement and prefix that they emit their texts in, as of `Scheme.describe`; None where no one says.
      model: fingerprint of their model; None where no one says.
    """

    vectors: Mapping[str, Mapping[str, Any]]
    scheme: Mapping[str, Any] | None = None
    model: str | None = None


Starts: TypeAlias = Results | StartVectors | Mapping[str, Mapping[str, Any]]
"""Where start vectors come from; a mapping is text_id → leaf → vector."""


def start_vectors(start: Starts, model: Model) -> StartVectors:
    """The vectors of any kind of start.

    Raises:
      UserError: for something else, or vectors of another model.
    """
    if isinstance(start, Results):
        start = StartVectors({text.text_id: text.vectors for text in start}, start.scheme, start.model)
    check_kind("Results, or vectors by text_id and leaf", (StartVectors, Mapping), start=start)
    found = start if isinstance(start, StartVectors) else StartVectors(start)
    if found.model not in (None, model.fingerprint):
        raise UserError(
            f"the start vectors belong to model {found.model}, not to {model.source!r} ({model.fingerprint}); "
            "load the model that they were made for"
        )
    return found


def scheme_of_start(start: StartVectors, given: Scheme | None, prefixes: bool) -> Scheme | None:
    """The scheme of a fit that begins at some vectors: what is given, and where that is silent, theirs.

    Args:
      start: the vectors.
      given: the scheme that was asked for, if any; its prefix is None where none was named.
      prefixes: whether each text has a prefix of its own, so that the scheme has none.

    Raises:
      UserError: if another arrangement was asked for than theirs, in which they would mean nothing.
    """
    if start.scheme is None:
        return given
    theirs = from_description({**start.scheme, "share": None, "group": 1} if "share" in start.scheme else start.scheme)
    if given is not None and given.notation != theirs.notation:
        told = f"the start vectors are for {theirs.notation}, and the fit is of {given.notation}"
        raise UserError(f"{told}; leave the arrangement away, or give start vectors of the same one")
    named = getattr(given, "prefix", None)
    if given is None or (named is None and hasattr(given, "prefix")):
        prefix = None if prefixes else getattr(theirs, "prefix", None)
        return dataclasses.replace(given or theirs, prefix=prefix)  # pyright: ignore[reportArgumentType]
    return given


def with_starts(
    scheme: _S, start: StartVectors, missing: str, ids: Sequence[str], width: int, *, seed: int, scale: float
) -> _S:
    """The scheme with a start vector for each row of a fit.

    The k-th copy of a text, whose identity ends in -k, starts where the text does if it has no vectors of its own.

    Args:
      scheme: the arrangement.
      start: where vectors come from.
      missing: "error" or "draw", what becomes of texts that are not there.
      ids: identity of each row.
      width: D.
      seed, scale: of vectors that are drawn, which are those that the text would have had.

    Raises:
      UserError: if the scheme has start vectors already or shares one, or texts are missing that must not be.
    """
    check_known("value of start_missing", [missing], MISSING)
    if scheme.start is not None:
        raise UserError("start vectors of the scheme, and start=…: give one of them")
    if scheme.shared:
        raise UserError(f"start vectors go to texts that share no vector; {scheme.notation} shares one")
    known = start.vectors
    rows = [known.get(text_id, known.get(text_id.partition("-")[0])) for text_id in ids]
    absent = [text_id for text_id, row in zip(ids, rows, strict=True) if row is None]
    if absent and missing == "error":
        told = f"{len(absent)} of {len(ids)} texts have no start vectors, the first is {absent[0]}"
        raise UserError(f"{told}; give start vectors of all, or draw those that are missing (--start-missing draw)")
    filled = [
        _drawn(scheme, text_id, width, seed, scale) if row is None else _checked(scheme, text_id, width, row)
        for text_id, row in zip(ids, rows, strict=True)
    ]
    stacked = {name: np.stack([row[name] for row in filled]) for name in scheme.leaf_shapes(width)}
    return dataclasses.replace(scheme, start=stacked)  # pyright: ignore[reportArgumentType]


def _checked(scheme: Scheme, text_id: str, width: int, row: Any) -> dict[str, np.ndarray]:
    """The vectors of a text as float32 arrays."""
    check_kind("vectors by leaf", Mapping, **{f"start vectors of text {text_id}": row})
    try:
        with np.errstate(over="ignore"):
            leaves = {str(name): np.asarray(leaf, np.float32) for name, leaf in row.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"start vectors of text {text_id}: expected numbers ({one_line(error)})") from error
    shapes, found = scheme.leaf_shapes(width), {name: leaf.shape for name, leaf in leaves.items()}
    if found != shapes:
        raise UserError(f"start vectors of text {text_id} are {found}; {scheme.notation} needs {shapes}")
    for name, leaf in leaves.items():
        if not np.isfinite(leaf).all():
            raise UserError(f"start vectors of text {text_id}: {name} holds a NaN or an infinity")
    return leaves


def _drawn(scheme: Scheme, text_id: str, width: int, seed: int, scale: float) -> dict[str, Any]:
    ids_G4 = jnp.array([id_words(text_id, seed)], jnp.uint32)
    return {name: np.asarray(leaf[0]) for name, leaf in draw(scheme, ids_G4, width, scale).items()}


def read_vectors(path: Path) -> StartVectors:
    """Vectors of a file that `onestep export` wrote.

    Raises:
      UserError: if it cannot be read or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            names = [name for name in ("e", "m", "mem", MAP) if name in file.keys()]  # noqa: SIM118, it is no mapping
            leaves = {name: file.get_tensor(name) for name in names}
        ids, scheme = (json.loads(about.get(name, "null")) for name in ("text_ids", "scheme"))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); give a file that onestep export wrote") from error
    whole = isinstance(ids, list) and leaves and all(leaf.shape[:1] == (len(ids),) for leaf in leaves.values())
    if not whole or not isinstance(scheme, dict):
        raise UserError(f"{path}: holds no vectors with text_ids and scheme; give a file that onestep export wrote")
    vectors = {str(text_id): {name: leaf[i] for name, leaf in leaves.items()} for i, text_id in enumerate(ids)}
    return StartVectors(vectors, scheme, about.get("fingerprint"))

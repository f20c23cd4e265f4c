"""Models of the same architecture whose weights know no language: does the capacity come from training at all?"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.errors import UserError, check_known
from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.decoder import Array, Decoder, Model

KINDS = ("init", "matched", "permuted")
PREFIX = "untrained:"


def untrained(model: Model, seed: int = 0, *, kind: str = "permuted", keep_norms: bool = False) -> Model:
    """Put random weights in the place of a model's trained ones.

    The result has a source ("untrained:KIND:SEED:SOURCE", read by `load_untrained`) and a fingerprint of its own, a
    function of the model's, the kind, the seed and `keep_norms`; so runs on it are told from runs on the model.

    Args:
      model: gives the architecture, the tokenizer and, by kind, the statistics.
      seed: the same seed gives the same weights.
      kind: "init", fresh ones by the decoder's own initialisers (normal with standard deviation 0.02, norms 1, biases
        0); "matched", normal with the mean and the standard deviation of each trained tensor; "permuted", the
        entries of each trained tensor in random order, which keeps their whole distribution.
      keep_norms: leave the scales and biases of the norms as trained; otherwise they are treated like any tensor.

    Raises:
      UserError: for an unknown kind or a negative seed.
    """
    check_known("kind of untrained weights", [kind], KINDS)
    if seed < 0:
        raise UserError(f"seed = {seed}: expected at least 0")
    trained: dict[str, Any] = flatten_dict(model.params, sep="/")
    initial: dict[str, Any] = _initial(model, seed) if kind == "init" else {}
    weights = {}
    for path, weight in trained.items():
        if keep_norms and "norm" in path.split("/")[-2]:
            weights[path] = weight
        elif kind == "init":
            weights[path] = initial[path]
        else:
            # A key of its own for each path: a tensor does not depend on which others there are.
            word = int(hashlib.sha256(path.encode()).hexdigest()[:8], 16)
            draw = _matched if kind == "matched" else _permuted
            drawn = draw(jax.random.fold_in(jax.random.key(seed), word), weight)
            weights[path] = jax.device_put(drawn, weight.sharding)
    name = f"{PREFIX}{kind}{'+norms' if keep_norms else ''}:{seed}:"
    fingerprint = hashlib.sha256(f"{name}{model.fingerprint}".encode()).hexdigest()[:16]
    return dataclasses.replace(
        model, params=unflatten_dict(weights, sep="/"), source=name + model.source, fingerprint=fingerprint
    )


def load_untrained(source: str, **options: Any) -> Model:
    """Load a model by the source of an untrained one, "untrained:KIND:SEED:SOURCE".

    Args:
      source: as `untrained` names it, such as "untrained:permuted:0:default".
      options: see `load_model`.

    Raises:
      UserError: if it has another form, or SOURCE cannot be loaded.
    """
    kind, _, rest = source.removeprefix(PREFIX).partition(":")
    number, _, inner = rest.partition(":")
    if not source.startswith(PREFIX) or not number.isdecimal() or not inner:
        raise UserError(f"model {source!r}: expected untrained:KIND:SEED:SOURCE, such as untrained:permuted:0:default")
    plain = kind.removesuffix("+norms")
    check_known("kind of untrained weights", [plain], KINDS)
    return untrained(load_model(inner, **options), int(number), kind=plain, keep_norms=kind != plain)


def _initial(model: Model, seed: int) -> dict[str, Any]:
    """Weights by the decoder's initialisers, by path, in the dtype and place of the trained ones."""
    decoder = Decoder(model.config)

    def all_parts(decoder: Decoder, tokens_T: Array) -> Array:
        return decoder(decoder.embed(tokens_T))

    def init(key: Array) -> Any:
        made = decoder.init(key, jnp.zeros(1, jnp.int32), method=all_parts)["params"]
        return jax.tree.map(lambda new, old: new.astype(old.dtype), made, shapes)

    shapes = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, weight.dtype), model.params)
    places = jax.tree.map(lambda weight: weight.sharding, model.params)
    return flatten_dict(jax.jit(init, out_shardings=places)(jax.random.key(seed)), sep="/")


@jax.jit
def _matched(key: Array, weight: Array) -> Array:
    trained = weight.astype(jnp.float32)
    drawn = jnp.mean(trained) + jnp.std(trained) * jax.random.normal(key, weight.shape)
    return drawn.astype(weight.dtype)


@jax.jit
def _permuted(key: Array, weight: Array) -> Array:
    return jax.random.permutation(key, weight.reshape(-1)).reshape(weight.shape)

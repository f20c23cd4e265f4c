"""Models of the same architecture with random weights: does the capacity come from training at all?"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import UserError, check_known, check_least
from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.decoder import Array, Decoder, Model

KINDS = ("init", "matched", "permuted")
PREFIX = "untrained:"


@pinned
def untrained(model: Model, seed: int = 0, *, kind: str = "permuted", keep_norms: bool = False) -> Model:
    """Replace a model's trained weights by random ones.

    The result has its own source, "untrained:KIND:SEED:SOURCE", which `load_untrained` reads. It also has its own
    fingerprint, a function of the model's fingerprint, the kind, the seed and `keep_norms`, so that a run on it is not
    taken for a run on the trained model.

    Args:
      model: gives the architecture and the tokenizer, and for two of the kinds the statistics of its weights.
      seed: the same seed gives the same weights.
      kind: "init", drawn by the decoder's own initialisers (normal with standard deviation 0.02, norms 1, biases 0);
        "matched", normal with the mean and the standard deviation of each trained tensor; "permuted", the entries of
        each trained tensor in random order, which keeps their whole distribution.
      keep_norms: leave the scales and biases of the norms as trained; otherwise they are replaced like any tensor.

    Raises:
      UserError: for an unknown kind or a negative seed.
    """
    check_known("kind of untrained weights", [kind], KINDS)
    check_least(0, seed=seed)
    trained: dict[str, Any] = flatten_dict(model.params, sep="/")
    initial: dict[str, Any] = _initial(model, seed) if kind == "init" else {}
    weights = {}
    for path, weight in trained.items():
        if keep_norms and "norm" in path.split("/")[-2]:
            weights[path] = weight
        elif kind == "init":
            weights[path] = initial[path]
        else:
            # The key follows from the path, so a tensor does not depend on which other tensors there are.
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
    """Load a model and replace its weights, as its source "untrained:KIND:SEED:SOURCE" says.

    Args:
      source: see `untrained`; for example "untrained:permuted:0:default".
      options: see `load_model`.

    Raises:
      UserError: if `source` has another form, or SOURCE cannot be loaded.
    """
    kind, _, rest = source.removeprefix(PREFIX).partition(":")
    number, _, inner = rest.partition(":")
    if not source.startswith(PREFIX) or not number.isdecimal() or not inner:
        raise UserError(f"model {source!r}: expected untrained:KIND:SEED:SOURCE, such as untrained:permuted:0:default")
    plain = kind.removesuffix("+norms")
    check_known("kind of untrained weights", [plain], KINDS)
    return untrained(load_model(inner, **options), int(number), kind=plain, keep_norms=kind != plain)


def _initial(model: Model, seed: int) -> dict[str, Any]:
    """Path → weight by the decoder's initialisers, with the dtype and the placement of the trained one."""
    decoder = Decoder(model.config)

    def embed_and_decode(decoder: Decoder, tokens_T: Array) -> Array:
        return decoder(decoder.embed(tokens_T))

    def init(key: Array) -> Any:
        made = decoder.init(key, jnp.zeros(1, jnp.int32), method=embed_and_decode)["params"]
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

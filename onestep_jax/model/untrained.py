"""Models of the same architecture with random weights: does the capacity come from training at all, and from where?"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import UserError, check_known, check_least, check_list
from onestep_jax.model.checkpoint import describe, load_model
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.decoder import Array, Decoder, Model, Params, parameter_shapes
from onestep_jax.model.hub import locate
from onestep_jax.model.stacked import place_of, row_writer, weight_of

KINDS = ("init", "matched", "permuted")
PREFIX = "untrained:"
PARTS = ("embeddings", "head", "attention", "mlp")
THIRDS = ("first third", "middle third", "last third")
_LAYERS = re.compile(r"layers:(\d+)(?:-(\d+))?", re.ASCII)
_PART = r"(?:layers:\d+(?:-\d+)?|[^:+@]+)"
_SOURCE = re.compile(
    rf"{PREFIX}(?P<kind>[^:@]*?)(?P<norms>\+norms)?(?:@(?P<parts>{_PART}(?:\+{_PART})*))?:(?P<seed>\d+):(?P<model>.+)",
    re.ASCII,
)
# Module → the part that its weights are of: the first module of a path, or in a block the second.
_PART_OF = {
    **dict.fromkeys(("embed", "positions", "project_in"), "embeddings"),
    **dict.fromkeys(("project_out", "norm", "head"), "head"),
    **dict.fromkeys(("attention", "norm_1", "norm_1_out"), "attention"),
    **dict.fromkeys(("mlp", "norm_2", "norm_2_out"), "mlp"),
}


class Untrained(NamedTuple):
    """What a source "untrained:KIND[+norms][@PART[+PART …]]:SEED:MODEL" says; see `untrained`.

    Attributes:
      kind, keep_norms, parts, seed: arguments of `untrained`.
      model: the source of the trained model.
    """

    kind: str
    keep_norms: bool
    parts: tuple[str, ...]
    seed: int
    model: str

    @classmethod
    def parse(cls, source: str) -> Untrained:
        """Read a source.

        Raises:
          UserError: if it has another form.
        """
        found = _SOURCE.fullmatch(source)
        if found is None:
            form = (
                "untrained:KIND:SEED:SOURCE, such as untrained:permuted:0:default, or untrained:KIND@PART:SEED:SOURCE"
            )
            raise UserError(f"model {source!r}: expected {form}")
        parts = re.findall(_PART, found["parts"] or "")
        return cls(found["kind"], found["norms"] is not None, tuple(parts), int(found["seed"]), found["model"])

    def config(self, trained: ModelConfig) -> ModelConfig:
        """The architecture, by that of the trained model; see `untied`."""
        return untied(trained, _checked(self.parts))


@pinned
def untrained(
    model: Model, seed: int = 0, *, kind: str = "permuted", keep_norms: bool = False, parts: Iterable[str] = ()
) -> Model:
    """Replace a model's trained weights, or those of some of its parts, by random ones.

    The result has its own source, "untrained:KIND:SEED:SOURCE" or "untrained:KIND@PART:SEED:SOURCE", which
    `load_untrained` reads. It also has its own fingerprint, a function of the model's fingerprint, the kind, the seed,
    `keep_norms` and the parts, so that a run on it is not taken for a run on the trained model.

    Each weight is in one of the parts "embeddings" (the table of input vectors, that of learned positions, and the
    projection behind them), "attention" and "mlp" (each with its norms), and "head" (the output matrix, with the final
    norm and the projection before it). And each weight of a block is in one part of layers.

    Where the head is tied, it is the table of input vectors. If only one of "embeddings" and "head" is replaced, the
    result is a model that is not tied: the other is the trained table. If both are, the one table is drawn anew.

    Args:
      model: gives the architecture and the tokenizer, and for two of the kinds the statistics of its weights.
      seed: the same seed gives the same weights; a tensor does not depend on which others are replaced.
      kind: "init", drawn by the decoder's own initialisers (normal with standard deviation 0.02, norms 1, biases 0);
        "matched", normal with the mean and the standard deviation of each trained tensor; "permuted", the entries of
        each trained tensor in random order, which keeps their whole distribution.
      keep_norms: leave the scales and biases of the norms as trained; otherwise they are replaced like any tensor.
      parts: what is replaced, of `PARTS`, `THIRDS` (of the layers) or "layers:A-B" (A to B, counted from 0); empty for
        the whole model.

    Raises:
      UserError: for an unknown kind or part, layers that the model does not have, or a negative seed.
    """
    check_known("kind of untrained weights", [kind], KINDS)
    check_least(0, seed=seed)
    chosen = _checked(parts)
    name = f"{PREFIX}{kind}{'+norms' if keep_norms else ''}{'@' if chosen else ''}{'+'.join(chosen)}:{seed}:"
    fingerprint = hashlib.sha256(f"{name}{model.fingerprint}".encode()).hexdigest()[:16]
    source, model = name + model.source, _untied(model, chosen)
    parts_paths = [paths_of(model.config, one) for one in chosen] or [parameter_shapes(model.config)]
    replaced = {path for paths in parts_paths for path in paths if not (keep_norms and "norm" in path.split("/")[-2])}
    params = _with(model, _drawn(model, kind, seed, replaced))
    return dataclasses.replace(model, params=params, source=source, fingerprint=fingerprint)


def _drawn(model: Model, kind: str, seed: int, paths: Iterable[str]) -> Iterator[tuple[str, Array]]:
    """Path and new weight of each layer-wise path, those of one stack after each other."""
    trained: dict[str, Any] = flatten_dict(model.params, sep="/")
    ordered = sorted(paths, key=lambda path: place_of(model.config, path)[0])
    whole = _initial(model, seed) if kind == "init" else {}
    initial = {path: whole.pop(path) for path in ordered if path in whole}
    whole.clear()
    for path in ordered:
        if kind == "init":
            yield path, initial.pop(path)  # nothing else keeps it after it has been written
            continue
        # The key follows from the path, so a tensor does not depend on which other tensors there are.
        word = int(hashlib.sha256(path.encode()).hexdigest()[:8], 16)
        draw = _matched if kind == "matched" else _permuted
        weight = weight_of(model.config, trained, path)
        drawn = draw(jax.random.fold_in(jax.random.key(seed), word), weight)
        yield path, jax.device_put(drawn, weight.sharding)


def _with(model: Model, drawn: Iterable[tuple[str, Array]]) -> Params:
    """The model's params with new weights in their places, in the same layout.

    Of a stack there are the trained one and the new one, into which each weight is written as it comes.
    """
    trained: dict[str, Any] = flatten_dict(model.params, sep="/")
    weights = dict(trained)
    for path, weight in drawn:
        if path in trained:
            weights[path] = weight
            continue
        where, row = place_of(model.config, path)
        assert row is not None, path
        if weights[where] is trained[where]:
            weights[where] = jnp.copy(trained[where])
        weights[where] = row_writer(trained[where].sharding)(weights[where], weight, row)
    return unflatten_dict(weights, sep="/")


def load_untrained(source: str, **options: Any) -> Model:
    """Load a model and replace its weights, as its source says: "untrained:KIND[+norms][@PART[+PART …]]:SEED:SOURCE".

    Args:
      source: see `untrained`; for example "untrained:permuted:0:default" or "untrained:init+norms@mlp:0:default".
      options: see `load_model`.

    Raises:
      UserError: if `source` has another form, or SOURCE cannot be loaded.
    """
    asked = Untrained.parse(source)
    check_known("kind of untrained weights", [asked.kind], KINDS)
    _checked(asked.parts)
    trained = load_model(asked.model, **options)
    return untrained(trained, asked.seed, kind=asked.kind, keep_norms=asked.keep_norms, parts=asked.parts)


def architecture(source: str, revision: str | None = None) -> ModelConfig:
    """The architecture of a model, trained or untrained, by its config.json or the header of its GGUF file alone.

    Raises:
      UserError: if there is no such model, or it is not supported.
    """
    asked = Untrained.parse(source) if source.startswith(PREFIX) else None
    _, _, config = describe(locate(asked.model if asked else source, revision, weights=False))
    return asked.config(config) if asked else config


def load_any(source: str, **options: Any) -> Model:
    """Load a model, trained or untrained, by its source; options as of `load_model`."""
    return (load_untrained if source.startswith(PREFIX) else load_model)(source, **options)


def paths_of(config: ModelConfig, part: str) -> frozenset[str]:
    """The weights of a part, by path ("block_0/attention/q/kernel").

    Raises:
      UserError: for an unknown part, or layers that the model does not have.
    """
    _checked([part])
    layers = _layers_of(config, part)
    found = {"embed/embedding"} if part == "head" and config.tied else set()
    for path in parameter_shapes(config):
        first, second, *_ = path.split("/")
        block = int(first.removeprefix("block_")) if first.startswith("block_") else None
        if layers is None:
            here = _PART_OF[first if block is None else second] == part
        else:
            here = block in layers
        found |= {path} if here else set()
    return frozenset(found)


def untied(config: ModelConfig, parts: Iterable[str]) -> ModelConfig:
    """The architecture after these parts are replaced: a tied head has its own matrix if only one of the two is."""
    alone = len({"embeddings", "head"} & set(parts)) == 1
    return dataclasses.replace(config, tied=False) if config.tied and alone else config


def _untied(model: Model, parts: tuple[str, ...]) -> Model:
    """The same function with the architecture of `untied`: the table stands for both until one of them is replaced."""
    config = untied(model.config, parts)
    if config == model.config:
        return model
    params = model.params | {"head": {"kernel": model.params["embed"]["embedding"]}}
    described = {**model.described, "tie_word_embeddings": False}
    return dataclasses.replace(model, config=config, params=params, described=described)


def _checked(parts: Iterable[str]) -> tuple[str, ...]:
    """The parts in order, each once.

    Raises:
      UserError: for an unknown one.
    """
    listed = check_list("a list of parts", "parts", parts)
    named = [part for part in listed if not (isinstance(part, str) and _LAYERS.fullmatch(part))]
    check_known("part of a model", named, [*PARTS, *THIRDS, "layers:A-B"])
    if "layers:A-B" in named:
        raise UserError("part 'layers:A-B': give numbers, such as layers:0-9")
    return tuple(sorted(set(listed)))


def _layers_of(config: ModelConfig, part: str) -> range | None:
    """The layers that a part names; None for one of `PARTS`.

    Raises:
      UserError: if the model does not have them.
    """
    if part in THIRDS:
        third = THIRDS.index(part)
        layers = range(third * config.layers // 3, (third + 1) * config.layers // 3)
        if not layers:
            raise UserError(f"part {part!r}: the model has {config.layers} layers; expected 3 or more")
        return layers
    numbers = _LAYERS.fullmatch(part)
    if numbers is None:
        return None
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    if not first <= last < config.layers:
        raise UserError(f"part {part!r}: expected layers within 0-{config.layers - 1}, the lower number first")
    return range(first, last + 1)


def _initial(model: Model, seed: int) -> dict[str, Any]:
    """Path → weight by the decoder's initialisers, with the dtype and the placement of the trained one."""
    decoder = Decoder(model.config)

    def embed_and_decode(decoder: Decoder, tokens_T: Array) -> Array:
        return decoder(decoder.embed(tokens_T))

    def init(key: Array) -> Any:
        made = decoder.init(key, jnp.zeros(1, jnp.int32), method=embed_and_decode)["params"]
        return jax.tree.map(lambda new, old: new.astype(old.dtype), made, shapes)

    trained: dict[str, Any] = flatten_dict(model.params, sep="/")
    weights = ((path, weight_of(model.config, trained, path)) for path in parameter_shapes(model.config))
    kinds = {path: (jax.ShapeDtypeStruct(weight.shape, weight.dtype), weight.sharding) for path, weight in weights}
    shapes, places = (unflatten_dict({path: kind[i] for path, kind in kinds.items()}, sep="/") for i in (0, 1))
    return flatten_dict(jax.jit(init, out_shardings=places)(jax.random.key(seed)), sep="/")


@jax.jit
def _matched(key: Array, weight: Array) -> Array:
    trained = weight.astype(jnp.float32)
    drawn = jnp.mean(trained) + jnp.std(trained) * jax.random.normal(key, weight.shape)
    return drawn.astype(weight.dtype)


@jax.jit
def _permuted(key: Array, weight: Array) -> Array:
    return jax.random.permutation(key, weight.reshape(-1)).reshape(weight.shape)

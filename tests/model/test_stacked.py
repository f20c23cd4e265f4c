"""Layers in a stack: the same numbers as layer by layer, from the file to the fit and back."""

from __future__ import annotations

import dataclasses
import gc
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from family_cases import CASES
from gguf_writing import random_model
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from options import quick_of
from safetensors.numpy import load_file

from onestep_jax import Model, OneStep, UserError, fit, generate, load_model, save_model
from onestep_jax.analysis.knockout import masks
from onestep_jax.cli.parser import main
from onestep_jax.devices.placement import Mesh
from onestep_jax.encoder.design import Design
from onestep_jax.encoder.reading import init_reader, read
from onestep_jax.model import checkpoint
from onestep_jax.model import untrained as module
from onestep_jax.model.config import Layer
from onestep_jax.model.cost import abstract_params
from onestep_jax.model.families import read_config
from onestep_jax.model.stacked import by_layer, is_stacked, period, place_of, rows, stack_layers, stacked_layers
from onestep_jax.model.untrained import KINDS, untrained
from onestep_jax.model.weight_files import stored_arrays

pytestmark = pytest.mark.eight_devices

# What tells families apart in a scan: one kind of layer; sliding and full ones in turn, with layers left over; two
# kinds; projected input vectors; no two layers alike.
DEEP: dict[str, tuple[str, str, dict[str, Any]]] = {
    "one kind": ("llama", "grouped, tied", {"num_hidden_layers": 5}),
    "pattern and rest": ("gemma3_text", "windows by pattern", {"num_hidden_layers": 7}),
    "two kinds": ("gpt_neo", "global and local", {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}),
    "projected": ("opt", "350m: projected, norm after", {"num_hidden_layers": 3}),
    "all different": ("gpt2", "scores scaled by layer", {"n_layer": 3}),
}


def described(name: str) -> dict[str, Any]:
    model_type, case, deeper = DEEP[name]
    return {"model_type": model_type} | CASES[model_type][case] | deeper


@pytest.fixture(scope="module", params=quick_of([name for name in DEEP if name != "all different"], 0, 1))
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """A random model by layer, and stacked."""
    model = random_model(described(request.param))
    model = dataclasses.replace(model, params=jax.tree.map(jnp.asarray, model.params))
    return model, dataclasses.replace(model, params=stack_layers(model.config, model.params))


@pytest.mark.parametrize(
    ("name", "kinds", "stacked", "left"),
    [
        ("one kind", 1, 5, []),
        ("pattern and rest", 3, 6, ["block_6"]),
        ("two kinds", 2, 4, []),
        ("projected", 1, 3, []),
        ("all different", 3, 0, ["block_0", "block_1", "block_2"]),
    ],
)
def test_what_is_stacked(name, kinds, stacked, left):
    config = read_config(described(name))[1]
    assert (period(config), stacked_layers(config)) == (kinds, stacked)
    params = abstract_params(config, jnp.float32, stacked=True)
    assert sorted(key for key in params if key.startswith("block_")) == left
    assert is_stacked(params) == (stacked > 0)
    if stacked:
        stack = params["stack"]
        assert sorted(stack) == [f"block_{j}" for j in range(kinds)]
        assert {leaf.shape[0] for leaf in jax.tree.leaves(stack)} == {rows(config)} == {stacked // kinds}


def test_kinds_that_repeat_in_a_longer_list():
    """Families that name every layer have a pattern as long as the model."""
    config = read_config(described("one kind"))[1]
    a, b = Layer(window=3), Layer()
    listed = dataclasses.replace(config, layers=8, pattern=(a, a, b, a, a, b, a, a))
    assert (period(listed), rows(listed)) == (3, 2)
    assert place_of(listed, "block_4/mlp/up/kernel") == ("stack/block_1/mlp/up/kernel", 1)
    assert place_of(listed, "block_6/mlp/up/kernel") == ("block_6/mlp/up/kernel", None)
    assert place_of(listed, "embed/embedding") == ("embed/embedding", None)


def test_the_layouts_are_turned_into_each_other(pair):
    model, stacked = pair
    again = by_layer(model.config, stacked.params)
    assert jax.tree.structure(again) == jax.tree.structure(model.params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, model.params)))
    assert by_layer(model.config, model.params) == model.params


def test_forward_and_backward_are_the_same(pair):
    x_TD = jax.random.normal(jax.random.key(0), (9, pair[0].embed_width))

    @partial(jax.jit, static_argnums=0)
    def passes(network: Any, params: Any, x_TD: Any) -> Any:
        out, back = jax.vjp(lambda x_TD: network.apply(params, x_TD), x_TD)
        return out, back(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    plain = passes(pair[0].network, pair[0].params, x_TD)
    for remat in (False, True):
        network = dataclasses.replace(pair[1].network, remat=remat)
        for ours, theirs in zip(passes(network, pair[1].params, x_TD), plain, strict=True):
            assert_close(ours, theirs)


def test_states_are_in_the_order_of_the_layers(pair):
    x_TD = jax.random.normal(jax.random.key(1), (6, pair[0].embed_width))
    plain, stacked = (jax.jit(model.states)(model.params, x_TD) for model in pair)
    assert plain.hidden_LTD.shape[0] == pair[0].config.layers + 1
    assert_close(stacked.hidden_LTD, plain.hidden_LTD)
    assert_close(stacked.attention_LHTS, plain.attention_LHTS)


@pytest.mark.long
def test_a_prefix_and_a_mask_go_with_it(pair):
    config, x_TD = pair[0].config, jax.random.normal(jax.random.key(2), (5, pair[0].embed_width))

    def hidden(model: Model) -> Any:
        past = model.past(model.params, jnp.array([3, 4]))
        seen = masks(np.arange(config.layers) % 2 == 0, 5, past, "e")
        return model.hidden(model.params, x_TD, past), model.hidden(model.params, x_TD, past, masks=seen)

    plain, stacked = map(hidden, pair)
    assert not np.allclose(plain[0], plain[1])
    for ours, theirs in zip(stacked, plain, strict=True):
        assert_close(ours, theirs)


@pytest.mark.long
@pytest.mark.parametrize("reader", ["copy", "lora"])
def test_a_reader_of_texts_is_the_same(reader):
    model = random_model(described("pattern and rest"))
    stacked = dataclasses.replace(model, params=stack_layers(model.config, model.params))
    design = Design(length=4, reader=reader)
    weights = [init_reader(one.network, design, one.params, jax.random.key(0)) for one in (model, stacked)]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *weights)))
    drawn = jax.tree.map(lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), weights[0])
    plain, ours = (read(one.network, design, one.params, drawn, jnp.array([5, 6, 7])) for one in (model, stacked))
    assert_close(ours, plain)


@pytest.mark.long
@pytest.mark.parametrize("pair", ["pattern and rest"], indirect=True)
def test_generation_is_the_same(pair):
    prompts = [[3, 4, 5], [6]]
    plain, stacked = ([one.tokens.tolist() for one in generate(model, prompts, count=5)] for model in pair)
    assert stacked == plain


@pytest.mark.long
@pytest.mark.parametrize("kind", ["permuted", "init"])
@pytest.mark.parametrize("pair", ["pattern and rest"], indirect=True)
def test_random_weights_are_the_same(pair, kind):
    plain, stacked = (untrained(model, 1, kind=kind) for model in pair)
    assert is_stacked(stacked.params)
    assert stacked.fingerprint == plain.fingerprint
    again = by_layer(plain.config, stacked.params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, plain.params)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pair", ["pattern and rest", "projected"], indirect=True)
def test_files_are_read_into_the_stack_and_written_back(pair, tmp_path, dtype):
    save_model(pair[0], tmp_path / "model")
    plain, stacked = (load_model(tmp_path / "model", dtype=dtype, scan_layers=scan) for scan in (False, True))
    assert stacked.fingerprint == plain.fingerprint
    wanted = stack_layers(plain.config, plain.params)
    assert jax.tree.structure(stacked.params) == jax.tree.structure(wanted)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, stacked.params, wanted)))
    save_model(stacked, tmp_path / "again")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert before.keys() == after.keys()
    if dtype == "float32":
        assert all(np.array_equal(after[name], before[name]) for name in before)


def live_bytes() -> int:
    """Of all arrays; what other tests have left in cycles is collected once, by `deep`, as that takes a second."""
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.fixture(scope="module")
def deep() -> Model:
    """A stacked model of sixteen layers, whose tables are small beside them."""
    model = random_model(described("one kind") | {"num_hidden_layers": 16, "vocab_size": 8})
    gc.collect()
    return dataclasses.replace(model, params=jax.tree.map(jnp.asarray, stack_layers(model.config, model.params)))


def test_saving_fetches_a_weight_at_a_time(deep):
    held, largest = live_bytes(), max(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(deep.params["stack"]))
    assert max(live_bytes() - held for _ in stored_arrays(deep)) <= 2 * largest


@pytest.mark.parametrize("kind", quick_of(KINDS, 1, 2))
def test_random_weights_take_the_place_of_one_more_model(deep, kind, monkeypatch):
    """They are drawn one after another and written into the new stacks; of "init", into the place of those drawn."""
    leaves, seen = [leaf.nbytes for leaf in jax.tree.leaves(deep.params)], []

    def watched(name: str) -> None:
        kept = getattr(module, name)

        def watch(*given: Any) -> Any:
            seen.append(live_bytes() - held)
            return kept(*given)

        monkeypatch.setattr(module, name, watch)

    watched({"init": "row_writer"}.get(kind, f"_{kind}"))
    held = live_bytes()
    made = untrained(deep, kind=kind)
    assert live_bytes() - held < 1.01 * sum(leaves)
    assert max(seen) < sum(leaves) + 2 * max(leaves)
    assert len(seen) >= 7 * 16
    again = untrained(plain_of(deep), kind=kind).params
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, by_layer(made.config, made.params), again)))


def plain_of(model: Model) -> Model:
    return dataclasses.replace(model, params=by_layer(model.config, model.params))


def test_a_mesh_splits_the_stack_as_it_splits_a_layer(tiny, tmp_path):
    save_model(tiny, tmp_path)
    mesh = Mesh(jax.local_devices(), 2)
    model = load_model(tmp_path, dtype="float32", scan_layers=True, mesh=mesh.mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, model.params["stack"]["block_0"])
    assert places["attention"]["q"]["kernel"] == NamedSharding(mesh.mesh, P(None, "model"))
    assert places["mlp"]["down"]["kernel"] == NamedSharding(mesh.mesh, P(None, None, "model"))
    assert places["norm_1"]["scale"] == NamedSharding(mesh.mesh, P())
    parts = model.params["stack"]["block_0"]["mlp"]["up"]["kernel"].addressable_shards
    assert {part.data.shape for part in parts} == {(2, 24, 32)}


@pytest.mark.long
def test_a_fit_on_a_mesh_is_the_same(tiny, token_lists):
    stacked = dataclasses.replace(tiny, params=stack_layers(tiny.config, tiny.params))
    options: dict[str, Any] = {"steps": 5, "seeds": 1, "slots": 4, "scheme": OneStep(prefix=(1, 2))}
    plain = fit(tiny, token_lists[:4], **options)
    ours = fit(stacked, token_lists[:4], placement=Mesh(model_axis=2), **options)
    np.testing.assert_allclose([text.loss for text in ours], [text.loss for text in plain], rtol=1e-4)


def test_it_is_chosen_by_the_device(tmp_path: Path, monkeypatch, tiny):
    save_model(tiny, tmp_path)
    assert not is_stacked(load_model(tmp_path).params)
    monkeypatch.setattr(checkpoint, "default_scan", lambda: True)
    assert is_stacked(load_model(tmp_path).params)
    assert not is_stacked(load_model(tmp_path, scan_layers=False).params)


def test_another_word_is_refused(capsys, tmp_path):
    with pytest.raises(UserError, match="scan_layers"):
        load_model(scan_layers="on")  # pyright: ignore[reportArgumentType]
    options = ["--texts", "demo", "--length", "4", "--run", str(tmp_path / "run")]
    assert main(["fit", *options, "--scan-layers", "yes"]) == 2
    assert "--scan-layers" in capsys.readouterr().err

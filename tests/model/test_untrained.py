"""Untrained models: what is kept of the trained weights, what is not, and that they are told apart."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from onestep_jax import Model, UserError, decode, fit
from onestep_jax.model.checkpoint import save_model
from onestep_jax.model.untrained import KINDS, load_untrained, untrained


def leaves(model: Model) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(model.params, sep="/").items()}


@pytest.fixture(scope="module")
def trained(tiny: Model) -> Model:
    """The tiny model with norm scales that are not all one, and an embedding table off centre."""

    def change(path, leaf):
        if path[-1].key == "scale":
            return 1 + jnp.arange(leaf.size) / leaf.size
        return leaf + 0.5 if path[-1].key == "embedding" else leaf

    return dataclasses.replace(tiny, params=jax.tree_util.tree_map_with_path(change, tiny.params))


@pytest.mark.parametrize("kind", KINDS)
def test_same_shapes_new_weights_same_seed(trained: Model, kind: str):
    before, one = leaves(trained), leaves(untrained(trained, 3, kind=kind))
    again, other = leaves(untrained(trained, 3, kind=kind)), leaves(untrained(trained, 4, kind=kind))
    assert one.keys() == before.keys()
    for path, leaf in one.items():
        assert (leaf.shape, leaf.dtype) == (before[path].shape, before[path].dtype)
        np.testing.assert_array_equal(leaf, again[path])
        assert not np.array_equal(leaf, before[path])
        if not (kind == "init" and path.endswith("scale")):
            assert not np.array_equal(leaf, other[path])


def test_permuted_keeps_every_entry_and_no_order(trained: Model):
    before, after = leaves(trained), leaves(untrained(trained, 0, kind="permuted"))
    for path, leaf in after.items():
        np.testing.assert_array_equal(np.sort(leaf, axis=None), np.sort(before[path], axis=None))
        if leaf.ndim == 2:  # entries leave their rows: a permutation of whole rows would keep their sums
            assert not np.allclose(np.sort(leaf.sum(1)), np.sort(before[path].sum(1)))
            assert abs(np.corrcoef(leaf.ravel(), before[path].ravel())[0, 1]) < 0.1


def test_tensors_of_one_shape_are_drawn_apart(tiny: Model):
    alike = jax.tree.map(lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape), tiny.params)
    for kind in KINDS:
        params = untrained(dataclasses.replace(tiny, params=alike), 0, kind=kind).params
        kernels = [params[f"block_{i}"]["attention"][name]["kernel"] for i in range(2) for name in "kv"]
        assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 4


def test_matched_keeps_mean_and_deviation(trained: Model):
    before, after = leaves(trained), leaves(untrained(trained, 0, kind="matched"))
    for path, leaf in after.items():
        error = before[path].std() / np.sqrt(leaf.size)
        assert abs(leaf.mean() - before[path].mean()) < 5 * error
        assert leaf.std() == pytest.approx(before[path].std(), rel=5 / np.sqrt(2 * leaf.size))


def test_init_forgets_the_checkpoint(trained: Model):
    after = untrained(trained, 0, kind="init")
    assert np.asarray(after.params["embed"]["embedding"]).std() == pytest.approx(0.02, rel=0.1)
    assert (np.asarray(after.params["norm"]["scale"]) == 1).all()
    other = dataclasses.replace(trained, params=jax.tree.map(lambda x: x + 1, trained.params))
    for path, leaf in leaves(untrained(other, 0, kind="init")).items():
        np.testing.assert_array_equal(leaf, leaves(after)[path])


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_kept_on_request(trained: Model, kind: str):
    before, after = leaves(trained), leaves(untrained(trained, 0, kind=kind, keep_norms=True))
    kept = {path for path, leaf in after.items() if np.array_equal(leaf, before[path])}
    assert kept == {path for path in before if path.endswith("scale")}
    assert len(kept) == 5


def test_identity(trained: Model):
    models = [untrained(trained, seed, kind=kind, keep_norms=k) for kind in KINDS for seed in (0, 1) for k in (0, 1)]
    models += [untrained(dataclasses.replace(trained, fingerprint="f" * 16), 0), trained]
    assert len({model.fingerprint for model in models}) == len(models)
    assert all(len(model.fingerprint) == 16 for model in models)
    assert len({model.source for model in models}) == len(models) - 1
    assert models[0].config == trained.config


def test_bfloat16_stays(trained: Model):
    half = dataclasses.replace(trained, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained.params))
    for kind in KINDS:
        assert {leaf.dtype for leaf in jax.tree.leaves(untrained(half, 0, kind=kind).params)} == {jnp.dtype("bfloat16")}


def test_a_fit_on_it_belongs_to_it_alone(tiny: Model, one_device, token_lists):
    control = untrained(tiny, 1, kind="permuted")
    results = fit(control, token_lists[:2], steps=5, placement=one_device)
    assert results.model == control.fingerprint
    assert [text.accuracy for text in decode(control, results)] == results.accuracy.tolist()
    with pytest.raises(UserError, match="untrained:permuted:1:tiny"):
        decode(tiny, results)
    with pytest.raises(UserError, match="belong to model"):
        decode(untrained(tiny, 2, kind="permuted"), results)


def test_load_by_source(tiny: Model, tmp_path):
    save_model(tiny, tmp_path)
    model = load_untrained(f"untrained:matched+norms:7:{tmp_path}", dtype="float32")
    expected = untrained(tiny, 7, kind="matched", keep_norms=True)
    assert model.source == f"untrained:matched+norms:7:{tmp_path}"
    for path, leaf in leaves(model).items():
        np.testing.assert_array_equal(leaf, leaves(expected)[path])


@pytest.mark.parametrize("source", ["default", "untrained:permuted:default", "untrained:permuted:x:default"])
def test_bad_sources(source: str):
    with pytest.raises(UserError, match="untrained:KIND:SEED:SOURCE"):
        load_untrained(source)


def test_refusals(tiny: Model):
    with pytest.raises(UserError, match="did you mean 'permuted'"):
        untrained(tiny, kind="permutated")
    with pytest.raises(UserError, match="at least 0"):
        untrained(tiny, -1)
    with pytest.raises(UserError, match="did you mean 'matched'"):
        load_untrained("untrained:match:0:default")

"""Untrained models: what is kept of the trained weights, what is not, and that they are told apart."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import GOLDEN, GOLDEN_FOLDER
from flax.traverse_util import flatten_dict

from onestep_jax import Model, UserError, decode, fit, read_results
from onestep_jax.cli.parser import main
from onestep_jax.model.checkpoint import load_model, save_model
from onestep_jax.model.untrained import KINDS, PARTS, THIRDS, Untrained, load_untrained, paths_of, untrained


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


def test_names_of_before_there_were_parts(trained: Model):
    """A run on a wholly untrained model is that of an older version."""
    assert untrained(trained, 3).fingerprint == "ffda1dfbb771d2df"
    assert untrained(trained, 3, kind="init", keep_norms=True).fingerprint == "1e924154ef7a0663"
    assert untrained(trained, 3).source == "untrained:permuted:3:tiny"


@pytest.mark.long
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


# Parts


SOME = ("mistral", "gpt2", "opt_350m")  # untied, tied, tied behind a projection


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in SOME else pytest.mark.long) for name in GOLDEN],
)
def family(request: pytest.FixtureRequest) -> Model:
    """A tiny checkpoint of a family."""
    return load_model(GOLDEN_FOLDER / request.param, dtype="float32")


def head_of(weights: dict[str, np.ndarray]) -> np.ndarray:
    return weights.get("head/kernel", weights["embed/embedding"])


def logits(model: Model, x_TD: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)(model.params, x_TD))


def test_each_weight_is_of_one_part(family: Model):
    config = dataclasses.replace(family.config, tied=False)
    for c in (config, family.config):
        parts = [paths_of(c, part) - ({"embed/embedding"} if part == "head" else set()) for part in PARTS]
        assert sum(map(len, parts)) == len(frozenset().union(*parts))
        assert ("embed/embedding" in paths_of(c, "head")) == c.tied
    assert frozenset().union(*parts) == set(leaves(family))
    blocks = [paths_of(config, f"layers:{i}") for i in range(config.layers)]
    assert frozenset().union(*blocks) == paths_of(config, f"layers:0-{config.layers - 1}")
    assert frozenset().union(*blocks) == {path for path in leaves(family) if path.startswith("block_")}
    assert {path for path in paths_of(config, "attention") if path.startswith("block_0/attention/")} < blocks[0]


@pytest.mark.parametrize("part", [*PARTS, "layers:1", "attention+mlp", "embeddings+head"])
def test_the_rest_stays_to_the_last_bit(family: Model, part: str):
    parts = part.split("+")
    made = untrained(family, 1, kind="matched", parts=parts)
    before, after, whole = (leaves(one) for one in (family, made, untrained(family, 1, kind="matched")))
    replaced = frozenset().union(*(paths_of(made.config, one) for one in parts))
    assert made.config.tied == (family.config.tied and part not in ("embeddings", "head"))
    assert after.keys() == before.keys() | ({"head/kernel"} if not made.config.tied else set())
    for path, leaf in after.items():
        trained_leaf = before[path] if path in before else head_of(before)
        if path not in replaced:
            assert leaf.tobytes() == trained_leaf.tobytes(), path
            continue
        assert not np.array_equal(leaf, trained_leaf), path
        assert path not in whole or leaf.tobytes() == whole[path].tobytes(), path
    tokens = np.arange(9) % family.config.vocab_size
    x_TD, x_new_TD = (np.asarray(one.embed(one.params, tokens)) for one in (family, made))
    assert np.array_equal(x_TD, x_new_TD) == ("embeddings" not in parts)
    assert not np.array_equal(logits(made, x_new_TD), logits(family, x_TD))


def test_a_tied_table_is_two_after_one_of_its_parts_is_replaced(family: Model):
    """What reads no table of input vectors gives the same logits, though head and table are no longer one."""
    made = untrained(family, 0, parts=["embeddings"])
    x_TD = np.random.default_rng(0).normal(size=(7, family.embed_width)).astype(np.float32)
    params = made.params | {name: family.params[name] for name in ("positions", "project_in") if name in family.params}
    assert logits(dataclasses.replace(made, params=params), x_TD).tobytes() == logits(family, x_TD).tobytes()
    only_head = untrained(family, 0, parts=["head"])
    assert not np.array_equal(leaves(only_head)["head/kernel"], head_of(leaves(family)))
    assert not only_head.config.tied
    assert not made.described["tie_word_embeddings"]


@pytest.mark.parametrize("part", ["embeddings", "head", "mlp"])
def test_a_part_is_written_and_read_back(family: Model, part: str, tmp_path):
    made = untrained(family, 2, parts=[part])
    save_model(made, tmp_path)
    again = load_model(tmp_path, dtype="float32", tokenizer=False)
    assert again.config == made.config
    for path, leaf in leaves(again).items():
        assert leaf.tobytes() == leaves(made)[path].tobytes(), path


def test_thirds_are_all_layers_each_once(tiny: Model):
    for count in (3, 8, 30):
        config = dataclasses.replace(tiny.config, layers=count)
        thirds = [paths_of(config, third) for third in THIRDS]
        assert sum(map(len, thirds)) == len(paths_of(config, f"layers:0-{count - 1}"))
        assert "block_0/attention/q/kernel" in thirds[0]
        assert f"block_{count - 1}/mlp/up/kernel" in thirds[2]
    assert paths_of(config, "first third") == paths_of(config, "layers:0-9")
    assert paths_of(config, "middle third") == paths_of(config, "layers:10-19")


def test_norms_of_a_part_are_kept_on_request(trained: Model):
    before, after = leaves(trained), leaves(untrained(trained, 0, keep_norms=True, parts=["mlp", "layers:1"]))
    assert {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])} == {
        f"block_{i}/{module}/kernel"
        for i, modules in enumerate(("mlp", "mlp attention"))
        for module in (
            f"{one}/{name}" for one in modules.split() for name in {"mlp": ("gate", "up", "down")}.get(one, "qkvo")
        )
    }


def test_identity_of_parts(trained: Model):
    chosen = [[], ["mlp"], ["attention"], ["attention", "mlp"], ["layers:0"], ["layers:1"], ["layers:0-1"]]
    models = [untrained(trained, 0, parts=parts) for parts in chosen]
    assert len({model.fingerprint for model in models}) == len({model.source for model in models}) == len(chosen)
    twice = untrained(trained, 0, parts=["mlp", "attention", "mlp"])
    assert (twice.fingerprint, twice.source) == (models[3].fingerprint, "untrained:permuted@attention+mlp:0:tiny")


@pytest.mark.parametrize(
    ("said", "parts"), [("mlp", ["mlp"]), ("layers:0-1", ["layers:0-1"]), ("layers:1+head", ["layers:1", "head"])]
)
def test_load_parts_by_source(tiny: Model, tmp_path, said: str, parts: list[str]):
    save_model(tiny, tmp_path)
    model = load_untrained(f"untrained:matched+norms@{said}:7:{tmp_path}", dtype="float32")
    expected = untrained(tiny, 7, kind="matched", keep_norms=True, parts=parts)
    assert model.source == expected.source.removesuffix("tiny") + str(tmp_path)
    assert load_untrained(model.source, dtype="float32").fingerprint == model.fingerprint
    for path, leaf in leaves(model).items():
        np.testing.assert_array_equal(leaf, leaves(expected)[path])


def test_what_a_source_says(tiny: Model):
    assert Untrained.parse("untrained:init:5:org/name") == ("init", False, (), 5, "org/name")
    asked = Untrained.parse("untrained:init+norms@first third+layers:3:12:C:/folder")
    assert asked == ("init", True, ("first third", "layers:3"), 12, "C:/folder")
    tied = dataclasses.replace(tiny.config, tied=True)
    assert [
        Untrained.parse(f"untrained:init@{p}:0:x").config(tied).tied for p in ("head", "mlp", "embeddings+head")
    ] == [
        False,
        True,
        True,
    ]
    assert Untrained.parse("untrained:init@head:0:x").config(tiny.config) == tiny.config


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["attentoin"], "unknown part of a model 'attentoin'.*did you mean 'attention'"),
        (["layers:0-2"], "'layers:0-2': expected layers within 0-1"),
        (["layers:1-0"], "'layers:1-0': expected layers within 0-1"),
        (["last layer"], "known: .*layers:A-B"),
        (["layers:A-B"], "give numbers, such as layers:0-9"),
        (["first third"], "'first third': the model has 2 layers; expected 3 or more"),
        ("mlp", "a list of parts"),
        ([3], "part of a model 3: expected a name"),
    ],
)
def test_refused_parts(tiny: Model, parts, message):
    with pytest.raises(UserError, match=message):
        untrained(tiny, parts=parts)


@pytest.mark.long
def test_a_command_fits_and_verifies_on_a_part(tiny_folder, tmp_path):
    (tmp_path / "texts.txt").write_text("w3 w5 w8 w13\n")
    run = str(tmp_path / "run")
    source = f"untrained:permuted@embeddings+layers:0:1:{tiny_folder}"
    texts = ["--texts", str(tmp_path / "texts.txt"), "--split", "lines"]
    assert main(["fit", "--model", source, *texts, "--run", run, "--length", "4", "--steps", "3"]) == 0
    results = read_results(run)
    assert (results.source, results.model) == (source, load_untrained(source).fingerprint)
    assert main(["verify", run]) == 0

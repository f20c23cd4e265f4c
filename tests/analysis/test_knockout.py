"""Attention knockout: nothing hidden is a decode, hidden everywhere is unseen, and in between a masked pass by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from family_cases import CASES, GOLDEN, GOLDEN_FOLDER
from options import quick_of

from onestep_jax import Model, OneStep, Results, UserError, decode, fit, load_model
from onestep_jax.analysis import knockout as module
from onestep_jax.analysis.knockout import HIDDEN, WAYS, knockout, layer_sets, masks
from onestep_jax.model.config import Layer, Rope

LENGTHS = (8, 5, 1, 8, 3)
SOME = ("llama", "gemma2")  # grouped heads; windows and soft caps
P, T = 3, 9


@pytest.fixture(scope="module", params=quick_of(["one-step, own prefixes", "unguided-e, prefix", "one-step"]))
def results(request: pytest.FixtureRequest, tiny: Model, one_device, token_lists) -> Results:
    """Five texts of different lengths, not all solved."""
    arrangement, _, more = request.param.partition(", ")
    texts = [ids[:length] for ids, length in zip(token_lists, LENGTHS, strict=False)]
    scheme = OneStep(arrangement, prefix=(7, 3) if more == "prefix" else None)
    own = {"prefixes": [[4], [9, 1, 5], [2], [8, 8], [6]]} if more == "own prefixes" else {}
    return fit(tiny, texts, steps=150, scheme=scheme, placement=one_device, slots=8, seeds=1, **own)


def reference(model: Model, x_TD: np.ndarray, seen_LTS: np.ndarray) -> np.ndarray:
    """Logits (T, V) of a Llama whose layer l lets query t see the rows of seen_LTS[l, t], written out in float64."""
    c, params = model.config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)

    def norm(x_TD, weights):
        return x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + c.norm_eps) * weights["scale"]

    def turned(x_HTC):
        half = c.head_dim // 2
        angles = np.arange(x_HTC.shape[1])[:, None] * 10000.0 ** -(np.arange(half) / half)
        first, second = x_HTC[..., :half], x_HTC[..., half:]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], -1
        )

    x_TD = x_TD.astype(np.float64)
    for i in range(c.layers):
        block = params[f"block_{i}"]
        h_TD, made = norm(x_TD, block["norm_1"]), {}
        for name, count in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
            made[name] = (h_TD @ block["attention"][name]["kernel"].T).reshape(len(x_TD), count, -1).swapaxes(0, 1)
        q_HTC, k_KTC = turned(made["q"]), turned(made["k"])
        out = []
        for head in range(c.heads):
            shared = head * c.kv_heads // c.heads
            scores_TS = q_HTC[head] @ k_KTC[shared].T / np.sqrt(c.head_dim)
            weights_TS = np.exp(scores_TS - scores_TS.max()) * seen_LTS[i]
            out.append(weights_TS / weights_TS.sum(-1, keepdims=True) @ made["v"][shared])
        x_TD = x_TD + np.concatenate(out, -1) @ block["attention"]["o"]["kernel"].T
        h_TD = norm(x_TD, block["norm_2"])
        gate_TF, up_TF = (h_TD @ block["mlp"][name]["kernel"].T for name in ("gate", "up"))
        x_TD = x_TD + gate_TF / (1 + np.exp(-gate_TF)) * up_TF @ block["mlp"]["down"]["kernel"].T
    return norm(x_TD, params["norm"]) @ params["head"]["kernel"].T


def seen_by_hand(layers: int, chosen, prefix: int, positions: int, hidden: str, window: int | None = None) -> Any:
    """(L, P + T, P + T), whether a layer lets a query see a row; e stands at row P."""
    seen = np.zeros((layers, prefix + positions, prefix + positions), bool)
    for layer in range(layers):
        for t in range(prefix + positions):
            for s in range(t + 1):
                is_m = t > prefix
                lost = s == prefix if hidden == "e" else prefix < s < t
                far = window is not None and t - s >= window
                seen[layer, t, s] = not far and not (layer in chosen and is_m and lost)
    return seen


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("chosen", [(), (0,), (1,), (0, 1)], ids=str)
def test_against_a_masked_pass_written_out(tiny: Model, results: Results, chosen, hidden: str):
    found = knockout(tiny, results, [chosen], hidden=hidden)
    extra = results.scheme["arrangement"] == "unguided-e"
    for i, text in enumerate(results):
        before = np.asarray(tiny.embed(tiny.params, jnp.asarray(text.prefix, jnp.int32)))
        e_and_m = [text.vectors["e"], *[text.vectors["m"]] * (len(text.tokens) - 1 + extra)]
        seen = seen_by_hand(2, chosen, len(before), len(e_and_m), hidden)
        logits_TV = reference(tiny, np.stack([*before, *e_and_m]), seen)[-len(text.tokens) :]
        assert found.accuracy_SG[0, i] == np.mean(logits_TV.argmax(-1) == text.tokens)
        logits_TV -= logits_TV.max(-1, keepdims=True)
        nats = np.log(np.exp(logits_TV).sum(-1)) - logits_TV[np.arange(len(text.tokens)), text.tokens]
        assert found.nats_SG[0, i] == pytest.approx(nats.mean(), rel=1e-4)


def test_hiding_nothing_is_a_decode(tiny: Model, results: Results):
    kept = [text.accuracy for text in decode(tiny, results)]
    for hidden in HIDDEN:
        found = knockout(tiny, results, [(), (0, 1)], hidden=hidden)
        assert found.accuracy_SG.shape == found.nats_SG.shape == (2, len(results))
        assert found.accuracy_SG[0].tolist() == kept
    assert found.accuracy_SG[0].mean() > found.accuracy_SG[1].mean()
    assert (found.nats_SG[1] != found.nats_SG[0]).sum() >= 3


def test_sets_batches_and_programs(tiny: Model, results: Results):
    """Sets do not depend on one another, nor texts on their batch; one program serves all sets."""
    sets = layer_sets(2, "one") + layer_sets(2, "from")
    before = module._scores._cache_size()
    whole = knockout(tiny, results, sets)
    assert module._scores._cache_size() - before <= len({len(text.tokens) for text in results})
    for i, one in enumerate(sets):
        np.testing.assert_allclose(knockout(tiny, results, [one], batch=2).nats_SG[0], whole.nats_SG[i], rtol=1e-5)
    again = knockout(tiny, dataclasses.replace(results, texts=results.texts[::-1]), sets)
    np.testing.assert_allclose(again.nats_SG[:, ::-1], whole.nats_SG, rtol=1e-5)
    np.testing.assert_array_equal(again.accuracy_SG[:, ::-1], whole.accuracy_SG)


def hidden_states(model: Model, x_TD: np.ndarray, chosen, *, prefix: bool, hidden: str = "e") -> np.ndarray:
    """(T, D) behind a prefix of P tokens, padded by two, or behind none."""
    chosen_L = np.isin(np.arange(model.config.layers), list(chosen))

    def run(params, x_TD, chosen_L):
        tokens = jnp.asarray([5, 1, 7, 0, 0])
        past = model.past(params, tokens, jnp.int32(P)) if prefix else None
        return model.hidden(params, x_TD, past, masks=masks(chosen_L, len(x_TD), past, hidden))

    return np.asarray(jax.jit(run)(model.params, x_TD, chosen_L))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in SOME else pytest.mark.long) for name in GOLDEN],
)
def family(request: pytest.FixtureRequest) -> Model:
    return load_model(GOLDEN_FOLDER / request.param, dtype="float32")


@pytest.mark.parametrize("prefix", quick_of([True, False]))
def test_hidden_in_all_layers_e_changes_no_other_row(family: Model, prefix: bool):
    generator = np.random.default_rng(0)
    x_TD = generator.normal(size=(T, family.embed_width)).astype(np.float32)
    y_TD = np.concatenate([generator.normal(size=(1, family.embed_width)).astype(np.float32), x_TD[1:]])
    layers = range(family.config.layers)
    one, other = (hidden_states(family, x, layers, prefix=prefix) for x in (x_TD, y_TD))
    assert one[1:].tobytes() == other[1:].tobytes()
    assert not np.array_equal(one[0], other[0])
    for left in layers:
        shown, changed = (hidden_states(family, x, {*layers} - {left}, prefix=prefix) for x in (x_TD, y_TD))
        assert (shown[1:] != changed[1:]).any()
    # and the row of e itself is what it was
    kept = hidden_states(family, x_TD, (), prefix=prefix)
    assert one[0].tobytes() == kept[0].tobytes()
    past = family.past(family.params, jnp.asarray([5, 1, 7])) if prefix else None
    assert_close(kept, jax.jit(family.hidden)(family.params, x_TD, past))


@pytest.mark.parametrize("prefix", [False, True])
def test_hidden_in_all_layers_an_m_sees_no_earlier_one(tiny: Model, prefix: bool):
    """Row t is then a function of the prefix, e and its own input."""
    x_TD = np.random.default_rng(1).normal(size=(T, 32)).astype(np.float32)
    whole = hidden_states(tiny, x_TD, (0, 1), prefix=prefix, hidden="m")
    y_TD = x_TD.copy()
    y_TD[1 : T - 1] += 1
    changed = hidden_states(tiny, y_TD, (0, 1), prefix=prefix, hidden="m")
    assert whole[[0, -1]].tobytes() == changed[[0, -1]].tobytes()
    y_TD = x_TD.copy()
    y_TD[0] += 1
    assert (hidden_states(tiny, y_TD, (0, 1), prefix=prefix, hidden="m")[1:] != whole[1:]).any(-1).all()


def test_beyond_a_window_there_is_nothing_to_hide(tiny: Model):
    pattern = (Layer(Rope(), window=3), Layer(Rope()))
    model = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, pattern=pattern))
    x_TD = np.random.default_rng(2).normal(size=(T, 32)).astype(np.float32)
    kept, first = (hidden_states(model, x_TD, chosen, prefix=False) for chosen in ((), (0,)))
    np.testing.assert_array_equal(first[0], kept[0])
    assert (first[1:3] != kept[1:3]).any(-1).all()
    seen = seen_by_hand(2, (0,), 0, T, "e")
    seen[0] &= seen_by_hand(1, (), 0, T, "e", window=3)[0]
    assert_close(model.head(model.params, jnp.asarray(first)), reference(model, x_TD, seen))


def test_a_fused_kernel_gives_way(tiny: Model):
    """It cannot hide anything, and runs on no CPU."""
    fused = dataclasses.replace(tiny, attention="cudnn")
    x_TD = np.random.default_rng(3).normal(size=(T, 32)).astype(np.float32)
    plain, made = (hidden_states(model, x_TD, (1,), prefix=False) for model in (tiny, fused))
    assert made.tobytes() == plain.tobytes()


def test_sets_of_a_sweep():
    assert [list(one) for one in layer_sets(3, "one")] == [[0], [1], [2]]
    assert [list(one) for one in layer_sets(4, "window", 3)] == [[0, 1, 2], [1, 2, 3]]
    assert [list(one) for one in layer_sets(3, "up to")] == [[0], [0, 1], [0, 1, 2]]
    assert [list(one) for one in layer_sets(3, "from")] == [[0, 1, 2], [1, 2], [2]]
    for way in WAYS:
        assert {layer for one in layer_sets(5, way, 2) for layer in one} == set(range(5))


def test_refusals(tiny: Model, results: Results):
    with pytest.raises(UserError, match="layer 2: the model has 2 layers, 0 to 1"):
        knockout(tiny, results, [(0,), (2,)])
    with pytest.raises(UserError, match="layer -1"):
        knockout(tiny, results, [(-1,)])
    with pytest.raises(UserError, match="unknown what is hidden 'n'"):
        knockout(tiny, results, [(0,)], hidden="n")
    with pytest.raises(UserError, match="belong to model"):
        knockout(dataclasses.replace(tiny, fingerprint="f" * 16), results, [(0,)])
    with pytest.raises(UserError, match="'halves'"):
        knockout(tiny, dataclasses.replace(results, scheme={"arrangement": "halves"}), [(0,)])
    with pytest.raises(UserError, match="did you mean 'window'"):
        layer_sets(3, "windows")
    with pytest.raises(UserError, match="a window of 4 layers: expected 1 to 3"):
        layer_sets(3, "window", 4)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model_type", "case"), [(name, case) for name, cases in CASES.items() for case in list(cases)[:2]]
)
def test_every_family_against_transformers(model_type: str, case: str, tmp_path, monkeypatch):
    """Scores of the chosen layers get −∞ where transformers takes their softmax, once a layer."""
    torch = pytest.importorskip("torch")
    import parity

    theirs = parity.build(model_type, CASES[model_type][case])
    ours = load_model(parity.save(theirs, tmp_path), dtype="float32", tokenizer=False)
    x_TD = np.random.default_rng(4).normal(size=(T, ours.embed_width)).astype(np.float32)
    layers, softmax = ours.config.layers, torch.nn.functional.softmax
    for chosen in ((0,), (layers - 1,), tuple(range(layers))):
        calls: list[int] = []

        def masked(scores, *args, calls=calls, chosen=chosen, **kwargs):
            if len(calls) in chosen:
                scores = scores.clone()
                scores[:, :, 1:, 0] = -torch.inf
            calls.append(1)
            return softmax(scores, *args, **kwargs)

        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(torch.nn.functional, "softmax", masked)
            expected = theirs(inputs_embeds=torch.from_numpy(x_TD)[None], use_cache=False).logits[0].numpy()
        assert len(calls) == layers
        made = hidden_states(ours, x_TD, chosen, prefix=False)
        assert_close(ours.head(ours.params, jnp.asarray(made)), expected)

"""Attention by a fused kernel: the same function as the products written out, and the kernel where a GPU is meant."""

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from closeness import assert_close
from family_cases import CASES, GOLDEN
from transformers import AutoConfig

from onestep_jax import Model, UserError, fit, layers, slots
from onestep_jax.bench.step import bench_step
from onestep_jax.families import read_config
from onestep_jax.footprint import abstract_params
from onestep_jax.model import Network
from onestep_jax.objective import score_group
from onestep_jax.sizing import check_attention

POSITIONS = 20


@pytest.fixture
def anywhere(monkeypatch):
    """What would be cuDNN's kernel is XLA's version of the same function, which takes the same arguments."""
    monkeypatch.setitem(layers.ATTENTIONS, "cudnn", "xla")


def network_of(model_type: str, case: str) -> Network:
    return Network(read_config(AutoConfig.for_model(model_type, **CASES[model_type][case]).to_dict())[1])


def random_params(network: Network) -> Any:
    """Weights large enough for attention to be sharp."""
    leaves, structure = jax.tree.flatten(abstract_params(network.config, jnp.float32))
    drawn = [0.25 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def passes(network: Network, params: Any) -> Any:
    """Hidden states and their gradient with respect to the input vectors."""
    x_TD, cotangent = (jax.random.normal(jax.random.key(i), (POSITIONS, network.embed_width)) for i in range(2))
    if network.config.embed_width is not None:
        cotangent = jax.random.normal(jax.random.key(1), (POSITIONS, network.config.width))

    @jax.jit
    def both(params: Any, x_TD: jax.Array) -> Any:
        out, back = jax.vjp(lambda x_TD: network.hidden(params, x_TD), x_TD)
        return out, back(cotangent)

    return both(params, x_TD)


# Among them shared key heads, windows, a scale of its own and learned positions.
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_neo"])
def test_the_function_is_the_same(anywhere, name):
    plain = network_of(*GOLDEN[name])
    fused = dataclasses.replace(plain, attention="cudnn")
    params = random_params(plain)
    check_attention(fused, jnp.float32, POSITIONS)
    for ours, theirs in zip(passes(fused, params), passes(plain, params), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_family_goes_with_it_or_is_refused(anywhere, name):
    network = dataclasses.replace(network_of(*GOLDEN[name]), attention="cudnn")
    if network.config.score_cap is None:
        check_attention(network, jnp.float32, POSITIONS)
        return
    with pytest.raises(UserError, match=r"no fused kernel caps attention scores.*; use plain"):
        check_attention(network, jnp.float32, POSITIONS)


def lowered_for_cuda(network: Network) -> str:
    """Gradients of three texts as a program for a GPU."""

    def total(params: Any, x_TD: jax.Array) -> jax.Array:
        return network.hidden(params, x_TD).astype(jnp.float32).sum()

    params = abstract_params(network.config, jnp.bfloat16)
    x_GTD = jax.ShapeDtypeStruct((3, POSITIONS, network.embed_width), jnp.bfloat16)
    traced = jax.jit(jax.vmap(jax.grad(total, 1), (None, 0))).trace(params, x_GTD)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("remat", [False, True])
def test_a_gpu_gets_the_kernel_forward_and_back(tiny, monkeypatch, remat):
    """Lowered for CUDA without a GPU: of cuDNN itself only the version is asked for."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    network = dataclasses.replace(tiny.network, attention="cudnn", remat=remat)
    check_attention(network, jnp.bfloat16, POSITIONS)
    with pytest.raises(UserError, match=r"attention cudnn does not go here \(.*; use plain"):
        check_attention(network, jnp.float32, POSITIONS)
    text = lowered_for_cuda(network)
    calls = re.findall(r"custom_call @(__cudnn\w*\$\w+)\(", text)
    assert calls.count("__cudnn$fmhaSoftmaxBackward") == tiny.config.layers
    assert calls.count("__cudnn$fmhaSoftmax") == tiny.config.layers * (1 + remat)
    scores = rf"tensor<3x{tiny.config.heads}x{POSITIONS}x{POSITIONS}x"
    assert not re.search(scores, text)
    assert re.search(scores, lowered_for_cuda(tiny.network))


def test_no_gpu_is_said_before_anything_is_written(tiny, token_lists, tmp_path):
    with pytest.raises(UserError, match=r"attention cudnn does not go here \(cuDNN is not detected\); use plain"):
        fit(tiny, token_lists, run=tmp_path / "run", attention="cudnn")
    with pytest.raises(UserError, match=r"unknown attention 'cudn' \(did you mean 'cudnn'"):
        fit(tiny, token_lists, run=tmp_path / "run", attention="cudn")
    assert not (tmp_path / "run").exists()


def test_texts_are_solved_and_the_kernel_is_on_record(anywhere, tiny, token_lists, tmp_path):
    run = fit(tiny, token_lists[:4], steps=2000, slots=4, run=tmp_path / "run", attention="cudnn")
    assert run.solved == 4
    sessions = sorted((tmp_path / "run").rglob("*.json"))
    assert any('"attention": "cudnn"' in path.read_text() for path in sessions)


def test_a_solution_is_confirmed_by_plain_attention(tiny: Model, token_lists, monkeypatch):
    seen = []

    def noting(network: Network, *given: Any) -> Any:
        seen.append(network.attention)
        return score_group(network, *given)

    monkeypatch.setattr(slots, "score_group", noting)
    monkeypatch.setitem(layers.ATTENTIONS, "cudnn", "xla")
    fit(tiny, token_lists[:2], steps=21, slots=2, attention="cudnn")
    assert set(seen) == {"plain", "cudnn"}


def test_the_benchmark_takes_it_along_or_says_why_not(tiny_folder, monkeypatch):
    said: list[str] = []
    options: dict[str, Any] = {"length": 8, "slots": 2, "chunk": 2, "repeats": 1, "torch": False, "fused": True}
    found = bench_step(str(tiny_folder), **options, say=said.append)
    assert len(found["rows"]) == 2
    assert any("left out (attention cudnn does not go here" in line for line in said)
    monkeypatch.setitem(layers.ATTENTIONS, "cudnn", "xla")
    found = bench_step(str(tiny_folder), **options, say=said.append)
    assert [row["contender"] for row in found["rows"]][-1] == "onestep_jax, cudnn attention, 2 at a time"
    assert "onestep_jax, cudnn attention, 2 at a time over onestep_jax, 2 at a time" in found["ratios"]
    assert json.dumps(found)

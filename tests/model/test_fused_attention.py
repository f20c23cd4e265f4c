"""Attention by fused kernels: the function of the products written out, and the kernel for an accelerator."""

import dataclasses
import json
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from closeness import assert_close
from family_cases import CASES, GOLDEN
from options import quick_of
from transformers import AutoConfig

from onestep_jax import Model, UserError, fit
from onestep_jax.bench.step import bench_step
from onestep_jax.fitting import programs
from onestep_jax.fitting.sizing import check_attention
from onestep_jax.model import fused_attention as fused
from onestep_jax.model.cost import abstract_params
from onestep_jax.model.decoder import Network
from onestep_jax.model.families import read_config
from onestep_jax.model.fused_attention import KERNELS, Kernel
from onestep_jax.prototokens.objective import score_group

POSITIONS = 20


# What runs here in the place of the kernels: XLA's version of cuDNN's function, and Pallas's interpreter.
STAND_INS = {
    "cudnn": Kernel("cpu", partial(fused.cudnn, implementation="xla")),
    "splash": Kernel("cpu", partial(fused.splash, interpret=True)),
}


@pytest.fixture
def anywhere(monkeypatch):
    for name, kernel in STAND_INS.items():
        monkeypatch.setitem(KERNELS, name, kernel)


@pytest.fixture
def cpu():
    return jax.local_devices()[0]


class Pretended:
    """A device of another platform."""

    def __init__(self, platform: str):
        self.platform = platform


def written_out(q_HTC, k_KTC, v_KTC, scale, window, cap):
    """Attention by its definition."""
    shared = len(q_HTC) // len(k_KTC)
    k_HTC, v_HTC = jnp.repeat(k_KTC, shared, axis=0), jnp.repeat(v_KTC, shared, axis=0)
    scores_HTS = jnp.einsum("htc,hsc->hts", q_HTC, k_HTC) * scale
    scores_HTS = scores_HTS if cap is None else cap * jnp.tanh(scores_HTS / cap)
    distance_TS = jnp.arange(q_HTC.shape[1])[:, None] - jnp.arange(q_HTC.shape[1])[None]
    seen_TS = (distance_TS >= 0) & (distance_TS < (window or q_HTC.shape[1]))
    return jnp.einsum("hts,hsc->htc", jax.nn.softmax(jnp.where(seen_TS[None], scores_HTS, -jnp.inf)), v_HTC)


@pytest.mark.parametrize(("window", "cap"), [(None, None), (7, None), (140, 5.0)])
@pytest.mark.parametrize("positions", quick_of([2, 128, 150, 600], 0, 2))
def test_splash_over_one_and_several_blocks(positions, window, cap):
    """Outputs and gradients of two texts at a time, four query heads to a pair of key heads."""
    shapes = {"q": 4, "k": 2, "v": 2, "out": 4}
    q, k, v, cotangent = (
        jax.random.normal(jax.random.key(i), (2, heads, positions, 16)) for i, heads in enumerate(shapes.values())
    )

    def passes_of(attend):
        out, back = jax.vjp(jax.vmap(partial(attend, scale=0.3, window=window, cap=cap)), q, k, v)
        return out, *back(cotangent)

    found = jax.jit(partial(passes_of, STAND_INS["splash"].attend))()
    for ours, theirs in zip(found, jax.jit(partial(passes_of, written_out))(), strict=True):
        assert_close(ours, theirs)


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


# Among them shared key heads, windows, a scale of its own, learned positions and capped scores.
@pytest.mark.parametrize(
    ("kernel", "name"),
    quick_of(
        [*((each, name) for name in ("gemma3_text", "llama", "gpt_neo") for each in KERNELS), ("splash", "gemma2")],
        0,
        1,
    ),
)
def test_the_function_is_the_same(anywhere, cpu, kernel, name):
    plain = network_of(*GOLDEN[name])
    other = dataclasses.replace(plain, attention=kernel)
    params = random_params(plain)
    check_attention(other, jnp.float32, POSITIONS, cpu)
    for ours, theirs in zip(passes(other, params), passes(plain, params), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", GOLDEN)
def test_every_family_goes_with_it_or_is_refused(anywhere, cpu, kernel, name):
    network = dataclasses.replace(network_of(*GOLDEN[name]), attention=kernel)
    if kernel == "splash" or network.config.score_cap is None:
        check_attention(network, jnp.float32, POSITIONS, cpu)
        return
    with pytest.raises(UserError, match=r"cuDNN's kernel does not cap attention scores.*; use plain"):
        check_attention(network, jnp.float32, POSITIONS, cpu)


def lowered(network: Network, platform: str, positions: int = POSITIONS) -> str:
    """Gradients of three texts as a program for another platform."""

    def total(params: Any, x_TD: jax.Array) -> jax.Array:
        return network.hidden(params, x_TD).astype(jnp.float32).sum()

    params = abstract_params(network.config, jnp.bfloat16)
    x_GTD = jax.ShapeDtypeStruct((3, positions, network.embed_width), jnp.bfloat16)
    traced = jax.jit(jax.vmap(jax.grad(total, 1), (None, 0))).trace(params, x_GTD)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("remat", [False, True])
def test_a_gpu_gets_the_kernel_forward_and_back(tiny, monkeypatch, remat):
    """Lowered for CUDA without a GPU: of cuDNN itself only the version is asked for."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    network = dataclasses.replace(tiny.network, attention="cudnn", remat=remat)
    check_attention(network, jnp.bfloat16, POSITIONS, Pretended("gpu"))
    with pytest.raises(UserError, match=r"attention cudnn does not go here \(.*; use plain"):
        check_attention(network, jnp.float32, POSITIONS, Pretended("gpu"))
    text = lowered(network, "cuda")
    calls = re.findall(r"custom_call @(__cudnn\w*\$\w+)\(", text)
    # Layers of one kind are one function of the program, which each of them calls.
    assert calls.count("__cudnn$fmhaSoftmaxBackward") == 1
    assert calls.count("__cudnn$fmhaSoftmax") == 1 + remat
    scores = rf"tensor<3x{tiny.config.heads}x{POSITIONS}x{POSITIONS}x"
    assert not re.search(scores, text)
    assert re.search(scores, lowered(tiny.network, "cuda"))


@pytest.mark.parametrize("remat", [False, True])
def test_a_tpu_gets_the_kernel_forward_and_back(tiny, remat):
    """Lowered for a TPU without one: forward, and back to the queries and to keys and values.

    Up to 128 positions what the kernel keeps of its softmax is no smaller than the scores, so these are 200.
    """
    network = dataclasses.replace(tiny.network, attention="splash", remat=remat)
    check_attention(network, jnp.bfloat16, POSITIONS, Pretended("tpu"))
    text = lowered(network, "tpu", 200)
    assert set(re.findall(r'kernel_name = "splash_mha_([a-z]+)_', text)) == {"fwd", "dq", "dkv"}
    scores = rf"tensor<3x{tiny.config.heads}x(\d+)x\1x"
    assert not re.search(scores, text)
    assert re.search(scores, lowered(tiny.network, "tpu", 200))


@pytest.mark.parametrize(("kernel", "platform"), [("cudnn", "gpu"), ("splash", "tpu")])
def test_another_device_is_said_before_anything_is_written(tiny, token_lists, tmp_path, kernel, platform):
    said = rf"attention {kernel} does not go here \(it runs on a {platform}, and this is a cpu\); use plain"
    with pytest.raises(UserError, match=said):
        fit(tiny, token_lists, run=tmp_path / "run", attention=kernel)
    with pytest.raises(UserError, match=r"unknown attention 'cudn' \(did you mean 'cudnn'"):
        fit(tiny, token_lists, run=tmp_path / "run", attention="cudn")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("kernel", KERNELS)
def test_texts_are_solved_and_the_kernel_is_on_record(anywhere, tiny, token_lists, tmp_path, kernel):
    run = fit(tiny, token_lists[:4], steps=2000, slots=4, run=tmp_path / "run", attention=kernel)
    assert run.solved == 4
    sessions = sorted((tmp_path / "run").rglob("*.json"))
    assert any(f'"attention": "{kernel}"' in path.read_text() for path in sessions)


@pytest.mark.long
def test_a_solution_is_confirmed_by_plain_attention(anywhere, tiny: Model, token_lists, monkeypatch):
    seen = []

    def noting(network: Network, *given: Any) -> Any:
        seen.append(network.attention)
        return score_group(network, *given)

    monkeypatch.setattr(programs, "score_group", noting)
    fit(tiny, token_lists[:2], steps=21, slots=2, attention="cudnn")
    assert set(seen) == {"plain", "cudnn"}


@pytest.mark.long
def test_the_benchmark_takes_them_along_or_says_why_not(tiny_folder, monkeypatch):
    said: list[str] = []
    options: dict[str, Any] = {"length": 8, "slots": 2, "chunk": 2, "repeats": 1, "torch": False, "fused": True}
    found = bench_step(str(tiny_folder), **options, say=said.append)
    assert len(found["rows"]) == 2
    for kernel in KERNELS:
        assert any(f"left out (attention {kernel} does not go here" in line for line in said)
        monkeypatch.setitem(KERNELS, kernel, STAND_INS[kernel])
    found = bench_step(str(tiny_folder), **options, say=said.append)
    names = [f"onestep_jax, {kernel} attention, 2 at a time" for kernel in KERNELS]
    assert [row["contender"] for row in found["rows"]][-2:] == names
    assert {f"{name} over onestep_jax, 2 at a time" for name in names} <= set(found["ratios"])
    assert json.dumps(found)

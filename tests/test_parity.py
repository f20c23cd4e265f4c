"""The parity ladder against live transformers modules: each rung gets the inputs that transformers gave its own part.

Needs torch (`pip install -e .[parity]`); everything that needs no torch is in test_model.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from llama_cases import CASES, GOLDEN

from onestep_jax import fit, read_results
from onestep_jax.checkpoint import load_model, locate
from onestep_jax.exporting import write_safetensors
from onestep_jax.layers import Attention, Block, GatedMLP, RMSNorm, rope_frequencies, rotate
from onestep_jax.model import Model

torch = pytest.importorskip("torch")

POSITIONS = 48


class Call(NamedTuple):
    """What a torch module was given and what it returned, for one text; `rest` is the remainder of a tuple."""

    given: np.ndarray
    returned: np.ndarray
    rest: tuple[np.ndarray, ...]


class Pair(NamedTuple):
    """One checkpoint loaded twice, and transformers' forward pass over random input vectors, module by module.

    Attributes:
      ours: our model, float32.
      theirs: transformers' model, float32, eager attention.
      x_TD: input vectors.
      output: transformers' logits and hidden states.
      calls: module name → its call.
    """

    ours: Model
    theirs: Any
    x_TD: np.ndarray
    output: Any
    calls: dict[str, Call]


def load_theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return llama.eval().requires_grad_(False)


def listen(llama: Any) -> dict[str, Call]:
    """A dictionary that the next forward pass of `llama` fills with the call of every module."""
    calls: dict[str, Call] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict, returned: Any) -> None:
            if isinstance(returned, (torch.Tensor, tuple)):
                given = args[0] if args else kwargs["hidden_states"]
                first, *rest = returned if isinstance(returned, tuple) else (returned,)
                calls[name] = Call(given[0].numpy(), first[0].numpy(), tuple(part[0].numpy() for part in rest))

        return hook

    for name, module in llama.named_modules():
        module.register_forward_hook(keep(name), with_kwargs=True)
    return calls


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest) -> Pair:
    ours, theirs = load_model(GOLDEN / request.param, dtype="float32"), load_theirs(GOLDEN / request.param)
    x_TD = np.random.default_rng(0).standard_normal((POSITIONS, ours.config.width)).astype(np.float32)
    calls = listen(theirs)
    output = theirs(inputs_embeds=torch.from_numpy(x_TD)[None], output_hidden_states=True, use_cache=False)
    return Pair(ours, load_theirs(GOLDEN / request.param), x_TD, output, calls)


def climb(module: nn.Module, params: Any, call: Call) -> None:
    """Give our module what theirs was given and compare what they return."""
    assert_close(jax.jit(module.apply)({"params": params}, call.given), call.returned)


def test_norm(pair: Pair):
    norm, params = RMSNorm(pair.ours.config.norm_eps), pair.ours.params
    climb(norm, params["norm"], pair.calls["model.norm"])
    for i in range(pair.ours.config.layers):
        climb(norm, params[f"block_{i}"]["norm_1"], pair.calls[f"model.layers.{i}.input_layernorm"])
        climb(norm, params[f"block_{i}"]["norm_2"], pair.calls[f"model.layers.{i}.post_attention_layernorm"])


def test_rope(pair: Pair):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    c, call = pair.ours.config, pair.calls["model.rotary_emb"]
    cos_TC, (sin_TC,) = call.returned, call.rest
    q_HTC = np.random.default_rng(1).standard_normal((c.heads, POSITIONS, c.head_dim)).astype(np.float32)
    q, cos, sin = (torch.from_numpy(array)[None] for array in (q_HTC, cos_TC, sin_TC))
    theirs_HTC = apply_rotary_pos_emb(q, q, cos, sin)[0][0]
    assert_close(rotate(jnp.asarray(q_HTC), jnp.arange(POSITIONS), rope_frequencies(c.rope, c.head_dim)), theirs_HTC)


def test_attention(pair: Pair):
    for i in range(pair.ours.config.layers):
        params = pair.ours.params[f"block_{i}"]["attention"]
        climb(Attention(pair.ours.config), params, pair.calls[f"model.layers.{i}.self_attn"])


def test_attention_weights(pair: Pair):
    states = jax.jit(pair.ours.states)(pair.ours.params, pair.x_TD)
    for i, ours_HTS in enumerate(states.attention_LHTS):
        (theirs_HTS,) = pair.calls[f"model.layers.{i}.self_attn"].rest
        assert_close(ours_HTS, theirs_HTS)


def test_mlp(pair: Pair):
    for i in range(pair.ours.config.layers):
        climb(GatedMLP(pair.ours.config), pair.ours.params[f"block_{i}"]["mlp"], pair.calls[f"model.layers.{i}.mlp"])


def test_block(pair: Pair):
    for i in range(pair.ours.config.layers):
        climb(Block(pair.ours.config), pair.ours.params[f"block_{i}"], pair.calls[f"model.layers.{i}"])


def test_logits(pair: Pair):
    assert_close(jax.jit(pair.ours.apply)(pair.ours.params, pair.x_TD), pair.output.logits[0])


def test_hidden_states(pair: Pair):
    states = jax.jit(pair.ours.states)(pair.ours.params, pair.x_TD)
    for ours_TD, theirs_TD in zip(states.hidden_LTD, pair.output.hidden_states, strict=True):
        assert_close(ours_TD, theirs_TD[0])


def test_input_gradient(pair: Pair):
    cotangent_TV = np.random.default_rng(2).standard_normal(pair.output.logits[0].shape).astype(np.float32)
    x = torch.from_numpy(pair.x_TD).requires_grad_()
    score = (pair.theirs(inputs_embeds=x[None], use_cache=False).logits[0] * torch.from_numpy(cotangent_TV)).sum()
    (theirs_TD,) = torch.autograd.grad(score, x)

    @jax.jit
    @jax.grad
    def gradient(x_TD: jax.Array) -> jax.Array:
        return jnp.sum(pair.ours.apply(pair.ours.params, x_TD) * cotangent_TV)

    assert_close(gradient(pair.x_TD), theirs_TD)


def test_packaged_model_opens_in_transformers():
    ours, theirs = load_model("default", dtype="float32"), load_theirs(locate("default"))
    tokens_T = np.random.default_rng(3).integers(ours.config.vocab_size, size=64)
    x_TD = jax.jit(ours.embed)(ours.params, tokens_T)
    logits_TV = theirs(input_ids=torch.from_numpy(tokens_T)[None], use_cache=False).logits[0]
    assert_close(jax.jit(ours.apply)(ours.params, x_TD), logits_TV)


def test_exported_vectors_give_their_tokens_in_pytorch(tmp_path):
    """[e, m, …, m] from the exported file, as `inputs_embeds` of the packaged model in transformers."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = load_model("default", dtype="float32")
    words = ["The tide went out at noon and left", "Ein Boot fuhr an das andere Ufer", "x = [1, 2, 3]; y = x[0]"]
    fit(model, words, length=10, steps=150, run=tmp_path / "run")
    write_safetensors(read_results(tmp_path / "run"), tmp_path / "vectors.safetensors")
    tensors = load_file(tmp_path / "vectors.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(locate("default"), dtype=torch.float32)
    assert tensors["accuracy"].max() == 1
    for row, length in enumerate(tensors["lengths"].tolist()):
        inputs = torch.cat([tensors["e"][row : row + 1], tensors["m"][row : row + 1].repeat(length - 1, 1)])
        with torch.no_grad():
            tokens = theirs(inputs_embeds=inputs[None]).logits[0].argmax(-1)
        accuracy = (tokens == tensors["tokens"][row, :length]).float().mean()
        assert accuracy == tensors["accuracy"][row]

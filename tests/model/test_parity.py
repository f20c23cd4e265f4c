"""The parity ladder of Llama: each rung gets the inputs that transformers gave its own part of the model.

The upper rungs (logits, hidden states, gradient) are those of every family, in test_families_parity.py. Needs torch
(`pip install -e .[parity]`); what needs none is in test_model.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from family_cases import CASES
from transformers import AutoModelForCausalLM

from onestep_jax import OneStep, fit, read_results
from onestep_jax.model.checkpoint import load_model, locate
from onestep_jax.model.decoder import Model
from onestep_jax.model.layers import MLP, Attention, Block, Norm
from onestep_jax.model.rotary import rope_frequencies, rotate
from onestep_jax.prototokens.schemes import from_description
from onestep_jax.store.export import write_vectors

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

import parity  # noqa: E402

POSITIONS = 48


class Call(NamedTuple):
    """What a torch module was given and what it returned, for one text; `rest` is the remainder of a tuple."""

    given: np.ndarray
    returned: np.ndarray
    rest: tuple[np.ndarray, ...]


class Pair(NamedTuple):
    """One checkpoint here, float32, and transformers' forward pass over random input vectors, module by module.

    Attributes:
      ours: our model.
      x_TD: input vectors.
      calls: name of a transformers module → its call.
    """

    ours: Model
    x_TD: np.ndarray
    calls: dict[str, Call]


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


@pytest.fixture(scope="module", params=CASES["llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    theirs = parity.build("llama", CASES["llama"][request.param])
    ours = load_model(parity.save(theirs, tmp_path_factory.mktemp("model")), dtype="float32")
    x_TD = np.random.default_rng(0).standard_normal((POSITIONS, ours.config.width)).astype(np.float32)
    calls = listen(theirs)
    theirs(inputs_embeds=torch.from_numpy(x_TD)[None], use_cache=False)
    return Pair(ours, x_TD, calls)


def climb(module: nn.Module, params: Any, call: Call) -> None:
    """Give our module what theirs was given and compare what they return."""
    assert_close(jax.jit(module.apply)({"params": params}, call.given), call.returned)


def test_norm(pair: Pair):
    norm, params = Norm("rms", pair.ours.config.norm_eps), pair.ours.params
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
    rope = c.layer(0).rope
    assert rope is not None
    frequencies = rope_frequencies(rope, c.head_dim, POSITIONS)
    assert_close(rotate(jnp.asarray(q_HTC), jnp.arange(POSITIONS), frequencies, rope.magnitude), theirs_HTC)


def test_attention(pair: Pair):
    for i in range(pair.ours.config.layers):
        attention = Attention(pair.ours.config, pair.ours.config.layer(i))
        climb(attention, pair.ours.params[f"block_{i}"]["attention"], pair.calls[f"model.layers.{i}.self_attn"])


def test_attention_weights(pair: Pair):
    states = jax.jit(pair.ours.states)(pair.ours.params, pair.x_TD)
    for i, ours_HTS in enumerate(states.attention_LHTS):
        (theirs_HTS,) = pair.calls[f"model.layers.{i}.self_attn"].rest
        assert_close(ours_HTS, theirs_HTS)


def test_mlp(pair: Pair):
    for i in range(pair.ours.config.layers):
        climb(MLP(pair.ours.config), pair.ours.params[f"block_{i}"]["mlp"], pair.calls[f"model.layers.{i}.mlp"])


def test_block(pair: Pair):
    for i in range(pair.ours.config.layers):
        block = Block(pair.ours.config, pair.ours.config.layer(i))
        climb(block, pair.ours.params[f"block_{i}"], pair.calls[f"model.layers.{i}"])


def test_packaged_model_opens_in_transformers():
    ours = load_model("default", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(locate("default"), dtype=torch.float32).requires_grad_(False)
    tokens_T = np.random.default_rng(3).integers(ours.config.vocab_size, size=64)
    x_TD = jax.jit(ours.embed)(ours.params, tokens_T)
    logits_TV = theirs(input_ids=torch.from_numpy(tokens_T)[None], use_cache=False).logits[0]
    assert_close(jax.jit(ours.apply)(ours.params, x_TD), logits_TV)


def check_in_pytorch(source: str, path: Path, **how: Any) -> None:
    """Fit some words and feed [p_1 … p_P, e, m × N] from the exported file to transformers as `inputs_embeds`."""
    from safetensors.torch import load_file

    model = load_model(source, dtype="float32")
    words = ["The tide went out at noon and left", "Ein Boot fuhr an das andere Ufer", "x = [1, 2, 3]; y = x[0]"]
    fit(model, words, length=10, steps=150, run=path / "run", **how)
    write_vectors(read_results(path / "run"), path / "vectors.safetensors")
    tensors = load_file(path / "vectors.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(locate(source), dtype=torch.float32)
    unread = from_description(read_results(path / "run").scheme).extra  # outputs that give no token
    assert tensors["accuracy"].max() == 1
    for row, length in enumerate(tensors["lengths"].tolist()):
        prefix = tensors["prefix"][row] if "prefix" in tensors else torch.zeros(0, dtype=torch.int32)
        before = theirs.get_input_embeddings()(prefix[prefix >= 0].long()).detach()
        vectors = [tensors["e"][row : row + 1], tensors["m"][row : row + 1].repeat(length - 1 + unread, 1)]
        with torch.no_grad():
            logits = theirs(inputs_embeds=torch.cat([before, *vectors])[None]).logits[0]
        tokens = logits[len(before) + unread :].argmax(-1)
        accuracy = (tokens == tensors["tokens"][row, :length]).float().mean()
        assert accuracy == tensors["accuracy"][row]


@pytest.mark.parametrize(
    "how",
    [{}, {"scheme": OneStep(prefix="bos")}, {"prefixes": ["The harbour was", "", "bos"]}],
    ids=["unguided", "BOS, guided", "texts"],
)
def test_exported_vectors_give_their_tokens_in_pytorch(tmp_path, how):
    check_in_pytorch("default", tmp_path, **how)


@pytest.mark.long
def test_exported_vectors_of_the_real_model_give_their_tokens_in_pytorch(tmp_path):
    """With the folder that experiments/packaged/real_model.py makes, named by ONESTEP_REAL_MODEL."""
    folder = os.environ.get("ONESTEP_REAL_MODEL")
    if folder is None:
        pytest.skip("ONESTEP_REAL_MODEL names no folder of SmolLM2-135M")
    check_in_pytorch(folder, tmp_path)
    assert len(read_results(tmp_path / "run").scheme["prefix"]) == 1  # the preset found the sink

"""Greedy generation token for token as transformers does it, and nats of texts, for every family (needs torch)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from closeness import assert_close
from family_cases import CASES

from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.decoder import Model
from onestep_jax.model.generation import generate
from onestep_jax.model.likelihood import text_nats

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

COUNT = 24
# The plain case of each family, and those whose cache or positions work otherwise.
CHOSEN = [(family, next(iter(cases))) for family, cases in CASES.items()]
CHOSEN += [("opt", "350m: projected, norm after"), ("phi3", "longrope, short text"), ("phi3", "longrope, long text")]
CHOSEN += [("llama", "RoPE llama3"), ("gpt2", "scores scaled by layer"), ("qwen2", "window on the upper layer")]


class Pair(NamedTuple):
    """One model here and in transformers, with three prompts."""

    ours: Model
    theirs: Any
    prompts: list[list[int]]


@pytest.fixture(scope="module", params=CHOSEN, ids=lambda chosen: f"{chosen[0]}: {chosen[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    import parity

    family, name = request.param
    theirs = parity.build(family, CASES[family][name])
    theirs.generation_config.eos_token_id = None
    folder = parity.save(theirs, tmp_path_factory.mktemp("model"))
    lengths = (3, 5, 8) if name == "longrope, short text" else (9, 12, 16)
    random = np.random.default_rng(0)
    prompts = [random.integers(97, size=length).tolist() for length in lengths]
    return Pair(load_model(folder, dtype="float32"), theirs, prompts)


def continue_theirs(theirs: Any, **inputs: Any) -> np.ndarray:
    """Greedy continuation of one prompt by transformers."""
    (given,) = inputs.values()
    mask = torch.ones(given.shape[:2], dtype=torch.long)
    tokens = theirs.generate(**inputs, attention_mask=mask, max_new_tokens=COUNT, do_sample=False, pad_token_id=0)
    return tokens[0].numpy()


def test_greedy_from_token_ids(pair: Pair):
    ours = generate(pair.ours, pair.prompts, count=COUNT, stop=())
    for prompt, mine in zip(pair.prompts, ours, strict=True):
        theirs = continue_theirs(pair.theirs, input_ids=torch.tensor([prompt]))
        np.testing.assert_array_equal(mine.tokens, theirs[len(prompt) :])
        assert not mine.stopped


def test_greedy_from_input_vectors(pair: Pair):
    random = np.random.default_rng(1)
    width = pair.ours.embed_width
    prompts = [random.standard_normal((len(ids), width)).astype(np.float32) for ids in pair.prompts]
    ours = generate(pair.ours, prompts, count=COUNT, stop=())
    for x_TD, mine in zip(prompts, ours, strict=True):
        theirs = continue_theirs(pair.theirs, inputs_embeds=torch.from_numpy(x_TD)[None])
        np.testing.assert_array_equal(mine.tokens, theirs)


def test_nats_of_a_text(pair: Pair):
    for prompt, mine in zip(pair.prompts, text_nats(pair.ours, pair.prompts), strict=True):
        logits_TV = pair.theirs(input_ids=torch.tensor([prompt[:-1]]), use_cache=False).logits[0]
        theirs = torch.nn.functional.cross_entropy(logits_TV, torch.tensor(prompt[1:]), reduction="none")
        assert_close(mine.nats, theirs.numpy())
        assert mine.total == pytest.approx(float(theirs.double().sum()), rel=1e-5)

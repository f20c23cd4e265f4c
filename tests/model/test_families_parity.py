"""Every family and option against live transformers models, the whole decoder at once; docs/parity.md is its table.

Needs torch (`pip install -e .[parity]`); what needs none is in test_model.py and test_families.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import TOLERANCE
from family_cases import CASES
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from onestep_jax.model.checkpoint import load_model, save_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

import parity  # noqa: E402

EVERY = [(model_type, case) for model_type, cases in CASES.items() for case in cases]
PLAIN = [(model_type, next(iter(cases))) for model_type, cases in CASES.items()]


def chosen_id(chosen: tuple[str, str]) -> str:
    return f"{chosen[0]}: {chosen[1]}"


def build(chosen: tuple[str, str]) -> Any:
    model_type, case = chosen
    return parity.build(model_type, CASES[model_type][case])


@pytest.fixture(scope="module", params=EVERY, ids=chosen_id)
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> parity.Errors:
    theirs = build(request.param)
    return parity.measure(theirs, parity.save(theirs, tmp_path_factory.mktemp("model")))


def test_float32(errors: parity.Errors):
    assert errors.embed == 0
    assert errors.logits <= TOLERANCE
    assert errors.hidden <= TOLERANCE
    assert errors.gradient <= TOLERANCE


def test_bfloat16_errs_no_more_than_that_of_transformers(errors: parity.Errors):
    assert errors.bf16_logits <= 3e-2
    assert errors.bf16_gradient <= 1.5 * errors.torch_bf16_gradient


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("chosen", [*PLAIN, ("opt", "350m: projected, norm after")], ids=chosen_id)
def test_saved_model_opens_in_transformers_as_the_same(chosen: tuple[str, str], tmp_path: Path):
    theirs = build(chosen)
    first, second = parity.save(theirs, tmp_path / "theirs"), tmp_path / "ours"
    save_model(load_model(first, dtype="float32"), second)
    again = AutoModelForCausalLM.from_pretrained(second, dtype=torch.float32, attn_implementation="eager").eval()
    x = torch.from_numpy(parity.inputs(theirs)[0])
    with torch.no_grad():
        logits, logits_again = (model(inputs_embeds=x, use_cache=False).logits for model in (theirs, again))
    np.testing.assert_array_equal(logits_again, logits)
    assert shapes(second) == shapes(first)


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_checkpoint_of_the_bare_decoder_is_the_same_model(model_type: str, tmp_path: Path):
    theirs = build((model_type, next(iter(CASES[model_type]))))
    whole, bare = parity.save(theirs, tmp_path / "whole"), parity.save(theirs.base_model, tmp_path / "bare")
    assert shapes(whole).keys().isdisjoint(shapes(bare))
    assert load_model(bare).fingerprint == load_model(whole).fingerprint

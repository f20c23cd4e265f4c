"""What JAX is set to outside changes no vector that is recorded, and no identity."""

import functools
import json
from contextlib import nullcontext

import jax
import numpy as np
import pytest

from onestep_jax import OneStep, decode, fit, generate, text_nats
from onestep_jax.devices.arithmetic import pinned
from onestep_jax.model.untrained import untrained
from onestep_jax.prototokens.schemes import Cramming

SWITCHES = {
    "64 bits": lambda: jax.enable_x64(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "another generator": lambda: jax.default_prng_impl("rbg"),
    "another order of its bits": lambda: jax.threefry_partitionable(False),
}
PROTOCOLS = {
    "fast": {"preset": "fast"},
    "paper": {"preset": "paper"},
    "cramming": {"preset": "cramming", "scheme": Cramming(2)},
    "shared": {"preset": "fast", "scheme": OneStep(share="m", group=3)},
}


@pytest.fixture(scope="module")
def usual(tiny, token_lists):
    """The fit of a protocol without switches, made once."""
    return functools.cache(lambda name: fit(tiny, token_lists[:3], steps=12, **PROTOCOLS[name]))


@pytest.mark.parametrize(
    "protocol", [name if name == "fast" else pytest.param(name, marks=pytest.mark.long) for name in PROTOCOLS]
)
@pytest.mark.parametrize("switch", SWITCHES)
def test_vectors_do_not_depend_on_switches(tiny, token_lists, usual, switch, protocol):
    expected = usual(protocol)
    with SWITCHES[switch]():
        found = fit(tiny, token_lists[:3], steps=12, **PROTOCOLS[protocol])
        again = decode(tiny, found)
    for name, vectors in expected.vectors.items():
        assert found.vectors[name].dtype == np.float32
        np.testing.assert_array_equal(found.vectors[name], vectors)
    assert [one.accuracy for one in again] == [text.accuracy for text in expected]
    assert [(t.steps, t.loss, t.h_lm) for t in found] == [(t.steps, t.loss, t.h_lm) for t in expected]


@pytest.mark.parametrize("switch", SWITCHES)
def test_what_is_drawn_does_not_depend_on_switches(tiny, switch):
    def drawn():
        (made,) = generate(tiny, [[1, 2, 3]], count=6, temperature=1.0, seed=5, stop=())
        return (
            made.tokens.tolist(),
            text_nats(tiny, [[1, 2, 3]])[0].total,
            untrained(tiny, 1, kind="matched").fingerprint,
        )

    usual = drawn()
    with SWITCHES[switch]():
        assert drawn() == usual


def test_a_run_goes_on_under_other_switches(tiny, token_lists, tmp_path):
    texts = token_lists[:3]
    fit(tiny, texts, preset="paper", steps=40, run=tmp_path / "usual")
    with jax.enable_x64(True):
        fit(tiny, texts, preset="paper", steps=40, run=tmp_path / "wide")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("usual", "wide"))
    assert first["identity"] == second["identity"]
    assert first["settings"]["matmul precision"] is None
    again = fit(tiny, texts, preset="paper", steps=40, run=tmp_path / "wide")
    np.testing.assert_array_equal(again.vectors["e"], fit(tiny, texts, preset="paper", steps=40).vectors["e"])


@pytest.mark.parametrize("precision", [None, "highest"])
def test_another_precision_of_products_is_said(tiny, token_lists, tmp_path, precision):
    with jax.default_matmul_precision("highest"):
        fit(tiny, token_lists[:1], steps=2, run=tmp_path / "run")
    said = (
        pytest.warns(UserWarning, match=r"begun with .*'highest', resumed with None")
        if precision is None
        else nullcontext()
    )
    with jax.default_matmul_precision(precision), said:
        fit(tiny, token_lists[:1], steps=2, run=tmp_path / "run")


def test_switches_are_as_they_were_afterwards():
    @pinned
    def inside():
        return jax.config.jax_enable_x64

    with jax.enable_x64(True):
        assert not inside()
        assert jax.config.jax_enable_x64

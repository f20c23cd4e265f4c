"""The first position: what is measured of it, against arithmetic by hand, and when it counts as a sink."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Model, UserError, load_model
from onestep_jax.model import sinks as module
from onestep_jax.model.sinks import Sinks, has_sink, sinks


def test_lengths_and_weights_are_those_of_the_states(tiny: Model):
    texts, prefix = [[3, 9, 27, 20], [60, 1, 2, 3], [5, 5, 5, 5]], (7,)
    found = sinks(tiny, texts, prefix=prefix, batch=2)
    norms, drawn = [], []
    for ids in texts:
        states = tiny.states(tiny.params, tiny.embed(tiny.params, jnp.array([*prefix, *ids])))
        norms.append(np.sqrt((np.asarray(states.hidden_LTD) ** 2).sum(-1)))
        drawn.append(np.asarray(states.attention_LHTS)[..., 0].mean(1))
    np.testing.assert_allclose(found.norms_LT, np.mean(norms, 0), rtol=1e-5)
    np.testing.assert_allclose(found.drawn_LT[:, 1:], np.mean(drawn, 0)[:, 1:], rtol=1e-5)
    assert np.isnan(found.drawn_LT[:, 0]).all()


def test_excess_and_share():
    found = Sinks(np.array([[2.0, 1.0, 2.0, 3.0], [30.0, 2.0, 4.0, 3.0]]), np.array([[np.nan, 0.5, 0.7, 0.9]]))
    assert found.excess == 10.0
    assert found.share == pytest.approx(0.7)


def test_texts_of_one_length_are_asked_for(tiny: Model):
    with pytest.raises(UserError, match=r"texts of \[2, 3\] positions: expected one length"):
        sinks(tiny, [[1, 2], [1, 2, 3]])
    with pytest.raises(UserError, match=r"texts of \[1\] positions: expected one length, of at least 2"):
        sinks(tiny, [[1]])


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([[1, 2]], {"batch": 2.5}, "batch = 2.5: expected a whole number"),
        ([[1, 2]], {"batch": 0}, "batch = 0: expected at least 1"),
        ([[1, 2]], {"prefix": 5}, "prefix = 5, of type int: expected a list of token ids"),
        (5, {}, "tokens = 5, of type int: expected lists of token ids"),
        ([1, 2], {}, "text 0 = 1, of type int: expected a list of token ids"),
        ([[1, 61]], {}, "text 0: token id 61 is not in the model's vocabulary of 61"),
    ],
    ids=str,
)
def test_what_is_no_number_and_no_list(tiny: Model, tokens, options, message: str):
    with pytest.raises(UserError, match=message):
        sinks(tiny, tokens, **options)


def test_the_packaged_model_has_none():
    assert not has_sink(load_model("default"))


def test_what_counts_as_a_sink(tiny: Model, monkeypatch):
    """The rule over what is measured; each model is measured once in a process."""
    monkeypatch.setattr(module, "_measured_models", {})
    assert not has_sink(tiny)
    seen = []

    def counted(model, tokens):
        seen.append(len(tokens))
        return Sinks(np.array([[6.0, 1.0, 1.0]]), np.zeros((1, 3)))

    monkeypatch.setattr(module, "sinks", counted)
    other = dataclasses.replace(tiny, fingerprint="f" * 16)
    assert [has_sink(other), has_sink(other)] == [True, True]
    assert seen == [4]  # measured once
    nameless = dataclasses.replace(tiny, fingerprint="")
    assert [has_sink(nameless), has_sink(nameless)] == [True, True]
    assert seen == [4, 4, 4]

"""One forward and backward pass over one text, as the tests compare it with that of transformers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from onestep_jax.model.decoder import HiddenStates, Model


class Pass(NamedTuple):
    """Logits (T, V), states, and the gradient (T, D) of sum(logits · cotangent) with respect to the input vectors."""

    logits_TV: jax.Array
    states: HiddenStates
    gradient_TD: jax.Array


def forward_and_backward(model: Model, params: Any, x_TD: jax.Array, cotangent_TV: jax.Array) -> Pass:
    def score(x_TD: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_TV = model.apply(params, x_TD)
        return jnp.sum(logits_TV.astype(jnp.float32) * cotangent_TV), logits_TV

    gradient_TD, logits_TV = jax.grad(score, has_aux=True)(x_TD)
    return Pass(logits_TV, model.states(params, x_TD), gradient_TD)

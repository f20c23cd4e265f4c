"""What the parity tests and the table in docs/parity.md measure: one tiny checkpoint, in transformers and here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from closeness import relative
from passes import forward_and_backward
from transformers import AutoConfig, AutoModelForCausalLM

from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.decoder import Model

POSITIONS = 20
TEXTS = 8  # the errors of bfloat16 spread fivefold from one text to the next: medians over so many are compared
STD = 0.25  # of matrices and biases: makes attention rows sharp, so that a mistake in RoPE or in the mask shows


class Errors(NamedTuple):
    """Relative errors ‖a − b‖ / ‖b‖ against transformers in float32.

    Attributes:
      embed: of the input vectors of all token ids, the worse of float32 and bfloat16, each against transformers' own.
      logits, hidden, gradient: in float32, the worst of `TEXTS` texts; the worst hidden state of all; with respect to
        the input vectors.
      bf16_logits, bf16_gradient: ours in bfloat16, the median of the texts.
      torch_bf16_logits, torch_bf16_gradient: transformers' own in bfloat16, likewise.
    """

    embed: float
    logits: float
    hidden: float
    gradient: float
    bf16_logits: float
    bf16_gradient: float
    torch_bf16_logits: float
    torch_bf16_gradient: float


class Passes(NamedTuple):
    """Logits (G, T, V), hidden states (G, T, D) and the gradient (G, T, D) of sum(logits · cotangent), in float32."""

    logits: np.ndarray
    hidden: list[np.ndarray]
    gradient: np.ndarray


def build(model_type: str, options: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model in float32 whose every weight is random, the scales of norms (about one) and biases too."""
    config = AutoConfig.for_model(model_type, **options)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    around_zero = model_type.startswith("gemma")  # whose norms multiply by 1 + weight
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            mean = 1.0 if weight.ndim == 1 and name.endswith("weight") and not around_zero else 0.0
            weight.copy_(mean + STD * torch.randn(weight.shape, generator=generator))
    return theirs.requires_grad_(False)


def save(theirs: Any, folder: Path, **options: Any) -> Path:
    """Write a transformers model as a checkpoint folder."""
    theirs.save_pretrained(folder, **options)
    return folder


def inputs(theirs: Any, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Random input vectors (G, T, D) and cotangents (G, T, V)."""
    random = np.random.default_rng(seed)
    vocab, width = theirs.get_input_embeddings().weight.shape
    x_GTD, cotangent_GTV = (random.standard_normal((TEXTS, POSITIONS, n)).astype(np.float32) for n in (width, vocab))
    return x_GTD, cotangent_GTV


def run_theirs(theirs: Any, x_GTD: np.ndarray, cotangent_GTV: np.ndarray) -> Passes:
    """A forward and backward pass of transformers, in the dtype of its weights."""
    x = torch.from_numpy(x_GTD).to(next(theirs.parameters()).dtype).requires_grad_()
    output = theirs(inputs_embeds=x, output_hidden_states=True, use_cache=False)
    (gradient,) = torch.autograd.grad((output.logits.float() * torch.from_numpy(cotangent_GTV)).sum(), x)
    hidden = [state.detach().float().numpy() for state in output.hidden_states]
    return Passes(output.logits.detach().float().numpy(), hidden, gradient.float().numpy())


def run_ours(ours: Model, x_GTD: np.ndarray, cotangent_GTV: np.ndarray) -> Passes:
    """The same here, in the dtype of the weights."""
    x_GTD = jnp.asarray(x_GTD, ours.dtype)
    run = jax.jit(jax.vmap(partial(forward_and_backward, ours), in_axes=(None, 0, 0)))
    made = jax.tree.map(lambda array: np.asarray(array, np.float32), run(ours.params, x_GTD, cotangent_GTV))
    return Passes(made.logits_TV, list(made.states.hidden_LTD.swapaxes(0, 1)), made.gradient_TD)


def by_text(a_GTX: np.ndarray, b_GTX: np.ndarray) -> list[float]:
    """Relative error of each text."""
    return [relative(a, b) for a, b in zip(a_GTX, b_GTX, strict=True)]


def embed_error(ours: Model, theirs: Any) -> float:
    """Relative error of the input vectors of all token ids, both models in one dtype."""
    tokens = np.arange(ours.config.vocab_size)
    embedded = theirs.get_input_embeddings()(torch.from_numpy(tokens)).float().numpy()
    return relative(np.asarray(jax.jit(ours.embed)(ours.params, tokens), np.float32), embedded)


def measure(theirs: Any, folder: Path) -> Errors:
    """Errors of the checkpoint in `folder`, which `theirs` was saved to, loaded here; leaves `theirs` in bfloat16."""
    ours, rounded = load_model(folder, dtype="float32"), load_model(folder, dtype="bfloat16")
    x_GTD, cotangent_GTV = inputs(theirs)
    reference, here = run_theirs(theirs, x_GTD, cotangent_GTV), run_ours(ours, x_GTD, cotangent_GTV)
    embed = embed_error(ours, theirs)
    pairs = list(zip(here.hidden, reference.hidden, strict=True))
    if ours.config.embed_width is not None:  # transformers' last state is already projected to the input width
        pairs.pop()
    low = run_ours(rounded, x_GTD, cotangent_GTV)
    their_low = run_theirs(theirs.to(torch.bfloat16), x_GTD, cotangent_GTV)
    return Errors(
        embed=max(embed, embed_error(rounded, theirs)),
        logits=max(by_text(here.logits, reference.logits)),
        hidden=max(max(by_text(a, b)) for a, b in pairs),
        gradient=max(by_text(here.gradient, reference.gradient)),
        bf16_logits=float(np.median(by_text(low.logits, reference.logits))),
        bf16_gradient=float(np.median(by_text(low.gradient, reference.gradient))),
        torch_bf16_logits=float(np.median(by_text(their_low.logits, reference.logits))),
        torch_bf16_gradient=float(np.median(by_text(their_low.gradient, reference.gradient))),
    )

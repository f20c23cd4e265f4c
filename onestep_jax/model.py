"""The frozen LLM as pure functions of (params, input vectors).

Dimension letters, used as suffixes of array names throughout the package:
  B groups (slots)      T positions (the paper's N)   H query heads       F feed-forward width
  G texts in a group    S key positions               K key/value heads   V vocabulary
  L layers              D width of an input vector    C width of a head

Everything here is written for one text; `jax.vmap` runs it over many. `params` is always the first argument, so that
XLA sees the weights as an input and not as a constant, and it is never differentiated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onestep_jax.config import ModelConfig
from onestep_jax.layers import INIT, Array, Block, DotGeneral, RMSNorm

Params: TypeAlias = dict[str, Any]


class States(NamedTuple):
    """What a forward pass went through.

    Attributes:
      hidden_LTD: (L + 1, T, D): the input vectors, the output of every block but the last, and the final norm's
        output (the convention of transformers' `hidden_states`).
      attention_LHTS: (L, H, T, S) attention weights, each row summing to one.
    """

    hidden_LTD: Array
    attention_LHTS: Array


class Decoder(nn.Module):
    """A causal decoder over input vectors; token ids enter only through `embed`."""

    config: ModelConfig
    dot_general: DotGeneral = jax.lax.dot_general

    def setup(self) -> None:
        c = self.config
        self.table = nn.Embed(c.vocab_size, c.width, embedding_init=INIT, name="embed")
        self.blocks = [Block(c, self.dot_general, name=f"block_{i}") for i in range(c.layers)]
        self.norm = RMSNorm(c.norm_eps, name="norm")
        if not c.tied:
            self.unembed = nn.Dense(c.vocab_size, False, dot_general=self.dot_general, kernel_init=INIT, name="head")

    def embed(self, tokens_T: Array) -> Array:
        return self.table(tokens_T)

    def hidden(self, x_TD: Array) -> Array:
        for block in self.blocks:
            self.sow("intermediates", "hidden", x_TD)
            x_TD = block(x_TD)
        return self.norm(x_TD)

    def head(self, h_TD: Array) -> Array:
        if not self.config.tied:
            return self.unembed(h_TD)
        contract_last = (((1,), (1,)), ((), ()))
        return self.dot_general(h_TD, self.table.embedding, contract_last)

    def __call__(self, x_TD: Array) -> Array:
        return self.head(self.hidden(x_TD))


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen LLM: its architecture, its weights, its tokenizer and the pure functions over them.

    Attributes:
      config: the architecture.
      params: frozen weights, a nested dict of arrays.
      tokenizer: a transformers tokenizer, or None if the checkpoint has none (token ids still work).
      source: where it was loaded from: a folder, a hub id or "default".
      fingerprint: 16 hexadecimal digits that change with the architecture or any weight.
    """

    config: ModelConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(default=None, repr=False)
    source: str = ""
    fingerprint: str = ""

    @property
    def embed_width(self) -> int:
        """Width of an input vector (D)."""
        return self.config.width

    @property
    def dtype(self) -> Any:
        """dtype of the weights, which activations follow."""
        return self.params["embed"]["embedding"].dtype

    def embed(self, params: Params, tokens_T: Array) -> Array:
        """Input vectors of token ids: (T,) integers → (T, D)."""
        return Decoder(self.config).apply({"params": params}, tokens_T, method="embed")  # pyright: ignore[reportReturnType]

    def hidden(self, params: Params, x_TD: Array) -> Array:
        """Output of the final norm: (T, D) → (T, D)."""
        return Decoder(self.config).apply({"params": params}, x_TD, method="hidden")  # pyright: ignore[reportReturnType]

    def head(self, params: Params, h_TD: Array) -> Array:
        """Logits of normed hidden states: (T, D) → (T, V), in the dtype of the weights."""
        return Decoder(self.config).apply({"params": params}, h_TD, method="head")  # pyright: ignore[reportReturnType]

    def apply(self, params: Params, x_TD: Array) -> Array:
        """Logits of input vectors under the causal mask: (T, D) → (T, V); row t is computed from x[:t + 1]."""
        return self.head(params, self.hidden(params, x_TD))

    def states(self, params: Params, x_TD: Array) -> States:
        """Hidden states and attention weights of one forward pass over (T, D) input vectors."""
        last_TD, sown = Decoder(self.config).apply({"params": params}, x_TD, method="hidden", mutable=["intermediates"])
        record: Any = sown["intermediates"]
        blocks = [record[f"block_{i}"]["attention"]["attention"][0] for i in range(self.config.layers)]
        return States(jnp.stack([*record["hidden"], last_TD]), jnp.stack(blocks))


def parameter_counts(model: Model) -> dict[str, int]:
    """Numbers of weights: "total", and "touched" by one optimisation step.

    The embedding table is touched only where it is also the output head: input vectors are trained, not looked up.
    """
    total = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    table = model.params["embed"]["embedding"].size
    return {"total": total, "touched": total if model.config.tied else total - table}


def input_scale(model: Model) -> float:
    """Standard deviation of the components of the model's input embeddings, over the whole vocabulary."""

    @jax.jit
    def moments(params: Params, ids: Array) -> tuple[Array, Array]:
        x = model.embed(params, ids).astype(jnp.float32)
        return x.sum(), jnp.square(x).sum()

    vocab, total, squares = model.config.vocab_size, 0.0, 0.0
    for first in range(0, vocab, 8192):
        ids = jnp.arange(first, min(vocab, first + 8192))
        sums = moments(model.params, ids)
        total, squares = total + float(sums[0]), squares + float(sums[1])
    count = vocab * model.embed_width
    return float(np.sqrt(squares / count - (total / count) ** 2))

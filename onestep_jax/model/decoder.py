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
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.devices.weight_split import STACK, settle
from onestep_jax.model.config import ModelConfig
from onestep_jax.model.layers import INIT, Array, Block, DotGeneral, Linear, Norm, matmul_transposed, soft_cap
from onestep_jax.model.stacked import by_layer, is_stacked, scan_layers, stack_layers, stacked_layers

Params: TypeAlias = dict[str, Any]


class HiddenStates(NamedTuple):
    """Hidden states and attention weights of a forward pass.

    Attributes:
      hidden_LTD: (L + 1, T, D): what enters the first block (the input vectors, projected and with learned positions
        where the architecture has them), the output of every block but the last, and the final norm's output (the
        convention of transformers' `hidden_states`).
      attention_LHTS: (L, H, T, S) attention weights, each row summing to one.
    """

    hidden_LTD: Array
    attention_LHTS: Array


class Past(NamedTuple):
    """Keys and values of a prefix: frozen tokens that stand before an input.

    They do not depend on what follows, so they are computed once and not with every input.

    Attributes:
      cache: block → attention → "k", "v": (K, P, C); in the layout of the params, see `stacked`.
      length: () int32, tokens of the prefix, at most P; the rows behind them have no meaning. None where all P are
        tokens.
    """

    cache: Any
    length: Array | None = None

    @property
    def rows(self) -> int:
        """P."""
        return jax.tree.leaves(self.cache)[0].shape[-2]

    def with_room(self, positions: int) -> Any:
        """The cache with zero rows for `positions` inputs behind its own."""
        return jax.tree.map(
            lambda kept: jnp.pad(kept, [(0, 0)] * (kept.ndim - 2) + [(0, positions), (0, 0)]), self.cache
        )


# Layers of one kind are traced once and not once each: tracing 30 of them takes longer than compiling them.
_BLOCK, _REMAT_BLOCK = nn.jit(Block), nn.jit(nn.remat(Block))


class Decoder(nn.Module):
    """A causal decoder over input vectors; token ids enter only through `embed`.

    Its params, and the other collections, are by layer or stacked (see `stacked`): with a stack it scans over it.

    With `remat` a backward pass computes the activations inside each block again instead of keeping them. `attention`
    is "plain" or a key of `fused_attention.KERNELS`.
    """

    config: ModelConfig
    dot_general: DotGeneral = jax.lax.dot_general
    remat: bool = False
    attention: str = "plain"

    def setup(self) -> None:
        c, block = self.config, _REMAT_BLOCK if self.remat else _BLOCK
        self.table = nn.Embed(c.vocab_size, c.embed_width or c.width, embedding_init=INIT, name="embed")
        if c.position_rows is not None:
            self.positions = nn.Embed(c.position_rows, c.width, embedding_init=INIT)
        if c.embed_width is not None:
            self.project_in = Linear(c.width, dot_general=self.dot_general)
            self.project_out = Linear(c.embed_width, dot_general=self.dot_general)
        first = stacked_layers(c) if self.has_variable("params", STACK) else 0
        if first:
            self.stack = scan_layers(c, self.dot_general, self.remat, self.attention)
        self.blocks = [
            block(c, c.layer(i), dot_general=self.dot_general, kernel=self.attention, name=f"block_{i}")
            for i in range(first, c.layers)
        ]
        if c.final_norm:
            self.norm = Norm(c.norm, c.norm_eps)
        if not c.tied:
            self.unembed = Linear(c.vocab_size, dot_general=self.dot_general, kv_heads=c.kv_heads, name="head")

    def embed(self, tokens_T: Array) -> Array:
        x_TD = self.table(tokens_T)
        return x_TD * jnp.asarray(self.config.embed_scale, x_TD.dtype)

    def hidden(self, x_TD: Array, start: Array | int = 0) -> Array:
        c = self.config
        if c.embed_width is not None:
            x_TD = self.project_in(x_TD)
        if c.position_rows is not None:
            x_TD = x_TD + self.positions(start + c.position_offset + jnp.arange(x_TD.shape[0]))
        if len(self.blocks) < c.layers:
            x_TD, _ = self.stack(x_TD, start)
        for block in self.blocks:
            self.sow("intermediates", "hidden", x_TD)
            x_TD = block(x_TD, start)
        return self.norm(x_TD) if c.final_norm else x_TD

    def head(self, h_TD: Array) -> Array:
        c = self.config
        if c.embed_width is not None:
            h_TD = self.project_out(h_TD)
        if c.tied:
            logits_TV = settle(matmul_transposed(h_TD, self.table.embedding, self.dot_general), "head", c.kv_heads)
        else:
            logits_TV = self.unembed(h_TD)
        return soft_cap(logits_TV, c.logit_cap)

    def __call__(self, x_TD: Array) -> Array:
        return self.head(self.hidden(x_TD))


def empty_cache(config: ModelConfig, params: Params, positions: int, dtype: Any) -> Any:
    """Zero keys and values of every block for one text: block → attention → "k", "v", each (K, positions, C).

    The layout is that of the params, see `stacked`.
    """
    zeros = jnp.zeros((config.kv_heads, positions, config.head_dim), dtype)
    cache = {f"block_{i}": {"attention": {"k": zeros, "v": zeros}} for i in range(config.layers)}
    return stack_layers(config, cache) if is_stacked(params) else cache


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a decoder, by path ("block_0/attention/q/kernel"); no array is made."""

    def all_parts(decoder: Decoder, tokens_T: Array) -> Array:
        return decoder(decoder.embed(tokens_T))

    init = functools.partial(Decoder(config).init, method=all_parts)
    tree = jax.eval_shape(init, jax.random.key(0), jnp.zeros(1, jnp.int32))["params"]
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


@dataclasses.dataclass(frozen=True)
class Network:
    """An architecture as pure functions of (params, input vectors); hashable, so that it can identify a program.

    Attributes:
      config: the architecture.
      remat: rematerialisation: whether a backward pass computes the activations inside each block again instead of
        keeping them; half as much work again for a fraction of the memory, and the same numbers.
      attention: "plain", or a kernel of `fused_attention.KERNELS`: "cudnn" on a GPU in bfloat16, "splash" on a TPU.
    """

    config: ModelConfig
    remat: bool = dataclasses.field(default=False, kw_only=True)
    attention: str = dataclasses.field(default="plain", kw_only=True)

    @property
    def embed_width(self) -> int:
        """Width of an input vector (D)."""
        return self.config.embed_width or self.config.width

    def embed(self, params: Params, tokens_T: Array) -> Array:
        """Input vectors of token ids: (T,) integers → (T, D)."""
        return Decoder(self.config).apply({"params": params}, tokens_T, method="embed")  # pyright: ignore[reportReturnType]

    def hidden(
        self, params: Params, x_TD: Array, past: Past | None = None, adapters: Any = None, masks: Any = None
    ) -> Array:
        """Output of the last block, and of the final norm if there is one: (T, D) → (T, D).

        With a `past` the inputs stand behind its prefix, and attention is plain. `adapters` are low-rank matrices
        beside the kernels, see `layers.Linear`: block → … → "down", "up". `masks` hide rows from queries, see
        `layers.Attention`: block → "attention" → "seen" (T, S), S the rows of the past and of the inputs.
        """
        decoder = Decoder(self.config, remat=self.remat, attention=self.attention)
        given = {name: tree for name, tree in (("adapters", adapters), ("masks", masks)) if tree is not None}
        if is_stacked(params):
            given = {name: stack_layers(self.config, tree) for name, tree in given.items()}
        variables = {"params": params} | given
        if past is None:
            return decoder.apply(variables, x_TD, method="hidden")  # pyright: ignore[reportReturnType]
        # The inputs take the rows from the prefix's end on. What rows of the padding are left lie behind every query.
        variables["cache"] = past.with_room(len(x_TD))
        start = past.rows if past.length is None else past.length
        return decoder.apply(variables, x_TD, start, method="hidden")  # pyright: ignore[reportReturnType]

    def past(self, params: Params, tokens_P: Array, length: Array | None = None) -> Past:
        """Keys and values of a prefix of `length` tokens, padded to P; of P tokens without a length."""
        decoder, x_PD = Decoder(self.config), self.embed(params, tokens_P)
        variables = {"params": params, "cache": empty_cache(self.config, params, len(x_PD), x_PD.dtype)}
        _, made = decoder.apply(variables, x_PD, 0, method="hidden", mutable=["cache"])
        return Past(made["cache"], length)

    def head(self, params: Params, h_TD: Array) -> Array:
        """Logits of normed hidden states: (T, D) → (T, V), in the dtype of the weights."""
        return Decoder(self.config).apply({"params": params}, h_TD, method="head")  # pyright: ignore[reportReturnType]

    def apply(self, params: Params, x_TD: Array) -> Array:
        """Logits of input vectors under the causal mask: (T, D) → (T, V); row t is computed from x[:t + 1]."""
        return self.head(params, self.hidden(params, x_TD))

    def states(self, params: Params, x_TD: Array) -> HiddenStates:
        """Hidden states and attention weights of one forward pass over (T, D) input vectors."""
        last_TD, sown = Decoder(self.config).apply({"params": params}, x_TD, method="hidden", mutable=["intermediates"])
        record: Any = sown["intermediates"]
        hidden, stack = list(record.get("hidden", ())), record.get(STACK)
        if stack is not None:  # "hidden": an array (R, T, D) for each block of the period
            hidden = [*jnp.stack(stack.pop("hidden"), axis=1).reshape(-1, *x_TD.shape[:1], last_TD.shape[-1]), *hidden]
        record = by_layer(self.config, record)
        blocks = [record[f"block_{i}"]["attention"]["attention"][0] for i in range(self.config.layers)]
        return HiddenStates(hidden_LTD=jnp.stack([*hidden, last_TD]), attention_LHTS=jnp.stack(blocks))


@dataclasses.dataclass(frozen=True)
class Model(Network):
    """A frozen LLM: its architecture with the pure functions over it, its weights and its tokenizer.

    Attributes:
      config: the architecture.
      params: frozen weights, a nested dict of arrays, by layer or stacked (see `stacked`).
      tokenizer: a transformers tokenizer, or None if the checkpoint has none (token ids still work).
      source: where it was loaded from: a folder, a GGUF file, a hub id or "default".
      fingerprint: 16 hexadecimal digits that change with the architecture or any weight.
      described: the contents of its config.json.
      stop_tokens: ids that end a generated text.
      revision: branch, tag or commit of a hub id, as it was asked for; None for the hub's own choice, and elsewhere.
    """

    params: Params = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(default=None, repr=False)
    source: str = ""
    fingerprint: str = ""
    described: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    stop_tokens: tuple[int, ...] = ()
    revision: str | None = None

    @property
    def network(self) -> Network:
        """The functions alone, without the weights, for values that outlive the weights."""
        return Network(self.config, remat=self.remat, attention=self.attention)

    @property
    def dtype(self) -> Any:
        """dtype of the weights and of the activations."""
        return weights_dtype(self.params)


def weights_dtype(params: Params) -> Any:
    """dtype of frozen weights."""
    return params["embed"]["embedding"].dtype


def weights_bytes(model: Model) -> int:
    """Bytes of all weights, each counted once."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


@pinned
def input_scale(model: Model) -> float:
    """Standard deviation of the components of the model's input embeddings, over the whole vocabulary."""
    vocab, total, squares = model.config.vocab_size, 0.0, 0.0
    for first in range(0, vocab, 8192):
        ids = jnp.arange(first, min(vocab, first + 8192))
        sums = _moments(model.network, model.params, ids)
        total, squares = total + float(sums[0]), squares + float(sums[1])
    count = vocab * model.embed_width
    return float(np.sqrt(squares / count - (total / count) ** 2))


@functools.partial(jax.jit, static_argnums=0)
def _moments(network: Network, params: Params, ids: Array) -> tuple[Array, Array]:
    """Sums of the components of embeddings, and of their squares."""
    x = network.embed(params, ids).astype(jnp.float32)
    return x.sum(), jnp.square(x).sum()

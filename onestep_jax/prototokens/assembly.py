"""What enters the model: the vectors of a text at their places, for programs that know nothing of arrangements."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.errors import UserError, shown
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.reconstruction import behind_prefix, check_model
from onestep_jax.prototokens.schemes import Scheme, from_description
from onestep_jax.store.export import InputRows
from onestep_jax.store.results import Results, TextResult


@pinned
def input_rows(model: Model, results: Results, scheme: Scheme | None = None) -> list[InputRows]:
    """The input vectors of each text, its prefix first: [p_1 … p_P] [e] [m]×(N−1) in the paper's arrangement.

    Args:
      model: the model that the vectors were fitted on; its embeddings stand for the prefix, and for the text itself
        where the scheme is teacher-forced.
      results: of `fit` or `encode`, or read from a run directory.
      scheme: the arrangement; by default the one that `results` name.

    Returns:
      One for each text, (P + N + extra, D) float32. The outputs from `first` on predict its N tokens.

    Raises:
      UserError: if the vectors belong to another model, or a scheme of yours does not read its tokens in a row.
    """
    check_model(model, results)
    scheme = scheme or from_description(results.scheme)
    return [_of_text(model, text, scheme) for text in results]


def _of_text(model: Model, text: TextResult, scheme: Scheme) -> InputRows:
    count = len(text.tokens)
    leaves: dict[str, Any] = {name: jnp.asarray(text.vectors[name], jnp.float32) for name in scheme.leaf_shapes(1)}
    if scheme.teacher_forced:
        text_TD = model.embed(model.params, jnp.asarray(text.tokens, jnp.int32)).astype(jnp.float32)
    else:
        text_TD = jnp.zeros((count, model.embed_width), jnp.float32)
    x_TD = np.asarray(scheme.inputs(leaves, text_TD, jnp.int32(count)))
    reads = np.asarray(scheme.reads(count))
    if not np.array_equal(reads, reads[0] + np.arange(count)):
        told = f"reads({count}) = {shown(reads.tolist())}"
        raise UserError(
            f"{scheme.notation}: {told}; a file names the first row alone, expected the next ones behind it"
        )
    return InputRows(behind_prefix(model, text, x_TD), len(text.prefix) + int(reads[0]))

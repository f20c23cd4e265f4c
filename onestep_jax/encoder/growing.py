"""An encoder that goes on from another one, for longer texts or with more corrections."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from onestep_jax.encoder.design import Design, Encoder, Weights
from onestep_jax.errors import UserError

GROWS = ("length", "corrections")
_OF_THE_TRAINING = "temperature"  # which may be another one than before


def grown_design(start: Encoder, design: Design | None) -> Design:
    """The design of an encoder that begins with the weights of another; by default the same.

    Raises:
      UserError: if more than `GROWS` differs.
    """
    if design is None:
        return start.design
    there, here = start.design.describe(), design.describe()
    differences = [name for name in there if name not in (*GROWS, _OF_THE_TRAINING) and there[name] != here[name]]
    if differences:
        told = "; ".join(f"{name}: {there[name]!r} there, {here[name]!r} here" for name in differences)
        raise UserError(f"start: an encoder can grow in {' and '.join(GROWS)} alone; {told}")
    return dataclasses.replace(start.design, **{name: getattr(design, name) for name in (*GROWS, _OF_THE_TRAINING)})


def grown_weights(start: Encoder, fresh: Weights) -> Weights:
    """The weights of another encoder in the shapes of fresh ones.

    Positions that are new add nothing at first; a correction that is new begins as the last one that there was.
    """
    kept: dict[Any, Any] = flatten_dict(start.weights)
    leaves: dict[Any, Any] = flatten_dict(fresh)
    found = {}
    for path, leaf in leaves.items():
        if path not in kept:  # the corrections of an encoder that had none
            found[path] = leaf
            continue
        old, count = np.asarray(kept[path], np.float32), leaf.shape[0] if leaf.ndim else 0
        if old.shape == leaf.shape:
            found[path] = old
        elif path[0] == "pool":
            new = np.zeros((max(count - len(old), 0), *old.shape[1:]), np.float32)
            found[path] = np.concatenate([old[:count], new])
        else:
            found[path] = np.concatenate([old[:count], np.repeat(old[-1:], max(count - len(old), 0), axis=0)])
    return unflatten_dict(found)

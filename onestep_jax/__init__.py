"""One-step text generation: a frozen LLM emits an exact text in one forward pass from two learned input vectors."""

from __future__ import annotations

import importlib

# For type checkers, without `typing`: a third of the time until the command line hears signals would go into it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from onestep_jax.encoder.design import Design, Encoder
    from onestep_jax.encoder.encode import encode
    from onestep_jax.encoder.folder import load_encoder, save_encoder
    from onestep_jax.encoder.recipe import Recipe
    from onestep_jax.encoder.train import train_encoder
    from onestep_jax.errors import Interrupted, UserError
    from onestep_jax.fitting.fitting import fit
    from onestep_jax.fitting.optimizers import PRESETS, Optimizer, Preset, Schedule
    from onestep_jax.fitting.progress import Progress
    from onestep_jax.model.checkpoint import load_model, save_model
    from onestep_jax.model.decoder import Model
    from onestep_jax.model.generation import Generated, generate
    from onestep_jax.model.likelihood import TextNats, text_nats
    from onestep_jax.prototokens.auxiliary import Anchor, Relational
    from onestep_jax.prototokens.reconstruction import Decoded, decode, regenerate
    from onestep_jax.prototokens.schemes import Cramming, ManyVectors, OneStep, Projected
    from onestep_jax.store.reading import read_results
    from onestep_jax.store.results import Results, TextResult

# Wing and file → names. A name is imported when it is first asked for: JAX takes seconds, in which the command line
# must already answer signals.
_HOMES = {
    "encoder.design": ("Design", "Encoder"),
    "encoder.encode": ("encode",),
    "encoder.folder": ("load_encoder", "save_encoder"),
    "encoder.recipe": ("Recipe",),
    "encoder.train": ("train_encoder",),
    "errors": ("Interrupted", "UserError"),
    "fitting.fitting": ("fit",),
    "fitting.optimizers": ("PRESETS", "Optimizer", "Preset", "Schedule"),
    "fitting.progress": ("Progress",),
    "model.checkpoint": ("load_model", "save_model"),
    "model.decoder": ("Model",),
    "model.generation": ("Generated", "generate"),
    "model.likelihood": ("TextNats", "text_nats"),
    "prototokens.auxiliary": ("Anchor", "Relational"),
    "prototokens.reconstruction": ("Decoded", "decode", "regenerate"),
    "prototokens.schemes": ("Cramming", "ManyVectors", "OneStep", "Projected"),
    "store.reading": ("read_results",),
    "store.results": ("Results", "TextResult"),
}

__all__ = [
    "PRESETS",
    "Anchor",
    "Cramming",
    "Decoded",
    "Design",
    "Encoder",
    "Generated",
    "Interrupted",
    "ManyVectors",
    "Model",
    "OneStep",
    "Optimizer",
    "Preset",
    "Progress",
    "Projected",
    "Recipe",
    "Relational",
    "Results",
    "Schedule",
    "TextNats",
    "TextResult",
    "UserError",
    "decode",
    "encode",
    "fit",
    "generate",
    "load_encoder",
    "load_model",
    "read_results",
    "regenerate",
    "save_encoder",
    "save_model",
    "text_nats",
    "train_encoder",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(importlib.import_module(f"onestep_jax.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""One-step text generation: a frozen LLM emits an exact text in one forward pass from two learned input vectors."""

from onestep_jax.errors import Interrupted, UserError
from onestep_jax.fitting.fitting import fit
from onestep_jax.fitting.optimizers import PRESETS, Optimizer, Preset, Schedule
from onestep_jax.fitting.progress import Progress
from onestep_jax.model.checkpoint import load_model, save_model
from onestep_jax.model.decoder import Model
from onestep_jax.model.generation import Generated, generate
from onestep_jax.model.likelihood import TextNats, text_nats
from onestep_jax.prototokens.reconstruction import Decoded, decode, regenerate
from onestep_jax.prototokens.schemes import Cramming, OneStep
from onestep_jax.store.reading import read_results
from onestep_jax.store.results import Results, TextResult

__all__ = [
    "PRESETS",
    "Cramming",
    "Decoded",
    "Generated",
    "Interrupted",
    "Model",
    "OneStep",
    "Optimizer",
    "Preset",
    "Progress",
    "Results",
    "Schedule",
    "TextNats",
    "TextResult",
    "UserError",
    "decode",
    "fit",
    "generate",
    "load_model",
    "read_results",
    "regenerate",
    "save_model",
    "text_nats",
]

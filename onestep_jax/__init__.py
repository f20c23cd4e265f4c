"""One-step text generation: a frozen LLM emits an exact text in one forward pass from two learned input vectors."""

from onestep_jax.checkpoint import load_model, save_model
from onestep_jax.config import Interrupted, UserError
from onestep_jax.decoding import Decoded, decode, regenerate
from onestep_jax.fitting import fit
from onestep_jax.generation import Generated, generate
from onestep_jax.likelihood import TextNats, text_nats
from onestep_jax.model import Model
from onestep_jax.optimizers import PRESETS, Optimizer, Preset, Schedule
from onestep_jax.records import read_results
from onestep_jax.results import Results, TextResult
from onestep_jax.schemes import Cramming, OneStep
from onestep_jax.sweep import Progress

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

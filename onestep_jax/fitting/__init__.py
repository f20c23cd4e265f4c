"""Finding proto-tokens for many texts: `fit`, engine, slots, optimisers, sizes, several processes.

May import `errors`, `tokens`, `devices`, `store`, `model`, `prototokens`.
"""

from onestep_jax.fitting.fitting import fit, run_plan
from onestep_jax.fitting.optimizers import PRESETS, Optimizer, Preset, Schedule, preset_of
from onestep_jax.fitting.plan import FitPlan, resolve
from onestep_jax.fitting.progress import Progress
from onestep_jax.fitting.slots import make_problem

__all__ = [
    "PRESETS",
    "FitPlan",
    "Optimizer",
    "Preset",
    "Progress",
    "Schedule",
    "fit",
    "make_problem",
    "preset_of",
    "resolve",
    "run_plan",
]

"""Proto-tokens: arrangements (Table 1), loss and accuracy of a text (Eq. 1 and 2), losses beside them, reconstruction.

May import `errors`, `tokens`, `devices`, `store`, `model`.
"""

from onestep_jax.prototokens.objective import score_group, score_text
from onestep_jax.prototokens.reconstruction import Decoded, decode, regenerate
from onestep_jax.prototokens.schemes import ARRANGEMENTS, Cramming, ManyVectors, OneStep, Projected, Scheme
from onestep_jax.tokens import as_text

__all__ = [
    "ARRANGEMENTS",
    "Cramming",
    "Decoded",
    "ManyVectors",
    "OneStep",
    "Projected",
    "Scheme",
    "as_text",
    "decode",
    "regenerate",
    "score_group",
    "score_text",
]

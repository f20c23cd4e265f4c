"""Where texts come from: files, the hub, the paper's sources; their embeddings by a teacher.

May import `errors`, `tokens`, `model`.
"""

from onestep_jax.texts.corpora import contexts, continuations, continued_texts, is_named, load_tokens
from onestep_jax.texts.files import read_source

__all__ = ["contexts", "continuations", "continued_texts", "is_named", "load_tokens", "read_source"]

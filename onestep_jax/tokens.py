"""Token ids: from strings, checked, their identities, and the padded lengths that they share.

May import `errors`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from onestep_jax.errors import UserError


def tokenise(tokenizer: Any, texts: Sequence[str], length: int | None) -> list[np.ndarray]:
    """Token ids of each text, without special tokens, cut to the first `length`: (≤ length,) int32 each.

    Raises:
      UserError: if a text has no token.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return check_tokens([np.asarray(ids[:length], np.int32) for ids in encoded], None, None)


def check_tokens(tokens: Sequence[Any], vocab_size: int | None, context: int | None) -> list[np.ndarray]:
    """Token lists as int32 arrays.

    Raises:
      UserError: if one is empty, longer than the model's context, or holds an id that the model does not have.
    """
    arrays = [np.asarray(ids, np.int32) for ids in tokens]
    for i, array in enumerate(arrays):
        if array.ndim != 1 or not len(array):
            raise UserError(f"text {i}: empty text; expected at least one token")
        if context is not None and len(array) > context:
            raise UserError(f"text {i}: {len(array)} tokens, the model's context has {context}; give a smaller length")
        if vocab_size is not None and not 0 <= array.min() <= array.max() < vocab_size:
            bad = array[(array < 0) | (array >= vocab_size)][0]
            raise UserError(f"text {i}: token id {bad} is not in the model's vocabulary of {vocab_size}")
    return arrays


def text_ids(tokens: Sequence[np.ndarray]) -> list[str]:
    """Identity of each text: the first 16 hexadecimal digits of the SHA-256 of its ids, "-k" for the k-th repeat.

    The ids are hashed as little-endian int32.
    """
    seen: Counter[str] = Counter()
    ids = []
    for array in tokens:
        digest = hashlib.sha256(np.ascontiguousarray(array, dtype="<i4").tobytes()).hexdigest()[:16]
        ids.append(digest if not seen[digest] else f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return ids


def id_words(text_id: str, seed: int) -> np.ndarray:
    """(4,) uint32: the halves of the hash, the number of the duplicate, the seed; what a text's randomness hangs on."""
    digest, _, duplicate = text_id.partition("-")
    return np.array([int(digest[:8], 16), int(digest[8:], 16), int(duplicate or 0), seed], np.uint32)


def buckets(lengths: Sequence[int], boundary: int | None = None, extra: int = 0) -> list[int]:
    """Padded length of each text: the least of 8, 16, …, then steps of an eighth, that holds it.

    Never more than the longest text, so that texts of one length are not padded at all; and padding does not lead over
    `boundary` (`ModelConfig.boundary`), where the model itself changes, counting the `extra` inputs of a text.
    """
    longest = max(lengths, default=1)
    ladder = list(range(8, 64, 8))
    for octave in itertools.count():
        ladder += [64 * 2**octave + 8 * 2**octave * eighth for eighth in range(8)]
        if ladder[-1] >= longest:
            break
    if boundary is not None and boundary > extra:
        ladder = sorted([*ladder, boundary - extra])
    return [min(longest, next(rung for rung in ladder if rung >= length)) for length in lengths]

"""Token ids: from strings, checked, identified, and put into batches of equal padded length.

May import `errors`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from onestep_jax.errors import UserError, check_list, shown


def tokenise(tokenizer: Any, texts: Sequence[str], length: int | None) -> list[np.ndarray]:
    """Token ids of each text, without special tokens, cut to the first `length`: (≤ length,) int32 each.

    Raises:
      UserError: if a text has no token.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return check_tokens([np.asarray(ids[:length], np.int32) for ids in encoded], None, None)


def as_text(tokenizer: Any, ids: Iterable[int]) -> str:
    """String of token ids, with special tokens shown and spaces as they are."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)


def check_tokens(tokens: Sequence[Any], vocab_size: int | None, context: int | None) -> list[np.ndarray]:
    """Token lists as int32 arrays.

    Raises:
      UserError: if one is empty, longer than the model's context, no list of whole numbers, or holds an id that the
        model does not have.
    """
    listed = check_list("lists of token ids", "tokens", tokens)
    arrays = [_whole_numbers(f"text {i}", ids) for i, ids in enumerate(listed)]
    for i, array in enumerate(arrays):
        if not array.size:
            raise UserError(f"text {i}: empty text; expected at least one token")
        if context is not None and len(array) > context:
            room = f"the model's context has room for {context}"
            raise UserError(f"text {i}: {len(array)} tokens, {room}; give a smaller length")
        _check_vocabulary(f"text {i}", array, vocab_size)
    return [array.astype(np.int32) for array in arrays]


def check_prefixes(prefixes: Sequence[Any], count: int, vocab_size: int) -> list[np.ndarray]:
    """What stands before each of so many texts, as int32 arrays that may be empty.

    Raises:
      UserError: for another number of them, or one that is no list of whole numbers or holds an id that the model does
        not have.
    """
    listed = check_list("a list of token ids for each text", "prefixes", prefixes)
    if len(listed) != count:
        raise UserError(f"{len(listed)} prefixes: expected one for each of {count} texts")
    arrays = [_whole_numbers(f"prefix {i}", ids) for i, ids in enumerate(listed)]
    for i, array in enumerate(arrays):
        _check_vocabulary(f"prefix {i}", array, vocab_size)
    return [array.astype(np.int32) for array in arrays]


def _check_vocabulary(name: str, ids: np.ndarray, vocab_size: int | None) -> None:
    if vocab_size is not None and ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        bad = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise UserError(f"{name}: token id {bad} is not in the model's vocabulary of {vocab_size}")


def _whole_numbers(name: str, ids: Any) -> np.ndarray:
    """Ids as an array of integers of their own type, or none; nothing is rounded or read from letters."""
    try:
        array = np.asarray(ids)
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    if array.ndim == 1 and not array.size and array.dtype != object:
        return array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not -(2**31) <= array.min() <= array.max() < 2**31:
        raise UserError(f"{name} is {shown(ids)}: expected a list of token ids, which are whole numbers")
    return array


def check_text(where: str, i: int, text: Any) -> str:
    """A text of at least one character, each of which UTF-8 can hold.

    Args:
      where: the source, or the argument.
      i: number of the text in it.
      text: anything.

    Raises:
      UserError: if it is something else.
    """
    if text is None or (isinstance(text, str) and not text):
        raise UserError(f"{where}: text {i} is empty; remove it or fill it")
    if not isinstance(text, str):
        raise UserError(f"{where}: text {i} is {shown(text)}, of type {type(text).__name__}; expected a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"text {i} has half a character, \\u{ord(text[error.start]):04x}, at character {error.start}"
        raise UserError(f"{where}: {found}; write both surrogates, or the character itself") from error
    return text


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


def plain_id(text_id: str) -> str:
    """The hash in a text's identity, without the number of a repeat: equal for texts with equal tokens."""
    return text_id.partition("-")[0]


def id_words(text_id: str, seed: int) -> np.ndarray:
    """(4,) uint32: the halves of the hash, the number of the repeat and the seed. Random numbers of a text follow."""
    digest, _, repeat = text_id.partition("-")
    return np.array([int(digest[:8], 16), int(digest[8:], 16), int(repeat or 0), seed], np.uint32)


def texts_digest(text_ids: Iterable[str]) -> str:
    """What texts in their order are known by in the identity of a run."""
    return hashlib.sha256("\n".join(text_ids).encode()).hexdigest()[:16]


# --- batches ---


def padded_lengths(lengths: Sequence[int], boundary: int | None = None, extra: int = 0, room: int = 0) -> list[int]:
    """Padded length of each text: the least of 8, 16, …, 64, then steps of an eighth of an octave, that holds it.

    It is never more than the longest text or `room`, so without room texts of one length are not padded at all. A model
    may change its rotary positions beyond `boundary` inputs (`ModelConfig.boundary`); padding never leads a text across
    it.

    Args:
      lengths: tokens of each text.
      boundary: inputs up to which rotary positions are the same; None if they never change.
      extra: inputs that a text has beside its tokens.
      room: tokens of the longest text of other calls, with which the padded lengths shall be in common.
    """
    longest = max([*lengths, room, 1])
    ladder = list(range(8, 64, 8))
    for octave in itertools.count():
        ladder += [64 * 2**octave + 8 * 2**octave * eighth for eighth in range(8)]
        if ladder[-1] >= longest:
            break
    if boundary is not None and boundary > extra:
        ladder = sorted([*ladder, boundary - extra])
    return [min(longest, next(rung for rung in ladder if rung >= length)) for length in lengths]


class Batch(NamedTuple):
    """Texts of one padded length that go through a program together.

    Attributes:
      rows: (B,) int, index of the text in each row. Where there are too few texts, they are repeated.
      used: rows before the repeats.
      positions: padded length (T).
      lengths: (B,) int32, tokens of the text in each row.
    """

    rows: np.ndarray
    used: int
    positions: int
    lengths: np.ndarray

    @property
    def texts(self) -> list[int]:
        """Indices of the texts, each once: (used,)."""
        return self.rows[: self.used].tolist()

    def pad(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Arrays (length, …) of all texts → (B, T, …), those of the batch with zeros behind."""
        first = arrays[self.rows[0]]
        padded = np.zeros((len(self.rows), self.positions, *first.shape[1:]), first.dtype)
        for row, i in zip(padded, self.rows, strict=True):
            row[: len(arrays[i])] = arrays[i]
        return padded


def batches(
    lengths: Sequence[int],
    size: int,
    *,
    boundary: int | None = None,
    extra: int = 0,
    room: int = 0,
    full: bool = False,
) -> Iterator[Batch]:
    """Batches of texts by padded length, shortest first, texts of one length in their order.

    All batches of one padded length have the same number of rows, so that a program is compiled once for each length.
    That number is `size`, or the number of texts where these are fewer.

    Args:
      lengths: tokens of each text.
      size: rows of a batch at most.
      boundary, extra, room: see `padded_lengths`.
      full: give every batch `size` rows, so that later calls with more texts need no other program.
    """
    all_lengths = np.array(lengths, np.int32)
    padded = np.array(padded_lengths(lengths, boundary, extra, room), int)
    for positions in np.unique(padded).tolist():
        members = np.flatnonzero(padded == positions)
        width = size if full else min(size, len(members))
        for first in range(0, len(members), size):
            chosen = members[first : first + size]
            rows = np.resize(chosen, width)
            yield Batch(rows=rows, used=len(chosen), positions=positions, lengths=all_lengths[rows])

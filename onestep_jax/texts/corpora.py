"""Token ids of the paper's text sources by name, contexts from them, and the model's own continuations of contexts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import UserError, check_least, nearest
from onestep_jax.model.decoder import Model
from onestep_jax.model.generation import BATCH, generate
from onestep_jax.model.likelihood import beginning
from onestep_jax.texts.named_sources import SOURCES, Passage, Request, whole

GEN = "the model's own continuations of contexts of the demo texts, or of gen:SOURCE (any other source)"
# Tokens of a context in `gen`, as in the paper's access test; the demo texts are shorter.
CONTEXT, DEMO_CONTEXT, DEMO_TEXTS = 128, 32, 8


def names() -> dict[str, str]:
    """Name of each source → a line about it."""
    return {name: source.about for name, source in SOURCES.items()} | {"gen": GEN}


def is_named(source: str) -> bool:
    """Whether a source is a named one, and not a file or a data set of the hub.

    Raises:
      UserError: for a name that is unknown and no file.
    """
    return bool(_parse(source)[0])


def size_of(source: str) -> int | None:
    """How many texts a named source has; None where only a count says so."""
    name, _ = _parse(source)
    return SOURCES[name].size if name in SOURCES else None


def load_tokens(
    model: Model,
    source: str,
    *,
    count: int,
    length: int,
    seed: int = 0,
    column: str = "text",
    split: str = "file",
    per_context: int = 1,
) -> list[np.ndarray]:
    """Load the first `count` texts of a source that have at least `length` tokens, cut to that length.

    The first k of them do not depend on `count`. A text that is too short is skipped, so another length may give other
    texts. To compare lengths, load texts of the greatest length and cut them.

    Args:
      model: its tokenizer is used, without special tokens; `gen` samples from the model.
      source: "random[:FILE]", "fanfics[:COPY]", "pg19[:COPY]", "excerpts:SOURCE", "gen[:SOURCE]" or "demo" (see
        `names`), or a file or data set that `files.read_source` reads.
      count: number of texts.
      length: tokens of each.
      seed: of all that the source draws.
      column: of a table.
      split: how a .txt is read, "file" (one text) or "lines".
      per_context: for `gen`, the number of continuations of each context; they follow one another.

    Returns:
      `count` arrays (length,) int32.

    Raises:
      UserError: for a source that is unknown, that cannot be read or that has too few texts of that length, or for a
        model without a tokenizer.
    """
    name, argument = _parse(source)
    _check(model, count, length, seed, per_context)
    request = Request(argument, count, length, seed, column, split)
    if name == "gen":
        return _generated(model, request, per_context)
    if per_context != 1:
        raise UserError(f"{source}: per_context = {per_context}, but only gen continues contexts; leave it at 1")
    passages = _passages(name, request)
    cut = (_cut(model.tokenizer, passage.text, length) for passage in passages)
    return _take(cut, request, f"{source}: texts")


def contexts(
    model: Model,
    source: str,
    *,
    count: int,
    length: int,
    seed: int = 0,
    column: str = "text",
    split: str = "file",
) -> list[np.ndarray]:
    """Load the first `count` contexts of a source that have at least `length` tokens, cut to that length.

    The context of a text is the last `length` tokens before it. For `pg19` and `fanfics` they come from the first half
    of a chunk, for `excerpts` from the book, for `random` from words drawn for this. A text of `demo` or of a file has
    no text before it; there the context is the first `length` tokens of the text itself. With the same seed the k-th
    context belongs to the k-th text of `load_tokens`, unless one of them is skipped for being too short.

    Args:
      model, source, seed, column, split: as for `load_tokens`; "gen" has no contexts of its own.
      count: number of contexts.
      length: tokens of each.

    Returns:
      `count` arrays (length,) int32, without special tokens.

    Raises:
      UserError: as for `load_tokens`.
    """
    name, argument = _parse(source)
    _check(model, count, length, seed)
    if name == "gen":
        raise UserError(f"{source}: gen has no contexts of its own; ask for those of {argument!r}")
    request = Request(argument, count, length, seed, column, split)

    def context(passage: Passage) -> np.ndarray | None:
        if passage.before is None:
            return _cut(model.tokenizer, passage.text, length)
        return _cut(model.tokenizer, passage.before, length, last=True)

    return _take(map(context, _passages(name, request)), request, f"{source}: contexts")


def continuations(
    model: Model, contexts: Sequence[Any], *, length: int, per_context: int = 1, seed: int = 0
) -> list[list[np.ndarray]]:
    """Sample the model's own continuations of each context at temperature 1, as in PG-19 (gen) of Table 3 and Figure 6.

    A BOS is put first where the tokenizer has one, as for H_LM. Stop tokens end nothing. If all contexts have the same
    length, the j-th continuation of context i depends on that context, i, j and the seed only, not on the number of
    contexts or continuations.

    Args:
      model: the frozen model.
      contexts: token ids of each, without special tokens.
      length: tokens of a continuation.
      per_context: number of continuations of each context.
      seed: of the drawing.

    Returns:
      For each context `per_context` arrays (length,) int32.

    Raises:
      UserError: for a context that is too long for the model together with its continuation, or that is empty where
        there is no BOS.
    """
    check_least(1, length=length, per_context=per_context)
    check_least(0, seed=seed)
    bos = beginning(model)
    prompts = [np.asarray([*([] if bos is None else [bos]), *ids], np.int32) for ids in contexts]
    if not prompts:
        return []
    # A batch of another size is another program, whose rounding may differ, and then another token is drawn.
    batches = prompts + prompts[:1] * (BATCH - len(prompts))
    rounds = []
    for j in range(per_context):
        drawn = generate(model, batches, count=length, temperature=1.0, seed=draw_seed(seed, j), stop=(), batch=BATCH)
        rounds.append([generated.tokens for generated in drawn[: len(prompts)]])
    return [list(drawn) for drawn in zip(*rounds, strict=True)]


def continued_texts(
    model: Model, source: str, *, count: int, context: int, per_context: int, seeds: int, length: int, seed: int = 0
) -> tuple[list[int], list[np.ndarray]]:
    """Make the texts of Figures 5 and 6: the model's own continuations of contexts, the last of each `seeds` times.

    Args:
      model: continues the contexts, at temperature 1.
      source: of the contexts, see `contexts`.
      count: number of contexts.
      context: tokens of each.
      per_context: number of continuations of each context.
      seeds: how often the last continuation of each context appears, to be fitted with different seeds.
      length: tokens of each continuation.
      seed: of all that is drawn.

    Returns:
      For every text to fit, the number of its context and its token ids.
    """
    given = contexts(model, source, count=count, length=context, seed=seed)
    drawn = continuations(model, given, length=length, per_context=per_context, seed=seed)
    owners, texts = [], []
    for number, (*once, often) in enumerate(drawn):
        texts += [*once, *[often] * seeds]
        owners += [number] * (len(once) + seeds)
    return owners, texts


def draw_seed(seed: int, j: int) -> int:
    """Seed of `generate` for the j-th continuation of every context, below 2^31."""
    return int(np.random.SeedSequence([seed, j]).generate_state(1)[0]) >> 1


def _generated(model: Model, request: Request, per_context: int) -> list[np.ndarray]:
    """Continuations of the contexts of another source.

    There are few demo texts. With `per_context` 1 each of them is continued as often as needed, in turn.
    """
    demo = request.argument == "demo"
    room = model.config.context - request.length - (beginning(model) is not None)
    if room < 1:
        need = f"a context and {request.length} new tokens are beyond the model's context of {model.config.context}"
        raise UserError(f"gen:{request.argument}: {need}; give a smaller length")
    in_turn = demo and per_context == 1
    count = DEMO_TEXTS if in_turn else -(-request.count // per_context)
    length = min(DEMO_CONTEXT if demo else CONTEXT, room)
    given = contexts(
        model,
        request.argument,
        count=count,
        length=length,
        seed=request.seed,
        column=request.column,
        split=request.split,
    )
    times = -(-request.count // count) if in_turn else per_context
    drawn = continuations(model, given, length=request.length, per_context=times, seed=request.seed)
    order = zip(*drawn, strict=True) if in_turn else drawn
    return [ids for some in order for ids in some][: request.count]


def _parse(source: str) -> tuple[str, str]:
    """Name and argument of a source; ("", source) for what `read_source` reads."""
    name, colon, argument = source.partition(":")
    if name not in names():
        if name == "hf" or os.path.exists(source) or Path(name).suffix or "/" in name:
            return "", source
        known = f"known: {', '.join(sorted(names()))}, and files and hf:NAME"
        raise UserError(f"unknown source of texts {name!r}{nearest(name, names())}; {known}")
    if colon and not argument:
        raise UserError(f"{source}: nothing follows the colon; remove it, or name a source after it")
    if name == "gen":
        if argument.partition(":")[0] == "gen":
            raise UserError(f"{source}: gen cannot continue what it generates; give another source")
        return name, argument or "demo"
    if argument and not SOURCES[name].open:
        raise UserError(f"{source}: {name} takes no argument; to read a file, give {argument!r} alone")
    if not argument and SOURCES[name].default is None:
        expected = f"expected {name}:SOURCE, such as {name}:books.jsonl.xz or {name}:hf:NAME"
        raise UserError(f"{source}: no source is given; {expected}")
    return name, argument or str(SOURCES[name].default)


def _passages(name: str, request: Request) -> Iterator[Passage]:
    """Passages of a named source, or of a file or the hub as they are."""
    return SOURCES[name].passages(request) if name else whole(request)


def _take(found: Iterable[np.ndarray | None], request: Request, what: str) -> list[np.ndarray]:
    """The first `count` that are long enough."""
    taken: list[np.ndarray] = []
    for ids in found:
        if ids is not None:
            taken.append(ids)
        if len(taken) == request.count:
            return taken
    cure = "give a smaller length or count, or another source"
    raise UserError(f"{what} of {request.length} tokens: found {len(taken)}, expected {request.count}; {cure}")


def _cut(tokenizer: Any, text: str, length: int, *, last: bool = False) -> np.ndarray | None:
    """The first, or last, `length` token ids of a text, (length,) int32; None if it has fewer.

    A book is not tokenised as a whole. A part of its characters is, and a larger one until there are 32 tokens more
    than wanted: tokens next to the cut may differ from those of the whole text.
    """
    characters = 8 * (length + 64)
    while True:
        part = text[-characters:] if last else text[:characters]
        ids = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        if len(part) == len(text) or len(ids) >= length + 32:
            break
        characters *= 2
    if len(ids) < length:
        return None
    return np.asarray(ids[-length:] if last else ids[:length], np.int32)


def _check(model: Model, count: int, length: int, seed: int, per_context: int = 1) -> None:
    if model.tokenizer is None:
        raise UserError(f"model {model.source!r} has no tokenizer: give token ids to fit, or load a model that has one")
    check_least(1, count=count, length=length, per_context=per_context)
    check_least(0, seed=seed)
    if length > model.config.context:
        raise UserError(
            f"length = {length} is beyond the model's context of {model.config.context}; give a smaller one"
        )

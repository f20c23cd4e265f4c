"""Token lists of the paper's text sources by name, their contexts, and the model's own continuations of these."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.errors import UserError, nearest
from onestep_jax.model.decoder import Model
from onestep_jax.model.generation import BATCH, generate
from onestep_jax.model.likelihood import beginning
from onestep_jax.texts.named_sources import SOURCES, Passage, Request, whole

GEN = "the model's own continuations of contexts of the demo texts, or of gen:SOURCE (any other source)"
# Tokens that a continuation follows in `gen`, as in the paper's access test; the demo texts are shorter.
CONTEXT, DEMO_CONTEXT, DEMO_TEXTS = 128, 32, 8


def names() -> dict[str, str]:
    """Name of each source and a line on it."""
    return {name: source.about for name, source in SOURCES.items()} | {"gen": GEN}


def is_named(source: str) -> bool:
    """Whether it is one of the named sources, and not a file or a data set of the hub."""
    return bool(_parse(source)[0])


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
    """Load the first `count` texts of a source that have `length` tokens, cut to that length.

    The first k of them do not depend on `count`. A text that is too short is passed over, so another length may pick
    other texts: to compare lengths, load at the longest and cut.

    Args:
      model: whose tokenizer is used, without special tokens; `gen` samples from it.
      source: "random[:FILE]", "fanfics[:COPY]", "pg19[:COPY]", "excerpts:SOURCE", "gen[:SOURCE]", "demo" (see `names`),
        or whatever `files.read_source` reads, its texts as they are.
      count: texts.
      length: tokens of each.
      seed: of what the source draws.
      column: of a table.
      split: how a .txt is read, "file" (one text) or "lines".
      per_context: of `gen`, continuations of each context, which come one after the other.

    Returns:
      `count` arrays (length,) int32.

    Raises:
      UserError: for a source that is unknown or cannot be read, too few texts that are long enough, or a model without
        a tokenizer.
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
    """Load the first `count` contexts of a source that have `length` tokens, cut to that length.

    The context of a text is what stands before it, and its last `length` tokens are taken: for `pg19` and `fanfics`
    from the first half of a chunk, for `excerpts` from the book, for `random` from words of their own. Nothing stands
    before a text of `demo` or of a file: there the context is the first `length` tokens of the text itself. With the
    same seed the k-th context belongs to the k-th text of `load_tokens`, if none is passed over for being too short.

    Args:
      model, source, seed, column, split: as for `load_tokens`; "gen" has no contexts but those of its source.
      count: contexts.
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

    The model reads its BOS first, where its tokenizer has one, as for H_LM; no stop token ends a continuation. If all
    contexts are equally long, the j-th continuation of context i depends on that context, i, j and the seed alone, not
    on how many there are of either.

    Args:
      model: the frozen model.
      contexts: token ids of each, without special tokens.
      length: tokens of a continuation.
      per_context: continuations of each context.
      seed: of the drawing.

    Returns:
      For each context `per_context` arrays (length,) int32.

    Raises:
      UserError: for a context that is too long for the model together with its continuation, or empty without a BOS.
    """
    _check_positive(length=length, per_context=per_context)
    _check_seed(seed)
    bos = beginning(model)
    prompts = [np.asarray([*([] if bos is None else [bos]), *ids], np.int32) for ids in contexts]
    if not prompts:
        return []
    # A batch of another size is another program, which may round otherwise and so draw another token.
    batches = prompts + prompts[:1] * (BATCH - len(prompts))
    rounds = []
    for j in range(per_context):
        drawn = generate(model, batches, count=length, temperature=1.0, seed=draw_seed(seed, j), stop=(), batch=BATCH)
        rounds.append([generated.tokens for generated in drawn[: len(prompts)]])
    return [list(drawn) for drawn in zip(*rounds, strict=True)]


def draw_seed(seed: int, j: int) -> int:
    """Seed of `generate` for the j-th continuation of every context, below 2^31."""
    return int(np.random.SeedSequence([seed, j]).generate_state(1)[0]) >> 1


def _generated(model: Model, request: Request, per_context: int) -> list[np.ndarray]:
    """Continuations of the contexts of another source.

    The demo texts are few: unless asked otherwise, each is continued as often as it takes, in turn.
    """
    demo = request.argument == "demo"
    room = model.config.context - request.length - (beginning(model) is not None)
    if room < 1:
        need = f"a context and {request.length} new tokens are beyond the model's context of {model.config.context}"
        raise UserError(f"gen:{request.argument}: {need}; give a smaller length")
    options = {"seed": request.seed, "column": request.column, "split": request.split}
    in_turn = demo and per_context == 1
    count = DEMO_TEXTS if in_turn else -(-request.count // per_context)
    length = min(DEMO_CONTEXT if demo else CONTEXT, room)
    given = contexts(model, request.argument, count=count, length=length, **options)
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
        raise UserError(f"{source}: nothing follows the colon; leave it out, or say what to read")
    if name == "gen":
        if argument.partition(":")[0] == "gen":
            raise UserError(f"{source}: gen cannot continue what it generates; give another source")
        return name, argument or "demo"
    if argument and not SOURCES[name].open:
        raise UserError(f"{source}: {name} takes no argument; for a file give {argument!r} alone")
    if not argument and SOURCES[name].default is None:
        raise UserError(f"{source}: of what? expected {name}:SOURCE, e.g. {name}:books.jsonl.xz or {name}:hf:NAME")
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

    A book is not tokenised whole: characters are cut first, and more of them taken until so many tokens are there that
    those next to the cut, which it may have changed, are not among the wanted ones.
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
        raise UserError(f"model {model.source!r} has no tokenizer: give token ids to fit, or a folder that has one")
    _check_positive(count=count, length=length, per_context=per_context)
    _check_seed(seed)
    if length > model.config.context:
        raise UserError(
            f"length = {length} is beyond the model's context of {model.config.context}; give a smaller one"
        )


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} = {number}: expected at least 1")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed = {seed}: expected at least 0")

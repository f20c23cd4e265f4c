"""Wrong types and values of the Python API: each is a `UserError`, before anything is fitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onestep_jax import (
    Model,
    OneStep,
    Results,
    UserError,
    decode,
    fit,
    generate,
    load_model,
    read_results,
    regenerate,
    save_model,
    text_nats,
)
from onestep_jax.prototokens.schemes import Cramming

NAN = float("nan")
TEXTS = {
    "a string": "w1 w2",
    "bytes": b"w1",
    "none": None,
    "a number": 5,
    "a table": {"text": "w1"},
    "no texts": [],
    "an empty text": [[]],
    "an empty string": [""],
    "a missing value": ["w1", None],
    "not a number": ["w1", NAN],
    "half a character": ["\ud800"],
    "ids beside strings": ["w1", [1, 2]],
    "strings beside ids": [[1, 2], "w1"],
    "fractions": [[1.5, 2.0]],
    "whole fractions": [np.array([1.0, 2.0])],
    "truth values": [[True, False]],
    "letters": [["1", "2"]],
    "a negative id": [[-1, 2]],
    "an id beyond the vocabulary": [[61]],
    "an id beyond 32 bits": [[2**40, 2]],
    "an id beyond 64 bits": [[2**70, 2]],
    "rows of rows": [[[1, 2], [3, 4]]],
    "rows of different lengths": [[[1], [2, 3]]],
    "numbers": [1, 2],
}


@pytest.mark.parametrize("what", TEXTS)
def test_texts(tiny_folder: Path, what: str):
    with pytest.raises(UserError, match="text"):
        fit(load_model(tiny_folder), TEXTS[what], steps=1)


def test_what_is_taken_for_a_list(tiny: Model):
    for texts in (np.array([[1, 2], [3, 4]]), (np.int64([1, 2]), [3, 4]), (ids for ids in ([1, 2], (3, 4)))):
        assert [text.tokens.tolist() for text in fit(tiny, texts, steps=1)] == [[1, 2], [3, 4]]


WRONG: dict[str, list[Any]] = {
    "length": ["x", 0, -1, 1.5, 10**9],
    "steps": ["x", 0, 1.5, 2**31, NAN],
    "seed": ["x", -1, 1.5, 2**32],
    "seeds": ["x", 0, 1.5],
    "slots": ["x", 0, 1.5, 10**30],
    "chunk": [0, "x", 1.5],
    "save_every": ["x", -1, NAN, float("inf")],
    "copies": [0, "x", 1.5],
    "remat": ["x", 3, None],
    "attention": ["x", None, 3],
    "preset": ["x", None, 3],
    "optimizer": ["x", 3],
    "placement": ["x", None, 3],
    "run": [3, [1]],
    "record": ["x", 1],
    "scheme": ["x", 3],
    "prefixes": ["x", [1], [[1.5]], [None], 3],
    "progress": ["x", 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_arguments_of_fit(tiny: Model, name: str, value: Any):
    with pytest.raises(UserError):
        fit(tiny, [[5, 6, 7]], **{"steps": 1} | {name: value})


@pytest.mark.parametrize("model", [None, "default", 3])
def test_a_model_is_what_load_model_returns(tiny: Model, tmp_path: Path, model: Any):
    found = fit(tiny, [[1, 2]], steps=1)
    for call in (
        lambda: fit(model, [[1, 2]], steps=1),
        lambda: decode(model, found),
        lambda: regenerate(model, found),
        lambda: generate(model, [[1]], count=1),
        lambda: text_nats(model, [[1, 2]]),
        lambda: save_model(model, tmp_path / "saved"),
    ):
        with pytest.raises(UserError, match=r"model = .*: expected what load_model returns"):
            call()
    assert not (tmp_path / "saved").exists()


CALLS: dict[str, Callable[[Model, Results, Path], Any]] = {
    "decode none": lambda model, found, folder: decode(model, None),  # type: ignore
    "decode a string": lambda model, found, folder: decode(model, "x"),  # type: ignore
    "decode numbers": lambda model, found, folder: decode(model, [1]),  # type: ignore
    "decode a list of texts that names no arrangement": lambda model, found, folder: decode(model, found.texts),
    "decode in no batches": lambda model, found, folder: decode(model, found, batch=0),
    "count of letters": lambda model, found, folder: generate(model, [[1]], count="x"),  # type: ignore
    "no count": lambda model, found, folder: generate(model, [[1]], count=0),
    "prompts that are a string": lambda model, found, folder: generate(model, "w1", count=1),
    "a temperature below zero": lambda model, found, folder: generate(model, [[1]], count=1, temperature=-1),
    "a temperature that is none": lambda model, found, folder: generate(model, [[1]], count=1, temperature=NAN),
    "a temperature of letters": lambda model, found, folder: generate(model, [[1]], count=1, temperature="x"),  # type: ignore
    "a seed below zero": lambda model, found, folder: generate(model, [[1]], count=1, temperature=1.0, seed=-1),
    "nats of a string": lambda model, found, folder: text_nats(model, "w1"),  # type: ignore
    "nats of none": lambda model, found, folder: text_nats(model, None),  # type: ignore
    "nats of fractions": lambda model, found, folder: text_nats(model, [[1.5]]),
    "load none": lambda model, found, folder: load_model(None),  # type: ignore
    "load a number": lambda model, found, folder: load_model(3),  # type: ignore
    "load in a dtype of numbers": lambda model, found, folder: load_model(dtype=3),  # type: ignore
    "load in another dtype": lambda model, found, folder: load_model(dtype="float16"),
    "read a number": lambda model, found, folder: read_results(3),  # type: ignore
    "read what is not there": lambda model, found, folder: read_results(folder / "nowhere"),
    "save to none": lambda model, found, folder: save_model(model, None),  # type: ignore
    "save to a file": lambda model, found, folder: save_model(model, Path(__file__)),
    "an arrangement of numbers": lambda model, found, folder: OneStep(3),  # type: ignore
    "share what is not there": lambda model, found, folder: OneStep(share="x"),
    "a group of letters": lambda model, found, folder: OneStep(share="m", group="x"),  # type: ignore
    "a group of fractions": lambda model, found, folder: OneStep(share="m", group=1.5),  # type: ignore
    "a prefix that is a number": lambda model, found, folder: OneStep(prefix=3),  # type: ignore
    "a prefix of fractions": lambda model, found, folder: OneStep(prefix=(1.5,)),  # type: ignore
    "vectors of letters": lambda model, found, folder: Cramming(vectors="x"),  # type: ignore
    "vectors of fractions": lambda model, found, folder: Cramming(vectors=1.5),  # type: ignore
    "no vectors": lambda model, found, folder: Cramming(vectors=0),
}


@pytest.fixture(scope="module")
def found(tiny: Model) -> Results:
    return fit(tiny, [[1, 2]], steps=1)


@pytest.mark.parametrize("what", CALLS)
def test_other_functions(tiny: Model, found: Results, tmp_path: Path, what: str):
    with pytest.raises(UserError):
        CALLS[what](tiny, found, tmp_path)

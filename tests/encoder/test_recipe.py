"""Designs and recipes: what each update is made on, and values that cannot be."""

import dataclasses

import numpy as np
import optax
import pytest

from onestep_jax import Design, Recipe, UserError


@pytest.mark.parametrize(
    ("length", "lengths"),
    [(1, [1]), (3, [3]), (4, [4]), (5, [4, 5]), (8, [4, 8]), (20, [4, 8, 16, 20]), (32, [4, 8, 16, 32])],
)
def test_lengths(length, lengths):
    assert Design(length=length).lengths == lengths


def test_texts_grow_and_then_three_of_four_updates_are_of_the_greatest_length():
    recipe, design = Recipe(updates=100, growth=0.4, reading=0.5), Design(length=16, corrections=3)
    updates = [recipe.update(number, design) for number in range(100)]
    lengths = [update.length for update in updates]
    assert lengths[:40] == [4] * 14 + [8] * 13 + [16] * 13
    assert lengths[40:56] == [4, 16, 16, 16, 8, 16, 16, 16] * 2
    assert [update.corrections for update in updates] == [0] * 50 + [3] * 50


def test_shares_of_nothing_and_of_all():
    design = Design(length=8, corrections=3)
    never = [Recipe(updates=8, growth=0.0, reading=0.0).update(number, design) for number in range(8)]
    assert [update.length for update in never] == [4, 8, 8, 8, 4, 8, 8, 8]
    assert {update.corrections for update in never} == {3}
    always = [Recipe(updates=8, growth=1.0, reading=1.0).update(number, design) for number in range(8)]
    assert [update.length for update in always] == [4] * 4 + [8] * 4
    assert {update.corrections for update in always} == {0}
    without = dataclasses.replace(design, reader="none")
    assert {Recipe(updates=8, reading=1.0).update(number, without).corrections for number in range(8)} == {3}
    short = [Recipe(updates=8, growth=0.0).update(number, Design(length=3)).length for number in range(8)]
    assert set(short) == {3}


def test_the_rate_rises_and_falls():
    """From 0 to the peak, then to a twentieth; AdamW's first change of a weight is the rate itself."""
    recipe = Recipe(updates=20, warmup=4, lr=0.1)
    optimizer = recipe.optimizer()
    weight, state, changes = np.zeros(1, np.float32), optimizer.init(np.zeros(1, np.float32)), []
    for _ in range(20):
        change, state = optimizer.update(np.full(1, 0.5, np.float32), state, weight)
        changes.append(-float(change[0]))
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.1, 4, 21, 0.005)
    np.testing.assert_allclose(changes, [float(expected(i)) for i in range(20)], rtol=1e-4, atol=1e-9)
    assert max(changes) == pytest.approx(0.1, rel=1e-4)
    assert changes[-1] < 0.01


def test_a_warmup_of_more_updates_than_there_are():
    assert Recipe(updates=1, warmup=50).optimizer().init(np.zeros(1)) is not None


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (Design, {"length": 0}, "length = 0: expected at least 1"),
        (Design, {"length": 4.0}, "length = 4.0: expected a whole number"),
        (Design, {"reader": "copi"}, "unknown reader 'copi' (did you mean 'copy'?); known: copy, lora, none"),
        (Design, {"reader": ["copy"]}, "reader ['copy']: expected a name"),
        (Design, {"rank": -1}, "rank = -1"),
        (Design, {"pooling": "query"}, "did you mean 'queries'?"),
        (Design, {"corrections": 65}, "corrections = 65: expected at most 64"),
        (Design, {"corrections": True}, "corrections = True"),
        (Design, {"step": "matrices"}, "did you mean 'matrix'?"),
        (Design, {"arrangement": "onestep"}, "did you mean 'one-step'?"),
        (Design, {"reader": "none", "corrections": 0}, "neither reads nor corrects: give --reader copy, or"),
        (Design, {"prefix": "bos"}, "prefix = 'bos'"),
        (Design, {"prefix": (1, 2.5)}, "prefix = (1, 2.5)"),
        (Design, {"prefix": (-1,)}, "prefix = (-1,)"),
        (Design, {"prefix": 3}, "prefix = 3"),
        (Recipe, {"updates": 0}, "updates = 0: expected at least 1"),
        (Recipe, {"batch": 0}, "batch = 0"),
        (Recipe, {"accumulate": 1.5}, "accumulate = 1.5"),
        (Recipe, {"lr": float("nan")}, "lr = nan: expected a finite number, above 0"),
        (Recipe, {"warmup": -1}, "warmup = -1"),
        (Recipe, {"growth": 1.5}, "growth = 1.5: expected a finite number, at least 0 and at most 1"),
        (Recipe, {"reading": "all"}, "reading = 'all'"),
        (Design, {"temperature": 0}, "temperature = 0"),
        (Recipe, {"seed": 2**32}, "seed = 4294967296"),
        (Recipe, {"first_order": "no"}, "first_order = 'no'"),
        (Recipe, {"remat": 1}, "remat = 1"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_values_that_cannot_be(kind, values, said):
    with pytest.raises(UserError) as caught:
        kind(**values)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_descriptions():
    for made in (Design(length=7, reader="lora", rank=3, prefix=(4, 5)), Recipe(updates=3, first_order=True)):
        assert type(made).from_description(made.describe()) == made
        hash(type(made).from_description(made.describe()))
    with pytest.raises(UserError, match=r"unknown key of an encoder's design 'lenght' \(did you mean 'length'\?\)"):
        Design.from_description({"lenght": 4})
    with pytest.raises(UserError, match=r"unknown key of a recipe 'update' \(did you mean 'updates'\?\)"):
        Recipe.from_description({"update": 4})
    with pytest.raises(UserError, match="prefix = 5"):
        Design.from_description({"prefix": 5})

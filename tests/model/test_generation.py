"""Generation and H_LM: the cache against plain forward passes, batches, stop tokens, drawing, refusals."""

from __future__ import annotations

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from options import quick_of

from onestep_jax import Model, UserError, fit
from onestep_jax.model.config import Layer, ModelConfig, Rope
from onestep_jax.model.decoder import Decoder
from onestep_jax.model.generation import generate
from onestep_jax.model.likelihood import beginning, text_nats

PROMPTS = [[5, 9, 30], [7], list(range(17)), [60, 0, 60, 1, 2]]


def without_cache(model: Model, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, the whole text going through the model each time."""
    forward = jax.jit(lambda ids_T, last: model.apply(model.params, model.embed(model.params, ids_T))[last])
    ids = list(prompt)
    for _ in range(count):
        padded = np.pad(ids, (0, len(prompt) + count - len(ids)))
        ids.append(int(jnp.argmax(forward(padded, len(ids) - 1))))
    return ids[len(prompt) :]


def windowed(tiny: Model) -> Model:
    """The tiny model with a window of four positions on its first block."""
    pattern = (Layer(Rope(), window=4), Layer(Rope()))
    return dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, pattern=pattern))


@pytest.mark.parametrize("change", [lambda model: model, windowed], ids=["full", "windowed"])
def test_cache_gives_the_tokens_of_plain_forward_passes(tiny: Model, change):
    model = change(tiny)
    for prompt, generated in zip(PROMPTS, generate(model, PROMPTS, count=12), strict=True):
        assert generated.tokens.tolist() == without_cache(model, prompt, 12)


def test_a_window_changes_the_tokens(tiny: Model):
    assert without_cache(tiny, PROMPTS[2], 12) != without_cache(windowed(tiny), PROMPTS[2], 12)


def test_vectors_of_tokens_go_on_like_the_tokens(tiny: Model):
    vectors = [np.asarray(tiny.embed(tiny.params, np.array(prompt))) for prompt in PROMPTS]
    for from_ids, from_vectors in zip(generate(tiny, PROMPTS, count=9), generate(tiny, vectors, count=9), strict=True):
        np.testing.assert_array_equal(from_ids.tokens, from_vectors.tokens)


@pytest.mark.parametrize("temperature", quick_of([1.3, 0.0]))
def test_a_text_does_not_depend_on_the_batch(tiny: Model, temperature: float):
    options = {"count": 10, "temperature": temperature, "seed": 4}
    together = generate(tiny, PROMPTS, batch=4, **options)
    for batch in (1, 3):
        for one, other in zip(together, generate(tiny, PROMPTS, batch=batch, **options), strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)


def test_stop_tokens_end_a_text_and_no_other(tiny: Model):
    free = generate(tiny, PROMPTS, count=12)
    stop = int(free[0].tokens[5])
    for whole, cut in zip(free, generate(tiny, PROMPTS, count=12, stop=[stop]), strict=True):
        places = np.flatnonzero(whole.tokens == stop)
        end = places[0] if len(places) else 12
        np.testing.assert_array_equal(cut.tokens, whole.tokens[:end])
        assert cut.stopped == bool(len(places))
    assert any(stop in whole.tokens for whole in free)


def test_own_stop_tokens_are_the_default(tiny: Model):
    stop = int(generate(tiny, PROMPTS[:1], count=4)[0].tokens[2])
    own = generate(dataclasses.replace(tiny, stop_tokens=(stop,)), PROMPTS[:1], count=4)[0]
    assert own.stopped
    assert len(own.tokens) <= 2


def test_stop_tokens_beyond_the_vocabulary_end_nothing(tiny: Model):
    """Some checkpoints name -1, or an id of a larger vocabulary."""
    odd = dataclasses.replace(tiny, stop_tokens=(-1, 61, 2**40))
    assert len(generate(odd, PROMPTS[:1], count=4)[0].tokens) == 4


def test_drawn_tokens_follow_the_softmax(tiny: Model):
    temperature, draws = 2.0, 3000
    drawn = generate(tiny, [PROMPTS[0]] * draws, count=1, temperature=temperature, batch=draws)
    logits_V = tiny.apply(tiny.params, tiny.embed(tiny.params, np.array(PROMPTS[0])))[-1]
    expected = np.asarray(jax.nn.softmax(logits_V / temperature))
    counts = Counter(int(text.tokens[0]) for text in drawn)
    got = np.array([counts[v] / draws for v in range(len(expected))])
    assert np.abs(got - expected).max() < 5 * np.sqrt(0.25 / draws)
    assert got.max() < 1


def test_seeds_and_places_draw_differently(tiny: Model):
    options = {"count": 12, "temperature": 3.0}
    first, second = generate(tiny, [PROMPTS[0]] * 2, seed=0, **options)
    other = generate(tiny, [PROMPTS[0]], seed=1, **options)[0]
    again = generate(tiny, [PROMPTS[0]], seed=0, **options)[0]
    assert first.tokens.tolist() == again.tokens.tolist()
    assert len({tuple(text.tokens) for text in (first, second, other)}) == 3


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[]], {"count": 3}, "prompt 0: empty"),
        ([[1], [61]], {"count": 3}, "prompt 1: token id 61 is not in the model's vocabulary of 61"),
        ([[1]], {"count": 64}, "prompt 0: 1 positions and 64 new tokens are beyond the model's context of 64"),
        ([[1]], {"count": 0}, "count = 0"),
        ([[1]], {"count": 16.0}, "count = 16.0: expected a whole number"),
        ([[1]], {"count": 1, "batch": 2.5}, "batch = 2.5: expected a whole number"),
        ([[1]], {"count": 1, "batch": 0}, "batch = 0: expected at least 1"),
        ([[1]], {"count": 1, "stop": 5}, "stop = 5, of type int: expected a list of token ids"),
        ([[1]], {"count": 1, "stop": "ab"}, "stop = 'ab', of type str: expected a list of token ids"),
        ([[1]], {"count": 1, "stop": [5.5]}, "stop token = 5.5: expected a whole number"),
        ([[1]], {"count": 1, "stop": [2**40]}, "stop token = 1099511627776: expected at most 2,147,483,647"),
        ([[1]], {"count": 1, "temperature": -1.0}, "temperature = -1.0"),
        ([np.zeros((3, 31), np.float32)], {"count": 1}, r"shape \(3, 31\); expected \(positions, 32\)"),
        (["words"], {"count": 1}, "no tokenizer"),
    ],
)
def test_refusals(tiny: Model, prompts, options, message: str):
    with pytest.raises(UserError, match=message):
        generate(tiny, prompts, **options)


def longrope(tiny: Model, original: int = 8) -> Model:
    """The tiny model with rotary positions that change beyond the original context."""
    rope = Rope(kind="longrope", original_context=original, short_factors=(1.0,) * 4, long_factors=(4.0,) * 4)
    return dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, pattern=(Layer(rope),)))


def test_generation_over_a_change_of_rotary_positions_is_refused(tiny: Model):
    with pytest.raises(UserError, match=r"prompt 1: 5 \+ 4 tokens cross position 8"):
        generate(longrope(tiny), [[1, 2, 3, 4], [1, 2, 3, 4, 5]], count=4)


@pytest.mark.long
def test_texts_on_both_sides_of_a_change_of_rotary_positions(tiny: Model):
    model = longrope(tiny, original=10)
    prompts = [list(range(start, start + 9)) for start in range(12)]  # padded to 10, not over it to 16
    prompts += [[1, 2, 3], list(range(11)), list(range(20))]
    for prompt, generated in zip(prompts, generate(model, prompts, count=1), strict=True):
        assert generated.tokens.tolist() == without_cache(model, prompt, 1)


# H_LM


def plain_nats(model: Model, given: list[int], wanted: list[int]) -> np.ndarray:
    forward = jax.jit(lambda ids_T: jax.nn.log_softmax(model.apply(model.params, model.embed(model.params, ids_T))))
    return -np.asarray(forward(np.array(given)))[np.arange(len(wanted)), wanted]


def test_nats_without_a_bos_leave_the_first_token_out(tiny: Model):
    assert beginning(tiny) is None
    for prompt, found in zip(PROMPTS, text_nats(tiny, PROMPTS), strict=True):
        expected = plain_nats(tiny, prompt[:-1], prompt[1:]) if len(prompt) > 1 else np.zeros(0)
        np.testing.assert_allclose(found.nats, expected, rtol=2e-5)
        assert found.total == pytest.approx(expected.sum(), rel=1e-5)


def test_nats_after_a_bos_count_every_token(tiny: Model):
    class Tokenizer:
        bos_token_id = 3

    model = dataclasses.replace(tiny, tokenizer=Tokenizer())
    for prompt, found in zip(PROMPTS, text_nats(model, PROMPTS), strict=True):
        np.testing.assert_allclose(found.nats, plain_nats(tiny, [3, *prompt[:-1]], prompt), rtol=2e-5)


def test_nats_after_a_prefix(tiny: Model):
    prefixes = [(), [9], np.array([3, 4]), []]
    for prompt, prefix, found in zip(PROMPTS, prefixes, text_nats(tiny, PROMPTS, prefixes=prefixes), strict=True):
        given, wanted = [*prefix, *prompt[:-1]], prompt if len(prefix) else prompt[1:]
        expected = plain_nats(tiny, given, [*given[1:], prompt[-1]])[-len(wanted) :]
        np.testing.assert_allclose(found.nats, expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefixes": [[1], [61]]}, "prefix 1: token id 61 is not in the model's vocabulary of 61"),
        ({"prefixes": [[-1], [1]]}, "prefix 0: token id -1 is not in the model's vocabulary"),
        ({"prefixes": [[1]]}, "1 prefixes: expected one for each of 2 texts"),
        ({"prefixes": []}, "0 prefixes: expected one for each of 2 texts"),
        ({"prefixes": 5}, "prefixes = 5, of type int: expected a list of token ids for each text"),
        ({"prefixes": [[1], [0.5]]}, r"prefix 1 is \[0.5\]: expected a list of token ids"),
        ({"prefixes": [1, 2]}, "prefix 0 is 1: expected a list of token ids"),
        ({"prefixes": [[1], [1] * 64]}, "text 1: 64 tokens before it and 2 of its own.* has room for 64"),
        ({"batch": 0}, "batch = 0: expected at least 1"),
        ({"batch": 2.5}, "batch = 2.5: expected a whole number"),
        ({"room": 8.0}, "room = 8.0: expected a whole number"),
    ],
    ids=str,
)
def test_nats_that_are_refused(tiny: Model, options, message: str):
    with pytest.raises(UserError, match=message):
        text_nats(tiny, [[1, 2, 3], [4, 5]], **options)


def test_nats_up_to_the_end_of_the_context(tiny: Model):
    """The last token is no input, so a prefix and a text may have one more than the context between them."""
    (found,) = text_nats(tiny, [[4, 5]], prefixes=[[1] * 63])
    assert np.isfinite(found.nats).all()
    assert found.nats.shape == (2,)


def test_nats_of_a_uniform_model_are_the_logarithm_of_its_vocabulary():
    config = ModelConfig("llama", 7, 8, 1, 2, 2, 4, 8, 16, 1e-5, tied=False)
    params = Decoder(config).init(jax.random.key(0), jnp.zeros((2, 8)))["params"]
    zero = jax.tree.map(jnp.zeros_like, params) | {"embed": {"embedding": jnp.zeros((7, 8))}}
    (found,) = text_nats(Model(config, zero), [[1, 2, 3]])
    np.testing.assert_allclose(found.nats, np.full(2, np.log(7)), rtol=1e-6)


def test_a_fit_records_h_lm(tiny: Model, token_lists: list[list[int]]):
    texts = [*token_lists[:3], token_lists[3][:5]]
    results = fit(tiny, texts, steps=2, slots=2)
    assert [text.h_lm for text in results] == [nats.total for nats in text_nats(tiny, texts)]

"""Token lists of named sources, their contexts and the model's continuations."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from onestep_jax import Model, UserError, load_model
from onestep_jax.model import generation
from onestep_jax.model.generation import generate
from onestep_jax.texts import corpora
from onestep_jax.texts.corpora import CONTEXT, contexts, continuations, draw_seed, load_tokens, names
from onestep_jax.texts.named_sources import read_words


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    """The tiny model with its tokenizer of sixty words; it has no BOS and a context of 64."""
    return load_model(tiny_folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks and books of the tiny tokenizer's words; sentences of five words, ended by a full stop of their own."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)

    def sentences(count: int) -> str:
        return "".join("W" + " ".join(f"w{i}" for i in generator.integers(60, size=5)) + " . " for _ in range(count))

    made = {"chunks": [sentences(14) for _ in range(30)], "books": [sentences(900), sentences(400)]}
    for name, texts in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    datasets.Dataset.from_dict({"text": made["chunks"]}).to_parquet(folder / "chunks.parquet")
    (folder / "words.txt").write_text("".join(f"w{i}\n" for i in range(60)))
    places = ((0, 4), (10, 20), (30, 8), (40, 16))
    short = [" ".join(f"w{i}" for i in range(first, first + size)) for first, size in places]
    (folder / "short.txt").write_text("\n".join(short))
    return folder


SOURCES = ["random:words.txt", "pg19:chunks.parquet", "fanfics:chunks.jsonl", "excerpts:books.jsonl", "chunks.jsonl"]
GENERATED = ["gen:chunks.jsonl", "gen:excerpts:books.jsonl", "gen:random:words.txt"]


def lists(arrays: list[np.ndarray]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


@pytest.mark.parametrize("source", SOURCES + GENERATED)
def test_lengths_and_independence_of_count(model: Model, files: Path, monkeypatch, source: str):
    monkeypatch.chdir(files)
    texts = load_tokens(model, source, count=19, length=12, seed=3)
    assert all(ids.shape == (12,) and ids.dtype == np.int32 for ids in texts)
    assert len({tuple(ids) for ids in lists(texts)}) == 19
    for count in (1, 7):
        assert lists(load_tokens(model, source, count=count, length=12, seed=3)) == lists(texts[:count])
    drawn = source not in ("pg19:chunks.parquet", "fanfics:chunks.jsonl", "chunks.jsonl")
    assert (lists(load_tokens(model, source, count=19, length=12, seed=4)) != lists(texts)) == drawn


def test_files_give_texts_that_are_long_enough(model: Model, files: Path):
    path = str(files / "short.txt")
    texts = load_tokens(model, path, count=3, length=8, split="lines")
    assert lists(texts) == [list(range(first, first + 8)) for first in (11, 31, 41)]
    assert lists(contexts(model, path, count=3, length=8, split="lines")) == lists(texts)
    assert len(load_tokens(model, f"gen:{path}", count=4, length=60, split="lines")) == 4
    with pytest.raises(UserError, match=r"short.txt: texts of 8 tokens: found 3, expected 4; give a smaller length"):
        load_tokens(model, path, count=4, length=8, split="lines")
    with pytest.raises(UserError, match=r"short.txt: contexts of 17 tokens: found 1, expected 2"):
        contexts(model, path, count=2, length=17, split="lines")


@pytest.mark.parametrize("source", ["pg19:chunks.parquet", "excerpts:books.jsonl"])
def test_a_context_stands_before_its_text(model: Model, files: Path, monkeypatch, source: str):
    monkeypatch.chdir(files)
    texts = load_tokens(model, source, count=20, length=30, seed=2)
    before = contexts(model, source, count=20, length=25, seed=2)
    name = "books.jsonl" if "books" in source else "chunks.jsonl"
    whole = [json.loads(line)["text"] for line in (files / name).read_text().splitlines()]
    encoded = ["".join(chr(i) for i in ids) for ids in model.tokenizer(whole)["input_ids"]]
    for context, text in zip(before, texts, strict=True):
        assert sum("".join(map(chr, [*context, *text])) in ids for ids in encoded) == 1
    if name == "chunks.jsonl":
        # Fourteen sentences of six tokens: the text begins with the eighth.
        halves = [model.tokenizer(text)["input_ids"][42:72] for text in whole]
        assert lists(texts) == halves[:20]


@pytest.mark.parametrize("name", ["pg19_valid_1k_chunks", "fanfics_1k_chunks"])
def test_chunks_come_from_the_hub(model: Model, files: Path, monkeypatch, name: str):
    rows = [json.loads(line) for line in (files / "chunks.jsonl").read_text().splitlines()]
    asked = []

    def load(path, **options):
        asked.append((path, options["split"]))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = name.split("_")[0]
    texts = load_tokens(model, source, count=5, length=12)
    assert asked == [(f"yurakuratov/{name}", "train")]
    monkeypatch.undo()
    assert lists(texts) == lists(load_tokens(model, f"{source}:{files / 'chunks.jsonl'}", count=5, length=12))


@pytest.fixture(scope="module")
def packaged() -> Model:
    return load_model("default")


def test_default_sources_of_the_packaged_model(packaged: Model):
    demo = load_tokens(packaged, "demo", count=8, length=32)
    assert packaged.tokenizer.decode(demo[0]).startswith("The lamp in the harbour office burned")
    words = packaged.tokenizer.decode(load_tokens(packaged, "random", count=1, length=256)[0]).split()
    assert len(words) > 60
    packaged_list = set(read_words(Path(corpora.__file__).parents[1] / "data" / "words.txt.xz"))
    assert set(words[:-1]) <= packaged_list
    (generated,) = load_tokens(packaged, "gen", count=1, length=6)
    (expected,) = continuations(packaged, contexts(packaged, "demo", count=1, length=32), length=6)
    np.testing.assert_array_equal(generated, expected[0])


@pytest.mark.parametrize("last", [False, True])
def test_long_texts_are_cut_before_they_are_tokenised(packaged: Model, last: bool):
    # Unbroken runs, which take few tokens a character, and words of other letters, which take many.
    line = "In the year {} the committee of Ypres — {} wrote: «Ǽé ж漢字 ¿».\n"
    text = "".join(line.format(i, "=" * (i % 90)) for i in range(3000))
    ids, given = packaged.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], []

    def tokenizer(part: str, **options):
        assert options["add_special_tokens"] is False
        given.append(len(part))
        return packaged.tokenizer(part, **options)

    for length in (1, 7, 100, 500):
        cut = corpora._cut(tokenizer, text, length, last=last)
        assert cut is not None
        assert cut.tolist() == (ids[-length:] if last else ids[:length])
    assert max(given) < len(text) / 10


@pytest.mark.parametrize("last", [False, True])
def test_more_is_read_until_there_are_tokens_enough(model: Model, last: bool):
    blank = " " * 50_000
    words = [" ".join(f"w{i}" for i in range(60)), blank]
    text = " ".join(words if last else words[::-1])
    cut = corpora._cut(model.tokenizer, text, 20, last=last)
    assert cut is not None
    assert cut.tolist() == (list(range(41, 61)) if last else list(range(1, 21)))
    assert corpora._cut(model.tokenizer, text, 61, last=last) is None


@pytest.mark.parametrize("last", [False, True])
def test_a_word_that_the_cut_divides_is_read_whole(model: Model, last: bool):
    # 8 · (1 + 64) characters are cut off at first: they end, or begin, within w12.
    blank = " " * (8 * 65 - 2)
    cut = corpora._cut(model.tokenizer, f"w13 w12{blank}" if last else f"{blank}w12 w13", 1, last=last)
    assert cut is not None
    assert cut.tolist() == [13]


def test_the_demo_texts_are_continued_in_turn(packaged: Model):
    many = load_tokens(packaged, "gen", count=18, length=6, seed=3)
    assert len({ids.tobytes() for ids in many}) == 18
    assert lists(load_tokens(packaged, "gen", count=5, length=6, seed=3)) == lists(many[:5])
    drawn = continuations(packaged, contexts(packaged, "demo", count=8, length=32), length=6, per_context=3, seed=3)
    assert lists(many) == lists([of_one[j] for j in range(3) for of_one in drawn][:18])


def test_continuations_are_drawn_by_generate(model: Model, files: Path):
    given = contexts(model, str(files / "chunks.jsonl"), count=3, length=20)
    drawn = continuations(model, given, length=9, per_context=2, seed=5)
    assert [len(of_one) for of_one in drawn] == [2, 2, 2]
    for j in range(2):
        direct = generate(model, given, count=9, temperature=1.0, seed=draw_seed(5, j), stop=())
        assert lists([of_one[j] for of_one in drawn]) == lists([generated.tokens for generated in direct])
    greedy = generate(model, given, count=9, stop=())
    assert all(of_one[0].tolist() != of_one[1].tolist() for of_one in drawn)
    assert lists([of_one[0] for of_one in drawn]) != lists([generated.tokens for generated in greedy])
    assert continuations(model, [], length=9) == []


def test_continuations_do_not_depend_on_how_many_there_are(model: Model, files: Path):
    given = contexts(model, str(files / "chunks.jsonl"), count=20, length=20)
    generation._continue.clear_cache()
    many = continuations(model, given, length=11, per_context=3, seed=1)
    few = continuations(model, given[:2], length=11, per_context=1, seed=1)
    assert [lists(of_one) for of_one in few] == [lists(of_one[:1]) for of_one in many[:2]]
    # One program for all, so that nothing is rounded otherwise.
    assert generation._continue._cache_size() == 1


def test_continuations_follow_the_tokens_given(model: Model, files: Path):
    """Temperature 1 is that of the model's own distribution: the first token's frequencies are its probabilities."""
    given = contexts(model, str(files / "chunks.jsonl"), count=1, length=20)
    logits = np.asarray(model.apply(model.params, model.embed(model.params, given[0])), np.float64)[-1]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    drawn = [of_one[0][0] for of_one in continuations(model, given * 4000, length=1)]
    found = np.bincount(drawn, minlength=len(expected)) / 4000
    # Half the sum of absolute differences, which 4,000 draws from 61 tokens keep below about 0.05.
    assert np.abs(found - expected).sum() / 2 < 0.06
    assert np.abs(expected - 1 / 61).sum() / 2 > 0.2


def test_bos_comes_first_and_nothing_ends_a_continuation(model: Model, files: Path):
    given = contexts(model, str(files / "chunks.jsonl"), count=2, length=20)
    with_bos = dataclasses.replace(model, tokenizer=SimpleNamespace(bos_token_id=7), stop_tokens=tuple(range(61)))
    drawn = continuations(with_bos, given, length=9)
    direct = generate(model, [[7, *ids] for ids in given], count=9, temperature=1.0, seed=draw_seed(0, 0), stop=())
    assert lists([of_one[0] for of_one in drawn]) == lists([generated.tokens for generated in direct])
    assert lists([of_one[0] for of_one in drawn]) != lists([o[0] for o in continuations(model, given, length=9)])


@pytest.mark.parametrize(
    ("length", "name", "bos"),
    [(30, "pg19:chunks.jsonl", None), (12, "excerpts:books.jsonl", None), (30, "random:words.txt", "w7")],
)
def test_generated_texts_continue_the_contexts_of_their_source(
    model: Model, files: Path, monkeypatch, length, name, bos
):
    """The context is as long as the model has room for, up to 128 tokens."""
    monkeypatch.chdir(files)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.bos_token = bos
    model = dataclasses.replace(model, tokenizer=tokenizer)
    texts = load_tokens(model, f"gen:{name}", count=5, length=length, seed=2, per_context=2)
    given = contexts(model, name, count=3, length=64 - length - (bos is not None), seed=2)
    drawn = continuations(model, given, length=length, per_context=2, seed=2)
    assert lists(texts) == lists([ids for of_one in drawn for ids in of_one][:5])
    assert 64 < CONTEXT == 128


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("pg91", {}, r"unknown source of texts 'pg91' .did you mean 'pg19'.*known: demo, .*, and files and hf:NAME"),
        ("excerpt:books.jsonl", {}, r"unknown source of texts 'excerpt' \(did you mean 'excerpts'\?\)"),
        ("missing.jsonl", {}, "missing.jsonl: no such file"),
        ("random:missing.txt", {}, "missing.txt: no list of words"),
        ("pg19:missing.csv", {}, "missing.csv: no such file"),
        ("pg19:", {}, "nothing follows the colon"),
        ("excerpts", {}, "expected excerpts:SOURCE"),
        ("demo:a.txt", {}, "demo takes no argument; to read a file, give 'a.txt' alone"),
        ("gen:gen", {}, "gen cannot continue what it generates"),
        ("gen:nothing", {}, "unknown source of texts 'nothing'"),
        ("gen:demo", {"length": 64}, "64 new tokens are beyond the model's context of 64; give a smaller length"),
        ("demo", {"length": 65}, "length = 65 is beyond the model's context of 64"),
        ("demo", {"length": 0}, "length = 0: expected at least 1"),
        ("demo", {"count": 0}, "count = 0: expected at least 1"),
        ("demo", {"count": 9}, "demo: texts of 8 tokens: found 8, expected 9"),
        ("demo", {"seed": -1}, "seed = -1: expected at least 0"),
        ("demo", {"per_context": 2}, "only gen continues contexts"),
        ("gen", {"per_context": 0}, "per_context = 0: expected at least 1"),
        ("demo", {"column": "txt"}, "no column 'txt' .did you mean 'text'"),
    ],
)
def test_refusals(model: Model, source: str, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_tokens(model, source, **({"count": 2, "length": 8} | options))


def test_other_refusals(model: Model):
    with pytest.raises(UserError, match="gen has no contexts of its own; ask for those of 'demo'"):
        contexts(model, "gen", count=1, length=8)
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokens(dataclasses.replace(model, tokenizer=None), "demo", count=1, length=8)
    with pytest.raises(UserError, match="prompt 1: 60 positions and 5 new tokens are beyond"):
        continuations(model, [[1], [2] * 60], length=5)
    with pytest.raises(UserError, match="prompt 1: empty text"):
        continuations(model, [[1], []], length=5)
    with pytest.raises(UserError, match="length = 0"):
        continuations(model, [[1]], length=0)


def test_every_name_is_explained_and_known(model: Model):
    assert set(names()) == {"random", "fanfics", "pg19", "excerpts", "gen", "demo"}
    for name, line in names().items():
        assert line
        assert "\n" not in line
        assert corpora._parse(f"{name}:a.txt" if name != "demo" else name)[0] == name

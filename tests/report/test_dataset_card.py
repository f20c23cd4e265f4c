"""The card of a pushed run: its numbers, and that nothing in the run's records can be more than text in it."""

from __future__ import annotations

import pytest
import yaml
from markdown_it import MarkdownIt
from store_runs import IDENTITY, results

from onestep_jax import Results
from onestep_jax.report.dataset_card import code, dataset_card, fenced
from onestep_jax.store.sharing.layout import configurations

HOSTILE = [
    "a: b\n---\n# Heading\n```\nx",
    "`` ` ```",
    "`",
    "<script>alert(1)</script> [x](javascript:x) ![y](http://z) | * _",
    "\x1b[31mred\x07 \u202egnp.exe \ud800",
    "{title} {0} %s",
    "",
]


def of(identity: dict, settings: dict, count: int = 3, name: str = "me/run", **how) -> tuple[dict, str]:
    """Head and body of a card."""
    texts = results(count)
    found = Results(tuple(texts), IDENTITY["scheme"], "abc", "default")
    config = {"identity": {**IDENTITY, **identity}, "settings": {"model": "default", **settings}}
    card = dataset_card(name, config, found, count + 1, tables=configurations(), **how)
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_numbers_of_the_run():
    head, body = of({}, {"preset": "fast"}, license="mit")
    assert head == {
        "license": "mit",
        "pretty_name": "me/run",
        "tags": ["onestep-jax", "proto-tokens"],
        "size_categories": ["n<1K"],
        "configs": configurations(),
    }
    assert "# `me/run`" in body
    assert "**Texts:** 3 of 4 recorded, 3 of them exact. By their ends: 3 solved." in body
    assert "**Tokens:** 3 a text; mean accuracy 1." in body
    assert "**Work:** 17.0 gradient evaluations a text on average." in body
    assert "**Model:** `default`, fingerprint `abc`, in `float32`." in body
    assert "**Preset:** `fast`" in body
    assert "onestep pull hf:me/run runs/run\nonestep decode runs/run --model default" in body
    assert 'load_dataset("me/run", split="train")' in body


def test_without_a_licence_the_card_has_none():
    head, _ = of({}, {})
    assert "license" not in head


@pytest.mark.parametrize("count", [3, 1001])
def test_sizes(count):
    head, _ = of({}, {}, count)
    assert head["size_categories"] == ["n<1K" if count == 3 else "1K<n<10K"]


def elements(markdown: str) -> list[str]:
    """Kinds of everything in a page but plain text and code."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        found += [token.type, *(inner.type for inner in token.children or [] if inner.type != "softbreak")]
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_the_records_is_more_than_code(text):
    plain_head, plain = of({"model": "x", "dtype": "x"}, {"model": "x", "preset": "x"})
    head, body = of({"model": text, "dtype": text}, {"model": text, "preset": text or "x"})
    assert head == plain_head
    assert elements(body) == elements(plain)


@pytest.mark.parametrize("text", HOSTILE)
def test_code_shows_what_it_was_given(text):
    shown = (
        text.replace("\x1b", "\ufffd").replace("\x07", "\ufffd").replace("\u202e", "\ufffd").replace("\ud800", "\ufffd")
    )
    (inline,) = (token for token in MarkdownIt().parse(f"a {code(text)} b") if token.type == "inline")
    (found,) = (token for token in inline.children or [] if token.type == "code_inline")
    assert found.content.split() == shown.split()
    (block,) = (token for token in MarkdownIt().parse(fenced(text, "sh")) if token.type == "fence")
    assert block.content.removesuffix("\n") == shown


def test_no_secret_is_on_the_card(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-any-form")
    _, body = of({}, {"model": "https://user:secret@host/m a-token-of-any-form", "preset": "hf_" + "x" * 30})
    for secret in ("secret", "a-token-of-any-form", "x" * 30):
        assert secret not in body


def test_a_scheme_of_python():
    scheme = {"arrangement": "of mine `x`", "group": 1}
    _, body = of({"scheme": scheme}, {})
    assert "**Arrangement:** `` of mine `x` ``" in body

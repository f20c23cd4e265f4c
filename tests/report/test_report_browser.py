"""The report's page in a real browser: its script runs under its own policy, draws what the run holds, and is quick."""

import json
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from pages import parse
from report_pages import HOSTILE, hostile_model

from onestep_jax import fit, load_model, read_results
from onestep_jax.report import write_report
from onestep_jax.report.markup import visible

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
PER_PAGE = 12  # cards that the page draws at first

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """(page, hash) → the document after its script has run."""
    profile = tmp_path_factory.mktemp("browser")

    def render(page, fragment=""):
        assert BROWSER is not None
        command = [BROWSER, "--headless=new", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
        command += [f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        address = page.as_uri() + (f"#{fragment}" if fragment else "")
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=240, check=True)
        document = parse(done.stdout)
        root = document.all("html")[0]
        return document, root

    return render


@pytest.fixture(scope="module")
def run(tiny_folder, token_lists, one_device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser-run") / "run"
    results = fit(load_model(tiny_folder), token_lists[:6], run=folder, steps=40, slots=3, placement=one_device)
    assert 0 < results.solved < 6
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return write_report([run], tmp_path_factory.mktemp("browser-out")).page


def tokens_of(document):
    """Classes of the tokens of each card."""
    cards = document.by_id("cards").all("article")
    return [
        [token.get("class").split() for token in card.all("span") if token.get("role") == "option"] for card in cards
    ]


def test_tokens_are_right_or_wrong_as_in_the_run(rendered, page, run):
    document, root = rendered(page)
    assert root.get("data-ready") == "true"
    assert "data-error" not in root.attributes
    assert "hidden" not in document.by_id("browser").attributes
    assert "open" not in document.by_id("plain").attributes
    assert "hidden" not in document.by_id("theme").attributes
    for text, classes in zip(read_results(run), tokens_of(document), strict=True):
        assert ["wrong" in one for one in classes] == (text.predicted != text.tokens).tolist()
        assert ["right" in one for one in classes] == (text.predicted == text.tokens).tolist()
    for box in (one for one in document.by_id("cards").all("div") if one.get("role") == "listbox"):
        assert [token.get("tabindex") for token in box.all("span")] == ["0"] + ["-1"] * 7
        for token in box.all("span"):
            assert token.get("aria-label").startswith("wrong: ") == ("wrong" in token.get("class").split())
    assert document.by_id("count").text == "6 texts"


def test_an_error_would_be_seen(rendered, page, tmp_path):
    broken = tmp_path / "broken.html"
    html = re.sub(r"; script-src 'sha256-[^']*'", "; script-src 'unsafe-inline'", page.read_text(encoding="utf-8"))
    broken.write_text(html.replace("recall();\n  browser.hidden", "nonsense();\n  browser.hidden"), encoding="utf-8")
    _, root = rendered(broken)
    assert "nonsense" in root.get("data-error")
    assert "data-ready" not in root.attributes


def test_no_other_script_runs(rendered, page, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text(encoding="utf-8").replace("recall();", "recall( );"), encoding="utf-8")
    _, root = rendered(changed)
    assert "data-ready" not in root.attributes


def test_the_filter_in_the_address(rendered, page, run):
    results = read_results(run)
    chosen = results[3]
    document, root = rendered(page, f"q={chosen.text_id}")
    assert "data-error" not in root.attributes
    (card,) = document.by_id("cards").all("article")
    assert chosen.text_id in card.text
    assert document.by_id("count").text == "1 of 6 texts"
    assert document.by_id("count").get("aria-live") == "polite"


def test_order_and_choice_in_the_address(rendered, page, run):
    results = read_results(run)
    document, _ = rendered(page, "show=wrong&sort=accuracy&color=nats&view=output")
    wrong = sorted((text for text in results if text.accuracy < 1), key=lambda text: text.accuracy)
    cards = document.by_id("cards").all("article")
    assert [card.all("h3")[0].text for card in cards] == [f"Text {text.index}" for text in wrong]
    for text, card in zip(wrong, cards, strict=True):
        words = [token.text.strip() for token in card.all("span") if token.get("role") == "option"]
        assert words == [f"w{i - 1}" if i else "<unk>" for i in text.predicted]
        heats = [token.get("style") for token in card.all("span") if token.get("role") == "option"]
        deepest = max(range(8), key=lambda i: -1 if np.isnan(text.nats[i]) else text.nats[i])
        assert float(heats[deepest].split(":")[1].strip(" ;")) > 0


def test_hostile_strings_in_a_browser(rendered, tiny_folder, one_device, tmp_path):
    source = hostile_model(tiny_folder, tmp_path / "hostile")
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    fit(load_model(source), [list(range(len(HOSTILE)))], run=folder, steps=5, slots=1, placement=one_device)
    document, root = rendered(write_report([folder], tmp_path / "out").page)
    assert root.get("data-ready") == "true"
    assert "data-error" not in root.attributes
    assert not document.all("img", "b")
    assert document.all("title")[0].text != "owned"
    (card,) = document.by_id("cards").all("article")
    shown = [token.text for token in card.all("span") if token.get("role") == "option"]
    words = [visible(word) if word != "\n" else "↵\n" for word in HOSTILE]
    assert [word.removeprefix(" ") for word in shown] == words


def test_sixty_four_texts_are_small_and_quick(rendered, tiny_folder, one_device, tmp_path):
    texts = np.random.default_rng(1).integers(1, 61, size=(64, 64)).tolist()
    folder = tmp_path / "run"
    fit(load_model(tiny_folder), texts, run=folder, steps=20, slots=32, placement=one_device)
    page = write_report([folder], tmp_path / "out").page
    assert page.stat().st_size < 2_000_000
    blank = tmp_path / "blank.html"
    blank.write_text("<!doctype html><html><title>blank</title></html>")
    rendered(blank)
    seconds = {}
    for path in (blank, page):
        began = time.perf_counter()
        document, root = rendered(path)
        seconds[path] = time.perf_counter() - began
    assert root.get("data-ready") == "true"
    assert len(document.by_id("cards").all("article")) == PER_PAGE
    assert document.by_id("more").text == f"Show {PER_PAGE} more"
    assert len(json.loads(document.by_id("data").text)["runs"][0]["texts"]) == 64
    assert seconds[page] - seconds[blank] < 5


def test_tokens_by_keyboard(rendered, page, run, tmp_path):
    results = read_results(run)
    text = next(text for text in results if 0 < text.c_tokens < 8 and text.tokens[0] == text.predicted[0])
    press = """<script>
      const keys = ["End", "ArrowUp", "Home", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "ArrowDown"];
      const places = [];
      document.querySelector(".token").focus();
      for (const key of keys) {
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        places.push(document.activeElement.dataset.i);
      }
      document.documentElement.dataset.places = places.join(" ");
    </script></body>"""
    html = re.sub(r"; script-src 'sha256-[^']*'", "; script-src 'unsafe-inline'", page.read_text(encoding="utf-8"))
    driven = tmp_path / "driven.html"
    driven.write_text(html.replace("</body>", press), encoding="utf-8")
    document, root = rendered(driven, f"q={text.text_id}")
    assert "data-error" not in root.attributes
    (card,) = document.by_id("cards").all("article")
    place, *_ = wrong = np.flatnonzero(text.tokens != text.predicted).tolist()
    last = max((i for i in wrong if i < 7), default=7)
    assert root.get("data-places").split() == [str(i) for i in (7, last, 0, 1, 2, 1, 0, place)]
    tokens = [token for token in card.all("span") if token.get("role") == "option"]
    assert [token.get("tabindex") for token in tokens] == ["0" if i == place else "-1" for i in range(8)]
    assert [token.get("aria-selected") for token in tokens] == ["true" if i == place else "false" for i in range(8)]
    (detail,) = [line for line in card.all("p") if "detail" in line.get("class")]
    expected, got = int(text.tokens[place]), int(text.predicted[place])
    words = [f"token {place + 1} of 8", f"expected “w{expected - 1}” ({expected}), got “w{got - 1}” ({got})"]
    first = int(text.trials[0].first_hit[place])
    words += [f"{text.nats[place]:.2f} nats"] if place else []
    words += ["never right" if first < 0 else f"first right at step {first}"]
    assert all(word in detail.text.replace("“ ", "“") for word in words), (words, detail.text)
    assert detail.get("role") == "status"

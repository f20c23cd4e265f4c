"""The report as a file: what it says equals what was recorded, whatever the texts hold, and it fetches nothing."""

import base64
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import re
import shlex
import shutil

import numpy as np
import pytest
from pages import parse
from report_runs import copy_run, read

from onestep_jax import OneStep, Optimizer, Results, UserError, fit, load_model, read_results
from onestep_jax.analysis.metrics import exact_horizon, horizon
from onestep_jax.cli.fit import optimizer_of, scheme_of
from onestep_jax.cli.parser import build_parser
from onestep_jax.fitting.optimizers import PRESETS, Schedule
from onestep_jax.prototokens.schemes import Cramming
from onestep_jax.report import charts, data, headline, wording, write_report
from onestep_jax.report.inputs import Found
from onestep_jax.report.markup import embedded, one_line, tag, visible
from onestep_jax.report.page import page_html
from onestep_jax.report.token_strings import token_pieces
from onestep_jax.store.reading import read_config
from onestep_jax.store.run import open_run

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<b>bold</b>",
    "<!--",
    "<![CDATA[",
    "&lt;&amp;",
    "\"'`",
    "$title",
    "${data}",
    "\x00",
    "\x1b[31m",
    "\u202eevil",
    "\u2028",
    "\x85",
    "שלום",
    "👩\u200d👩\u200d👧",
    "\ufffd",
    "\n",
    "=1+1",
]


@pytest.fixture(scope="module")
def run(tiny_folder, token_lists, one_device, tmp_path_factory):
    """A finished run of six texts, some of them exact; no test may change it."""
    folder = tmp_path_factory.mktemp("report") / "six"
    results = fit(load_model(tiny_folder), token_lists[:6], run=folder, steps=40, slots=3, placement=one_device)
    assert 0 < results.solved < 6
    return folder


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    return write_report([run], tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def page(report):
    return parse(report.page.read_text(encoding="utf-8"))


def page_data(page):
    return json.loads(page.by_id("data").text)


def rows_of(table):
    return [[cell.text for cell in row.all("th", "td")] for row in table.all("tr")]


# --- the page as a document ---


def check_document(page):
    """What every page must keep: nothing is fetched, ids and references fit, headings in order, all is labelled."""
    ids = [element.get("id") for element in page.walk() if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    for element in page.walk():
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
            if name in element.attributes:
                assert re.match(r"#|data:image/png;base64,", element.get(name)), (element.name, element.get(name))
        if element.get("href").startswith("#"):
            assert element.get("href")[1:] in ids
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert all(target in ids for target in element.get(name).split())
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"]
    assert not page.all("link", "base", "iframe", "object", "embed")
    (style,) = page.all("style")
    assert "@import" not in style.text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", style.text))
    levels = [int(heading.name[1]) for heading in page.all("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(image.get("alt") for image in page.all("img"))
    for table in page.all("table"):
        assert [part.name for part in table.content] == ["caption", "thead", "tbody"]
        assert table.content[0].text
        assert all(head.get("scope") in ("row", "col") for head in table.all("th"))
        widths = {len(row.content) for row in table.all("tr")}
        assert len(widths) == 1
    for svg in page.all("svg"):
        assert svg.get("aria-label") if svg.get("role") == "img" else svg.get("aria-hidden") == "true"
    labelled = [control for label in page.all("label") for control in label.all("input", "select")]
    assert len(labelled) == len(page.all("input", "select"))
    assert all(button.text for button in page.all("button"))
    assert [len(page.all(name)) for name in ("main", "header", "footer")] == [1, 1, 1]
    assert [element.name for element in page.all("head")[0].content if not isinstance(element, str)].count("title") == 1
    assert page.all("nav")[0].get("aria-label")
    assert page.all("html")[0].get("lang") == "en"
    skip = page.all("body")[0].all("a")[0]
    assert skip.get("href") == "#main"


def test_a_sound_document(page):
    check_document(page)


def test_a_browser_runs_our_script_and_no_other(page):
    (policy,) = [meta.get("content") for meta in page.all("meta") if meta.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for element, rule in ((page.all("script")[-1], "script-src"), (page.all("style")[0], "style-src")):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert [script.get("type") for script in page.all("script")] == ["application/json", ""]


def contrast(first, second):
    """WCAG 2 contrast of two colours #rrggbb."""

    def luminance(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark(page):
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", page.all("style")[0].text)
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks[:3]]
    assert themes[1] == themes[2] != themes[0]
    for theme in themes:
        for ink in ("ink", "muted", "accent", "wrong"):
            assert contrast(theme[ink], theme["paper"]) >= 4.5
        for ink, paper in (("wrong", "wrong-paper"), ("ink", "right"), ("ink", "raised"), ("muted", "raised")):
            assert contrast(theme[ink], theme[paper]) >= 4.5
        for bar in ("accent", "middle"):
            assert contrast(theme[bar], theme["paper"]) >= 2.7


# --- what it says ---


def test_data_equals_the_run(page, run):
    results, found = read_results(run), page_data(page)
    (described,) = found["runs"]
    assert described["strings"] is True
    assert len(described["texts"]) == len(results)
    for text, row in zip(results, described["texts"], strict=True):
        assert (row["index"], row["id"], row["exact"]) == (text.index, text.text_id, text.c_tokens)
        assert (row["accuracy"], row["steps"], row["seed"]) == (text.accuracy, text.steps, text.seed)
        assert (row["status"], row["tokens"]) == (text.status, text.tokens.tolist())
        assert row["h_lm"] == pytest.approx(text.h_lm, abs=5e-4)
        output = [row["wrong"][str(i)][0] if str(i) in row["wrong"] else id_ for i, id_ in enumerate(row["tokens"])]
        assert output == text.predicted.tolist()
        assert len(row["wrong"]) == len(text.tokens) - text.c_tokens
        known = np.array([np.nan if nats is None else nats for nats in row["nats"]])
        np.testing.assert_allclose(known, text.nats, atol=5e-4)
        assert row["first"] == text.trials[0].first_hit.tolist()
        pieces = [found["pieces"][place].strip() for place in row["pieces"]]
        assert pieces == [f"w{id_ - 1}" if id_ else "<unk>" for id_ in row["tokens"]]
        for place, (id_, piece) in row["wrong"].items():
            assert found["pieces"][piece].strip() == (f"w{id_ - 1}" if id_ else "<unk>")
            assert id_ != row["tokens"][int(place)]


def test_numbers_shown_equal_the_run(page, run):
    results = read_results(run)
    terms, values = page.by_id("summary").all("dt"), page.by_id("summary").all("dd")
    tiles = {term.text: value.text for term, value in zip(terms[:7], values[0:14:2], strict=True)}
    tokens, nats = sum(len(text.tokens) for text in results), sum(text.h_lm for text in results)
    assert tiles["Exact texts"] == f"{results.solved} of 6"
    assert tiles["Reconstructed texts"] == f"{(results.accuracy >= 0.99).sum()} of 6"
    assert tiles["Mean accuracy"] == f"{results.accuracy.mean():.4f}"
    assert tiles["Exact tokens"] == f"{sum(text.c_tokens for text in results)} of {tokens}"
    assert tiles["Information (H_LM)"] == f"{nats:,.0f} nats"
    assert f"{nats / math.log(2):,.0f} bits; {nats / 6:,.1f} nats a text" in page.by_id("summary").text
    assert tiles["Steps"] == f"{np.median(results.steps):.0f}"
    assert "[e] [m]×(N−1)" in page.by_id("summary").text
    assert f"6 texts, {results.solved} of them exact" in page.all("header")[0].text
    assert "preset fast: cautious_lbfgs (learning_rate 1" in page.by_id("summary").text
    sizes = {row[0]: row[1] for row in rows_of(page.by_id("summary").all("table")[0])}
    assert sizes["Learned vectors, float32"] == f"{6 * 2 * 32 * 4:,} bytes"
    assert sizes["Token ids, 6 bits each"] == "36 bytes"
    written = sum(len(" ".join(f"w{i - 1}" if i else "<unk>" for i in text.tokens)) for text in results)
    assert sizes["Text, UTF-8"] == f"{written} bytes"
    assert f"{1536 / written:.1f} times the text itself" in page.by_id("summary").text


def test_without_a_script_the_texts_are_there(page, run):
    plain = page.by_id("plain")
    assert "open" in plain.attributes
    assert "hidden" in page.by_id("browser").attributes
    rows = rows_of(plain.all("table")[0])[1:]
    for text, row in zip(read_results(run), rows, strict=True):
        target = " ".join(f"w{i - 1}" if i else "<unk>" for i in text.tokens)
        output = " ".join(f"w{i - 1}" if i else "<unk>" for i in text.predicted)
        assert row[:3] == [str(text.index), target, "the same" if text.accuracy == 1 else output]
        assert row[3:6] == [f"{text.c_tokens} of 8", wording.accuracy(text.accuracy), str(first_error(text))]
        assert row[6:] == [f"{text.h_lm:,.1f}", f"{text.steps}", text.status]
    assert len(page.by_id("capacity").all("svg")[0].all("g")) == 6
    assert len([line for line in page.by_id("curves").all("polyline") if "one" in line.get("class")]) == 12


def first_error(text):
    return next((i for i in range(len(text.tokens)) if text.tokens[i] != text.predicted[i]), len(text.tokens))


def test_table_has_a_row_a_text(report, run):
    with report.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for text, row in zip(read_results(run), rows, strict=True):
        for name in ("index", "text_id", "c_tokens", "steps", "best_step", "seed", "status"):
            assert row[name] == str(getattr(text, name))
        for name in ("accuracy", "loss", "seconds"):
            assert float(row[name]) == getattr(text, name)
        assert float(row["h_lm_nats"]) == text.h_lm
        assert float(row["h_lm_bits"]) == pytest.approx(text.h_lm / math.log(2))
        assert row["token_ids"] == " ".join(map(str, text.tokens))
        assert row["output_ids"] == " ".join(map(str, text.predicted))
        assert (row["run"], row["length"]) == ("six", "8")
        assert row["exact"] == str(int(text.accuracy == 1))
        assert row["reconstructed"] == str(int(text.accuracy >= 0.99))
        assert int(row["exact_horizon"]) == exact_horizon(text.predicted, text.tokens)
        assert int(row["horizon"]) == horizon(text.predicted, text.tokens)


def test_figures_are_pictures(report):
    assert [path.name for path in report.figures] == ["capacity.png", "curves.png"]
    assert all(path.read_bytes()[:8] == PNG[:8] and path.stat().st_size > 5000 for path in report.figures)


def test_the_same_run_gives_the_same_page(run, report, tmp_path):
    again = write_report([run], tmp_path)
    assert again.page.read_bytes() == report.page.read_bytes()
    assert again.table.read_bytes() == report.table.read_bytes()


# --- hostile strings ---


def hostile_model(tiny_folder, folder):
    """The tiny model with a tokenizer whose words are hostile."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(tiny_folder, folder)
    words = [*HOSTILE, *(f"w{i}" for i in range(61 - len(HOSTILE)))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0").save_pretrained(folder)
    return folder


def test_hostile_strings_stay_text(tiny_folder, one_device, tmp_path):
    source = hostile_model(tiny_folder, tmp_path / "</script><i>")
    folder = tmp_path / "<b>&\"'$title"
    count = len(HOSTILE)
    fit(
        load_model(source),
        [list(range(count)), list(range(count - 1, -1, -1))],
        run=folder,
        steps=5,
        placement=one_device,
    )
    report = write_report([folder], tmp_path / "out")
    html = report.page.read_text(encoding="utf-8")
    page = parse(html)
    check_document(page)
    assert not page.all("b", "i")
    assert len(page.all("script")) == 2
    assert page.all("h1")[0].text == folder.name
    found = page_data(page)
    pieces = [found["pieces"][place].removeprefix(" ") for place in found["runs"][0]["texts"][0]["pieces"]]
    assert pieces == [visible(word) for word in HOSTILE]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", html)
    cell = rows_of(page.by_id("plain").all("table")[0])[1][1]
    assert all(one_line(word) in cell for word in HOSTILE)
    with report.table.open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert row["text"] == load_model(source).tokenizer.decode(range(count))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x00\x07\x7f", "␀␇␡"),
        ("\u202e\u200f\ufeff\xad", "⟨U+202E⟩⟨U+200F⟩⟨U+FEFF⟩⟨U+00AD⟩"),
        ("\x85\u2028\ud800", "⟨U+0085⟩⟨U+2028⟩⟨U+D800⟩"),
        ("👩\u200d👧 نمی\u200cخواهم é", "👩\u200d👧 نمی\u200cخواهم é"),
    ],
)
def test_controls_are_made_visible(text, shown):
    assert visible(text) == shown


def test_markup_escapes_what_it_did_not_make():
    made = tag("p", "<b>", tag("i", 'x"y'), 3, class_='a"b', aria_label="<", hidden=True, title=None)
    assert made == '<p class="a&quot;b" aria-label="&lt;" hidden>&lt;b&gt;<i>x&quot;y</i>3</p>'
    assert tag("input", name="q", disabled=False) == '<input name="q">'


def test_embedded_json_closes_no_script():
    value = {"a": ["</script>", "<!--", "\u2028", "é"]}
    written = embedded(value)
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == value


@pytest.mark.parametrize("text", ["The ferry left.\n\tfor x in  y:", "naïve 👩\u200d👧 – “tail”", "日本語 שלום"])
def test_pieces_join_to_the_text(text):
    from onestep_jax.model.checkpoint import describe, load_tokenizer
    from onestep_jax.model.hub import locate

    folder = locate("default")
    tokenizer = load_tokenizer(folder, describe(folder)[2])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "\ufffd" not in "".join(pieces)
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda byte: bytes([int(byte[1], 16)]), "".join(pieces).encode())
    assert raw.decode() == text


# --- which folders ---


def test_several_runs_are_compared(run, tmp_path):
    other = copy_run(run, tmp_path / "b" / "six")
    single = copy_run(run, tmp_path / "single", recorded=1)
    report = write_report([run, other, single], tmp_path / "out")
    page = parse(report.page.read_text(encoding="utf-8"))
    check_document(page)
    names = [described["name"] for described in page_data(page)["runs"]]
    assert names == [f"{run.parent.name}/six", "b/six", "single"]
    rows = rows_of(page.by_id("summary").all("table")[0])[1:]
    results = read_results(run)
    assert [row[0] for row in rows] == names
    assert rows[0][3:6] == ["6", str(results.solved), str((results.accuracy >= 0.99).sum())]
    assert rows[2][3] == "1"
    bars = page.by_id("capacity").all("svg")[0].all("g")
    assert len(bars) == 9
    assert [bar.text for bar in bars[:3]] == [f"{sum(t.c_tokens for t in results) / 6:.4g}", "8", "8"]
    assert [option.text for option in page.by_id("run").all("option")] == ["all runs", *names]
    assert len(report.figures) == 4
    with report.table.open(newline="", encoding="utf-8") as file:
        assert [row["run"] for row in csv.DictReader(file)] == [names[0]] * 6 + [names[1]] * 6 + [names[2]]


def test_an_unfinished_run_says_so(run, tmp_path):
    copy_run(run, tmp_path / "part", recorded=2)
    page = parse(write_report([tmp_path / "part"], tmp_path / "out").page.read_text(encoding="utf-8"))
    assert "unfinished: 2 of its 6 texts are recorded" in page.by_id("summary").text
    assert len(page_data(page)["runs"][0]["texts"]) == 2


def test_a_finished_run_says_nothing_of_it(page):
    assert "unfinished" not in page.text


def test_token_ids_where_no_tokenizer_can_be_had(tiny, token_lists, one_device, tmp_path):
    fit(tiny, token_lists[:2], run=tmp_path / "run", steps=5, slots=2, placement=one_device)
    page = parse(write_report([tmp_path / "run"], tmp_path / "out").page.read_text(encoding="utf-8"))
    check_document(page)
    assert "Token ids are shown in place of words" in page.by_id("texts").text
    found = page_data(page)
    row = found["runs"][0]["texts"][0]
    assert found["runs"][0]["strings"] is False
    assert [found["pieces"][place] for place in row["pieces"]] == [str(token) for token in row["tokens"]]
    assert rows_of(page.by_id("plain").all("table")[0])[1][1] == " ".join(map(str, token_lists[0]))
    assert "Text, UTF-8" not in page.by_id("summary").text
    assert "times the token ids" in page.by_id("summary").text


def test_folders_that_are_none_are_refused(run, tmp_path):
    copy_run(run, tmp_path / "empty", recorded=0)
    (tmp_path / "bare").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("[1]")
    for folders, words in (
        ([tmp_path / "empty"], "no text is recorded yet"),
        ([run, tmp_path / "empty"], "empty: no text is recorded yet"),
        ([tmp_path / "bare"], "no run directory"),
        ([tmp_path / "nowhere"], "no run directory"),
        ([tmp_path / "odd"], "config.json: of no run and of no experiment"),
        ([], "no folder"),
    ):
        with pytest.raises(UserError, match=words):
            write_report(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_runs_is_all_of_them(run, tmp_path):
    for name in ("a", "b"):
        copy_run(run, tmp_path / "runs" / name)
    copy_run(run, tmp_path / "runs" / "begun", recorded=0)
    calls = []
    report = write_report([tmp_path / "runs"], tmp_path / "out", progress=lambda *call: calls.append(call))
    page = parse(report.page.read_text(encoding="utf-8"))
    assert [described["name"] for described in page_data(page)["runs"]] == ["a", "b"]
    assert "begun: no text is recorded yet, so it is left out" in page.by_id("summary").text
    assert calls == [(1, 3), (2, 3), (3, 3)]


# --- experiments ---


@pytest.fixture
def experiment(tmp_path):
    folder = tmp_path / "connectivity"
    folder.mkdir()
    config = {"experiment": "connectivity", "title": "Figure 7, <connectivity>", "settings": {"pairs": 45}}
    config["captions"] = {"curve.png": "Accuracy along the line & the Bézier curve"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "curve.png").write_bytes(PNG)
    rows = [["pair", "kind", "accuracy"], ["1", "<i>line</i>", "0.25"], ["2", "curve\x00", "1.0"], ["3"]]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_an_experiment_shows_its_figures_and_tables(experiment, tmp_path):
    report = write_report([experiment], tmp_path / "out")
    assert (report.table, report.figures) == (None, ())
    page = parse(report.page.read_text(encoding="utf-8"))
    check_document(page)
    shown = page.by_id("experiments")
    assert shown.all("h3")[0].text == page.all("h1")[0].text == "Figure 7, <connectivity>"
    (image,) = shown.all("img")
    assert base64.b64decode(image.get("src").removeprefix("data:image/png;base64,")) == PNG
    assert "Accuracy along the line & the Bézier curve" in image.get("alt")
    rows = rows_of(shown.all("table")[0])
    assert rows == [["pair", "kind", "accuracy"], ["1", "<i>line</i>", "0.25"], ["2", "curve␀", "1.0"], ["3", "", ""]]
    classes = [cell.get("class") for cell in shown.all("table")[0].all("tr")[1].all("th", "td")]
    assert classes == ["n", "", "n"]
    assert ["settings.pairs", "45"] in rows_of(shown.all("table")[1])


def test_runs_of_an_experiment_come_with_it(experiment, run, tmp_path):
    copy_run(run, experiment / "runs" / "first")
    page = parse(write_report([experiment], tmp_path / "out").page.read_text(encoding="utf-8"))
    check_document(page)
    assert [described["name"] for described in page_data(page)["runs"]] == ["first"]
    assert page.by_id("experiments")
    assert page.all("h1")[0].text == "Figure 7, <connectivity>"
    both = parse(write_report([experiment, run], tmp_path / "both").page.read_text(encoding="utf-8"))
    assert both.all("h1")[0].text == "2 runs"


def test_long_tables_are_cut_and_empty_ones_named(experiment, tmp_path):
    (experiment / "long.csv").write_text("a\n" + "\n".join(map(str, range(300))) + "\n")
    (experiment / "none.csv").write_text("")
    page = parse(write_report([experiment], tmp_path / "out").page.read_text(encoding="utf-8"))
    (table,) = [table for table in page.all("table") if "long.csv" in table.content[0].text]
    assert "first 200 of 300 rows" in table.content[0].text
    assert len(table.all("tr")) == 201
    assert "none.csv is empty" in page.by_id("experiments").text


def test_a_table_that_is_no_text_is_refused(experiment, tmp_path):
    (experiment / "bad.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"bad\.csv: no CSV in UTF-8"):
        write_report([experiment], tmp_path / "out")


# --- the parts ---


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (OneStep(), "[e] [m]×(N−1)"),
        (OneStep("unguided-e"), "[e] [m]×N, first output ignored"),
        (OneStep(share="m", group=16), "[e] [m]×(N−1), m shared by 16 texts"),
        (Cramming(2), "[mem]×2 [t_1 … t_(N−1)]"),
    ],
)
def test_notation(scheme, words):
    assert wording.notation(scheme.describe()) == words


OPTIMIZERS = [
    None,
    Optimizer("lion", {"learning_rate": 0.005, "b2": 0.95}),
    Optimizer("adamw", {"learning_rate": 0.1, "nesterov": True}, Schedule("cosine_decay", {"decay_steps": 60})),
    Optimizer("sgd", {"learning_rate": 1e-05}),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheme", [OneStep(), OneStep("alternating", share="e", group=2), Cramming(3)])
def test_the_command_says_what_was_run(run, tmp_path, optimizer, scheme):
    config = read_config(run)
    described = (optimizer or PRESETS["fast"].optimizer).describe()
    identity = config["identity"] | {"optimizer": described, "scheme": scheme.describe(), "record": True, "length": 8}
    words = wording.fit_command(tmp_path / "a run", identity, config["settings"] | {"copies": 2})
    program, *options = shlex.split(words)
    args, args.rest = build_parser().parse_known_args(options)
    assert program == "onestep"
    assert optimizer_of(args, PRESETS["fast"].optimizer).describe() == described
    assert scheme_of(args, 12).describe() == scheme.describe()
    assert (args.run, args.length, args.steps, args.copies) == (tmp_path / "a run", 8, 40, 2)
    assert (args.model, args.dtype, args.record) == (config["settings"]["model"], "float32", True)


def test_no_command_for_what_the_command_line_cannot_say(run):
    config = read_config(run)
    identity = config["identity"]
    assert wording.fit_command(run, identity | {"length": 8}, config["settings"])
    constant = Optimizer("sgd", {"learning_rate": 1}, Schedule("constant")).describe()
    changes = (
        {"length": None},
        {"start vectors": "abc"},
        {"optimizer": {"name": "a", "object": True}},
        {"optimizer": constant},
    )
    for change in changes:
        assert wording.fit_command(run, identity | {"length": 8} | change, config["settings"]) is None
    assert wording.fit_command(run, identity | {"length": 8}, config["settings"] | {"preset": "given"}) is None


def test_shared_vectors_are_counted_once(tiny, token_lists, one_device, tmp_path):
    fit(
        tiny,
        token_lists[:4],
        run=tmp_path / "run",
        steps=5,
        slots=2,
        placement=one_device,
        scheme=OneStep(share="m", group=2),
    )
    assert headline.sizes(read(tmp_path / "run")).vectors == (4 + 2) * 32 * 4


def test_teacher_forcing_is_said(tiny, token_lists, one_device, tmp_path, page):
    fit(tiny, token_lists[:1], run=tmp_path / "run", steps=5, slots=2, placement=one_device, scheme=Cramming(1))
    found = Found((read(tmp_path / "run"),), ())
    assert "teacher forcing" in parse(page_html(found)).by_id("texts").text
    assert "teacher forcing" not in page.text


def test_a_page_holds_so_many_texts(run, monkeypatch):
    monkeypatch.setattr(data, "TEXTS", 4)
    page = parse(page_html(Found((read(run),), ())))
    assert len(page_data(page)["runs"][0]["texts"]) == 4
    assert "holds 4 of 6 texts" in page.by_id("texts").text
    monkeypatch.setattr(data, "TOKENS", 17)
    assert len(data.shown_texts([read(run)])[0]) == 2
    monkeypatch.setattr(data, "TOKENS", 1)
    assert len(data.shown_texts([read(run)])[0]) == 1


def test_curves_are_bounded_and_their_median_counts_finished_texts(run, monkeypatch):
    results = read_results(run)

    def with_trace(text, trace):
        return dataclasses.replace(text, trials=(dataclasses.replace(text.trials[0], trace=np.array(trace)),))

    traces = [
        [[step, 1.0, 0.5] for step in range(1, 5001)],
        [[10.0, 2.0, 1.0], [20.0, np.nan, 1.0]],
        [[10.0, 2.0, 0.9]],
    ]
    texts = [with_trace(text, trace) for text, trace in zip(results, traces, strict=False)]
    monkeypatch.setattr(charts, "POINTS", 300)
    svg = parse(charts.curves(texts, "accuracy", "title"))
    *lines, median = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in svg.all("polyline")
    ]
    assert [len(line) for line in (*lines, median)] == [100, 1, 1, 150]
    assert {y for _, y in median} == {lines[2][0][1]}
    assert median[-1][0] == lines[0][-1][0]
    flat = [with_trace(results[0], [[10.0, 0.0, 1.0]])]
    assert "polyline" in charts.curves(flat, "loss", "title")
    assert "No curve" in charts.curves([dataclasses.replace(results[0], trials=())], "loss", "title")


@pytest.mark.parametrize("value", [0, 1, 4, 5, 11, 12, 90, 181, 256, 257, 999, 1000, 1448, 12345])
def test_axes_end_on_round_numbers(value):
    top = charts.nice_ceiling(value)
    assert max(value, 4) <= top <= max(4, 1.67 * value)
    assert top % 4 == 0


def test_accuracy_is_one_only_when_it_is():
    assert [wording.accuracy(value) for value in (1, 0.99999, 0.61719, 0)] == ["1", "0.9999", "0.6172", "0.0000"]


def test_results_of_a_failed_trial_are_shown(run, tmp_path):
    results, config = read_results(run), read_config(run)
    failed = dataclasses.replace(results[0], loss=math.nan, status="failed", nats=np.full(8, np.nan, np.float32))
    with open_run(
        tmp_path / "run", config["identity"], config["settings"], [(failed.text_id, failed.tokens)]
    ) as opened:
        opened.append(Results((failed,), results.scheme, results.model).texts)
    page = parse(write_report([tmp_path / "run"], tmp_path / "out").page.read_text(encoding="utf-8"))
    row = page_data(page)["runs"][0]["texts"][0]
    assert row["nats"] == [None] * 8
    assert row["status"] == "failed"

"""The page as a document: it is sound, fetches nothing, and strings stay text whatever they hold."""

import base64
import csv
import hashlib
import re

from pages import parse
from report_pages import HOSTILE, check_document, hostile_model, page_data, rows_of

from onestep_jax import fit, load_model
from onestep_jax.report import write_report
from onestep_jax.report.markup import one_line, visible


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

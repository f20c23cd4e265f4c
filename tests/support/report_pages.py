"""What the tests of the report look at: a hostile vocabulary, and what every page must keep."""

import base64
import itertools
import json
import re
import shutil

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


def page_data(page):
    return json.loads(page.by_id("data").text)


def rows_of(table):
    return [[cell.text for cell in row.all("th", "td")] for row in table.all("tr")]


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

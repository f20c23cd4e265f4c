"""A file is read as what it is: that very path, its own characters, its own columns."""

import bz2
import csv
import gzip
import json
import lzma
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from onestep_jax import UserError
from onestep_jax.cli.parser import main
from onestep_jax.store.reading import read_results
from onestep_jax.texts.files import read_source, read_with_prefixes

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}
# What other readers take for numbers, dates, truth values or nothing.
WORDS = ["NA", "null", "None", "nan", "3141592653", "00123", "True", "2024-05-01", " ", "1e5", "-"]


NEIGHBOURS = {  # a name that some reader takes for a pattern or an address → a file that it would read
    "books[1].jsonl": "books1.jsonl",
    "what?1.jsonl": "whats1.jsonl",
    "s*.jsonl": "sun.jsonl",
    "{a,b}.jsonl": "a.jsonl",
    "gs::a.jsonl": "a.jsonl",
    "a\\b.jsonl": "ab.jsonl",
    "%61.jsonl": "a.jsonl",
    "~.jsonl": "a.jsonl",
}


@pytest.mark.parametrize(("name", "other"), NEIGHBOURS.items())
def test_a_name_is_no_pattern(tmp_path, name, other):
    (tmp_path / other).write_text('{"text": "another"}\n')
    with pytest.raises(UserError, match="no such file"):
        read_source(str(tmp_path / name))
    (tmp_path / name).write_text('{"text": "this"}\n')
    assert read_source(str(tmp_path / name)) == ["this"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".parquet"])
def test_nothing_is_converted(tmp_path, ending):
    path = tmp_path / f"words{ending}"
    if ending == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([word] for word in WORDS)])
    elif ending == ".parquet":
        pq.write_table(pa.table({"text": WORDS}), path)
    else:
        rows = [{"text": word} for word in WORDS]
        path.write_text(json.dumps(rows) if ending == ".json" else "\n".join(map(json.dumps, rows)))
    assert read_source(str(path)) == WORDS


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name", ["UP.JSONL", "up.Txt", "up.CSV", "up.Parquet"])
def test_endings_of_any_case_and_packing(tmp_path, name, ending):
    pq.write_table(pa.table({"text": ["è\n"]}), tmp_path / "table")
    kind = name.lower().split(".")[1]
    content = {"jsonl": '{"text": "è\\n"}', "txt": "è\n", "csv": 'text\n"è\n"\n'}.get(kind, "").encode()
    path = tmp_path / (name + ending.upper())
    path.write_bytes(PACK[ending](content or (tmp_path / "table").read_bytes()))
    assert read_source(str(path)) == ["è\n"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("ending", [*PACK][1:])
def test_a_cut_file_is_no_shorter_one(tmp_path, ending, kind):
    words = np.random.default_rng(0).integers(10**9, size=20_000).astype(str).tolist()
    pq.write_table(pa.table({"text": words}), tmp_path / "table")
    lines = words if kind == "txt" else ["text", *words] if kind == "csv" else [json.dumps({"text": w}) for w in words]
    content = (tmp_path / "table").read_bytes() if kind == "parquet" else "\n".join(lines).encode()
    packed = PACK[ending](content)
    path = tmp_path / f"a.{kind}{ending}"
    path.write_bytes(packed)
    assert read_source(str(path), split="lines") == words
    for kept in (len(packed) - 1, len(packed) // 2, 20):
        path.write_bytes(packed[:kept])
        with pytest.raises(UserError, match=r"cannot be read \(.* end(s|ed) .*\); is it damaged"):
            read_source(str(path), split="lines")


def test_frames_of_a_zst_follow_each_other(tmp_path):
    skipped = b"\x50\x2a\x4d\x18" + b"\x05\x00\x00\x00" + b"extra"
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"one\n" * 9999) + skipped + zstandard.compress(b"two"))
    assert read_source(str(path), split="lines") == ["one"] * 9999 + ["two"]
    path.write_bytes(zstandard.compress(b"one") + b"no frame")
    with pytest.raises(UserError, match="cannot be read"):
        read_source(str(path))


def test_bytes_of_a_text_are_kept_but_its_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\x0c two\x85\xe2\x80\xa8\rthree\r\n".replace(b"\x85", b"\xc2\x85"))
    assert read_source(str(path)) == ["one\r\n\x0c two\x85\u2028\rthree\r\n"]
    assert read_source(str(path), split="lines") == ["one", "\x0c two\x85\u2028\rthree"]
    table = tmp_path / "a.csv"
    table.write_bytes(b'\xef\xbb\xbftext,n\r\n"a\r\nb",1\r\n\r\n')
    assert read_source(str(table)) == ["a\r\nb"]


def test_a_cell_may_be_a_book(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(f"text\n{'word ' * 100_000}\n")
    assert len(read_source(str(path))[0]) == 500_000


def test_columns_that_come_late(tmp_path):
    """A column that first appears past what a reader would look at, and one that no row has."""
    path = tmp_path / "late.jsonl"
    early = json.dumps({"text": "x" * 1000}) + "\n"
    path.write_text(early * 12_000 + json.dumps({"text": "last", "more": {"deep": 1}, "prefix": "before"}) + "\n")
    texts = read_source(str(path))
    assert (len(texts), texts[-1]) == (12_001, "last")
    assert read_with_prefixes(str(path), "prefix")[1][-2:] == ["none", "before"]
    with pytest.raises(UserError, match=r"no column 'prefixx'.*did you mean 'prefix'"):
        read_with_prefixes(str(path), "prefixx")
    with pytest.raises(UserError, match="no column 'more'; it has text"):
        read_source(str(path), column="more")


@pytest.mark.parametrize("name", ["deep.jsonl", "deep.json"])
def test_a_deep_nest_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"text": ' + "[" * 10**6 + "]" * 10**6 + "}\n")
    with pytest.raises(UserError, match="nested too deeply"):
        read_source(str(path))


def test_forms_of_json(tmp_path):
    path = tmp_path / "a.json"
    for content in ('[{"text": "a"},\n {"text": "b"}]', '{"text": "a"}\n{"text": "b"}\n'):
        path.write_text(content)
        assert read_source(str(path)) == ["a", "b"]
    path.write_text('{\n  "text": "a"\n}\n')
    assert read_source(str(path)) == ["a"]


def test_local_files_need_no_cache_folder(tmp_path, monkeypatch):
    """`datasets` makes folders below HF_HOME when it is imported; here it cannot even be imported."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert read_source(str(tmp_path / "a.jsonl")) == ["a"]


def test_configurations_of_a_data_set(tmp_path):
    """Read by `datasets` itself, from a folder in the hub's form."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps({"text": f"of {name}", "note": "n"}) + "\n")
    blocks = "".join(
        f"- config_name: {n}\n  data_files:\n  - split: test\n    path: {n}/*.jsonl\n" for n in ("one", "two")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{blocks}---\n")
    assert read_source(f"hf:{tmp_path}@two:test") == ["of two"]
    assert read_source(f"hf:{tmp_path}@one:test:note") == ["n"]
    with pytest.raises(UserError, match=r"cannot be read \(.*(one|Config)"):
        read_source(f"hf:{tmp_path}@three:test")
    with pytest.raises(UserError, match=r"expected hf:NAME\[@CONFIG\]"):
        read_source("hf:name@:test")


def test_configuration_is_passed_on(monkeypatch):
    asked = []

    def load(*name, **arguments):
        asked.append((name, arguments["split"]))
        return [{"text": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    read_source("hf:org/name@20240101.en")
    assert asked == [(("org/name", "20240101.en"), "train")]


@pytest.mark.long
def test_a_prefix_file_keeps_its_bytes(tiny_folder, tmp_path):
    (tmp_path / "before.txt").write_bytes(b"\xef\xbb\xbfw1\r\nw2")
    (tmp_path / "a.txt").write_text("w3 w4 w5")
    command = ["fit", "--model", str(tiny_folder), "--texts", str(tmp_path / "a.txt"), "--length", "3", "--steps", "2"]
    assert main([*command, "--run", str(tmp_path / "run"), "--prefix", f"@{tmp_path / 'before.txt'}"]) == 0
    assert read_results(tmp_path / "run")[0].prefix.tolist() == [2, 3]

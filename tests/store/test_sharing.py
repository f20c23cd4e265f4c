"""A run goes to the hub and comes back the same, and what is not a run, or damaged, does not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import EMPTY, READER, WRITER, DataSet, environment, turn_to
from options import quick_of
from store_runs import IDENTITY, opened, results, same

from onestep_jax import Cramming, OneStep, UserError, fit, read_results
from onestep_jax.store.reading import read_config, read_texts
from onestep_jax.store.sharing import layout, tables
from onestep_jax.store.sharing.hub import download, repository, upload
from onestep_jax.store.sharing.packing import check_finished, pack, public_config, unpack
from onestep_jax.store.status import read_status
from onestep_jax.store.storage import remove, run_path
from onestep_jax.store.verify import verify
from onestep_jax.tokens import texts_digest

# huggingface_hub hands files to httpx in the way of requests.
pytestmark = [
    pytest.mark.usefixtures("logged_in"),
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"),
]


def made(folder: Path, count: int = 5, **how) -> Path:
    """A finished run of nothing."""
    texts = results(count, **how)
    identity = {**IDENTITY, "texts": texts_digest(text.text_id for text in texts)}
    with opened(folder, texts, identity) as run:
        run.append(texts)
    return folder


def packed(run: Path, folder: Path) -> list[str]:
    found = read_results(run)
    folder.mkdir()
    return pack(run, found, [f"text {text.index}" for text in found], "# A card\n", folder)


def pushed(run: Path, folder: Path, name: str = "me/run", **how) -> str:
    files = packed(run, folder)
    return upload(name, folder, files, read_config(run)["identity"], message="a run", **how)


# --- as files ---

# Of the first three texts: two vectors of four numbers and a curve of two points each, and the path of one of them.
THREE = 3 * (2 * 16 + 2 * 3 * 8) + 2 * 2 * 16


def test_files_are_cut_by_bytes(monkeypatch):
    monkeypatch.setattr(tables, "SHARD", 6)
    assert [range(9)[part] for part in tables._cut([5, 1, 1, 9, 2, 2, 2, 2, 2])] == [
        range(2), range(2, 3), range(3, 4), range(4, 7), range(7, 9)
    ]  # fmt: skip


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_comes_back_bit_for_bit(tmp_path, monkeypatch, shared):
    """Numbers, vectors, curves, recorded paths; in several files of each table."""
    run = made(tmp_path / "run", 7, shared=shared)
    monkeypatch.setattr(tables, "SHARD", THREE)
    files = packed(run, tmp_path / "packed")
    assert files[3:] == [f"data/{kind}-0000{i}.parquet" for i in range(3) for kind in ("texts", "trials")]
    assert unpack(tmp_path / "packed", tmp_path / "back") == 7
    same(read_results(tmp_path / "back"), list(read_results(run)))
    assert read_config(tmp_path / "back") == read_config(run)
    assert verify(tmp_path / "back").problems == []
    status = read_status(tmp_path / "back")
    assert (status.left, status.outlook, status.owner) == (0, "nothing to do", None)


@pytest.mark.parametrize(
    ("scheme", "prefixes"),
    quick_of(
        [
            (OneStep(), [[7], [], [9, 2]]),
            (OneStep(share="m"), None),
            (OneStep(prefix=(3, 5)), None),
            (Cramming(2), None),
        ],
        *(0, 1),
    ),
    ids=["prefixes", "shared", "prefix", "cramming"],
)
def test_every_kind_of_run(tiny, token_lists, tmp_path, scheme, prefixes):
    if scheme.shared:
        scheme = dataclasses.replace(scheme, group=3)
    options = {"scheme": scheme, "steps": 3, "seeds": 2, "slots": 3, "record": True}
    if prefixes is not None:
        options["prefixes"] = prefixes
    fit(tiny, token_lists[:3], run=tmp_path / "run", **options)
    packed(tmp_path / "run", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "back")
    before, back = read_results(tmp_path / "run"), read_results(tmp_path / "back")
    assert (back.scheme, back.model) == (before.scheme, before.model)
    for ours, theirs in zip(before, back, strict=True):
        np.testing.assert_array_equal(ours.prefix, theirs.prefix)
        assert ours.vectors.keys() == theirs.vectors.keys()
        for leaf, vector in ours.vectors.items():
            assert vector.tobytes() == theirs.vectors[leaf].tobytes()
    assert verify(tmp_path / "back").problems == []


def test_a_resume_adds_nothing_and_goes_on_where_texts_are_missing(tiny, token_lists, tmp_path):
    texts, how = token_lists[:4], {"preset": "paper", "steps": 5, "slots": 2}
    fit(tiny, texts, run=tmp_path / "run", **how)
    packed(tmp_path / "run", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "back")
    before = {path: path.read_bytes() for path in (tmp_path / "back" / "results").iterdir()}
    again = fit(tiny, texts, run=tmp_path / "back", **how)
    assert {path: path.read_bytes() for path in (tmp_path / "back" / "results").iterdir()} == before
    same(again, list(read_results(tmp_path / "run")))

    half = results(4)
    identity = {**IDENTITY, "texts": texts_digest(text.text_id for text in half)}
    with opened(tmp_path / "half", half, identity) as run:
        run.append(half[1:3])
    assert check_finished(tmp_path / "half") == 2
    packed(tmp_path / "half", tmp_path / "half packed")
    assert unpack(tmp_path / "half packed", tmp_path / "half back") == 2
    assert [text_id for text_id, _ in read_texts(tmp_path / "half back", identity)] == [text.text_id for text in half]
    with opened(tmp_path / "half back", half, identity) as run:
        assert list(run.recorded()) == [text.text_id for text in half[1:3]]
        run.append([half[0], half[3]])
    same(read_results(tmp_path / "half back"), half)


def test_a_run_in_a_bucket_is_read_there(tmp_path):
    pytest.importorskip("upath")
    run = run_path(f"memory://sharing/{tmp_path.name}")
    made(run)
    packed(run, tmp_path / "packed")
    assert unpack(tmp_path / "packed", tmp_path / "back") == 5
    same(read_results(tmp_path / "back"), list(read_results(run)))
    remove(run)


def test_datasets_reads_a_row_a_text(tmp_path):
    from datasets import load_dataset

    run = made(tmp_path / "run")
    packed(run, tmp_path / "packed")
    (tmp_path / "packed" / "README.md").write_text(f"---\nconfigs: {json.dumps(layout.configurations())}\n---\n")
    read = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    rows = load_dataset(str(tmp_path / "packed"), **read)
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(5)]  # pyright: ignore
    for row, text in zip(rows, read_results(run), strict=True):
        assert (row["text_id"], row["status"], row["steps"]) == (text.text_id, text.status, text.steps)  # pyright: ignore
        assert row["tokens"] == text.tokens.tolist()  # pyright: ignore
        for leaf, vector in text.vectors.items():
            np.testing.assert_array_equal(np.array(row[leaf], np.float32), vector)  # pyright: ignore
    trials = load_dataset(str(tmp_path / "packed"), "trials", **read)
    assert trials["trace_steps"][0] == [10, 17]  # pyright: ignore


def test_only_what_others_may_see_is_sent(tmp_path, monkeypatch):
    run = made(tmp_path / "run")
    settings = {"model": "/home/someone/models/pythia/", "note": f"{WRITER} https://user:secret@host/x"}
    config = read_config(run)
    (run / "config.json").write_text(json.dumps({**config, "settings": settings}))
    packed(run, tmp_path / "packed")
    sent = b"".join(path.read_bytes() for path in (tmp_path / "packed").rglob("*") if path.is_file())
    for secret in ("someone", "secret", WRITER, str(run), "session"):
        assert secret.encode() not in sent
    public = public_config(read_config(run))
    assert public["settings"]["model"] == "./pythia"
    assert public["identity"] == config["identity"]
    for source, shown in [
        ("default", "default"),
        ("org/name", "org/name"),
        ("untrained:init:0:/a/b", "untrained:init:0:./b"),
    ]:
        assert public_config({**config, "settings": {"model": source}})["settings"]["model"] == shown


# --- what is damaged or hostile ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The files of a run of five texts."""
    folder = tmp_path_factory.mktemp("whole")
    packed(made(folder / "run"), folder / "packed")
    return folder / "packed"


def retable(path: Path, change) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def column(table: pa.Table, name: str, values) -> pa.Table:
    """The table with another column of this name."""
    return table.set_column(table.column_names.index(name), name, values)


def one_bit(table: pa.Table) -> pa.Table:
    vectors = table["e"].to_pylist()
    vectors[3][0] = np.nextafter(np.float32(vectors[3][0]), np.float32(9))
    return column(table, "e", pa.array(vectors, table["e"].type))


TEXTS, TRIALS = "data/texts-00000.parquet", "data/trials-00000.parquet"
DAMAGE = {
    "no description": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    "no texts": (lambda folder: (folder / "texts.parquet").unlink(), "texts.parquet: damaged table of texts"),
    "no table": (lambda folder: (folder / TEXTS).unlink(), f"{TEXTS}: damaged table of a data set"),
    "no trials": (lambda folder: (folder / TRIALS).unlink(), f"{TRIALS}: damaged table of a data set"),
    "junk": (lambda folder: (folder / TEXTS).write_bytes(b"PAR1 junk PAR1"), "damaged table of a data set"),
    "deep": (lambda folder: (folder / "config.json").write_text("[" * 2000), "nested 2000 deep"),
    "other texts": (
        lambda folder: retable(folder / "texts.parquet", lambda table: table.slice(1)),
        "not the texts of the run that config.json describes",
    ),
    "a bit of a vector": (lambda folder: retable(folder / TEXTS, one_bit), "not those that were written (checksum)"),
    "a curve": (
        lambda folder: retable(folder / TRIALS, lambda table: column(table, "seed", pa.array([1] * len(table)))),
        "not those that were written (checksum)",
    ),
    "lost trials": (
        lambda folder: retable(folder / TRIALS, lambda table: table.slice(0, 0)),
        "not those that were written (checksum)",
    ),
    "a type": (
        lambda folder: retable(folder / TEXTS, lambda table: column(table, "seed", pa.array(["x"] * len(table)))),
        "column seed: expected int64, got string",
    ),
    "a null": (
        lambda folder: retable(
            folder / TEXTS, lambda table: column(table, "c_tokens", pa.array([None] * len(table), pa.int64()))
        ),
        "field c_tokens: expected int",
    ),
    "no column": (
        lambda folder: retable(folder / TEXTS, lambda table: table.drop_columns(["steps"])),
        "no column steps",
    ),
    "vectors of text": (
        lambda folder: retable(folder / TEXTS, lambda table: column(table, "e", table["text_id"])),
        "column e: expected vectors of float32, got string",
    ),
    "no leaves named": (
        lambda folder: retable(folder / TEXTS, lambda table: table.replace_schema_metadata({"leaves": '["seed"]'})),
        "its footer does not name the columns with vectors",
    ),
    "a text of another run": (
        lambda folder: retable(
            folder / TEXTS,
            lambda table: column(table, "text_id", pa.array(["f" * 16, *table["text_id"].to_pylist()[1:]])),
        ),
        "text ffffffffffffffff: none of the run's",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_no_run(whole, tmp_path, kind):
    shutil.copytree(whole, tmp_path / "packed")
    damage, said = DAMAGE[kind]
    damage(tmp_path / "packed")
    with pytest.raises(UserError) as told:
        unpack(tmp_path / "packed", tmp_path / "back")
    assert said in str(told.value)
    assert "fetch it again" in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]  # and nothing is left behind


def test_what_a_footer_claims_is_bounded(whole, tmp_path, monkeypatch):
    for name, most, said in (("MOST_ROWS", 4, "5 rows of"), ("MOST_UNPACKED", 10, "more than a file of a run has")):
        with monkeypatch.context() as patch:
            patch.setattr(tables, name, most)
            with pytest.raises(UserError, match=said):
                unpack(whole, tmp_path / "back")
    with monkeypatch.context() as patch:
        patch.setattr(tables, "MOST_TABLE_BYTES", 10)
        with pytest.raises(UserError, match="expected at most 10 bytes, got more"):
            unpack(whole, tmp_path / "back")


def test_a_column_that_rows_get_later_is_carried(tmp_path, monkeypatch):
    texts, seen = results(3), []
    usual, read = tables.leaf_arrays, tables.text_of

    def more(*given):
        leaves, rows = usual(*given)
        return leaves, [{**row, "later": i / 3, "said": "x"} for i, row in enumerate(rows)]

    monkeypatch.setattr(tables, "leaf_arrays", more)
    monkeypatch.setattr(tables, "text_of", lambda row, *others: seen.append(row["later"]) or read(row, *others))
    tables.write_tables(tmp_path, texts, [None] * 3)
    (back,) = tables.read_tables(tmp_path, {text.text_id: text.tokens for text in texts})
    assert seen == [0.0, 1 / 3, 2 / 3]
    assert [text.text_id for text in back] == [text.text_id for text in texts]


def test_a_leaf_may_not_hide_another_column(tmp_path):
    texts = [dataclasses.replace(text, vectors={"tokens": text.vectors["e"]}, trials=()) for text in results(2)]
    with pytest.raises(UserError, match="vectors named 'tokens'"):
        tables.write_tables(tmp_path, texts, [None, None])


def test_a_run_that_is_no_use_to_others_is_refused(tmp_path):
    texts = results(2)
    with opened(tmp_path / "run", texts) as run:
        run.append(texts)
        run.wait()
        with pytest.raises(UserError, match="still going on"):
            check_finished(tmp_path / "run")
    assert check_finished(tmp_path / "run") == 0
    opened(tmp_path / "empty", texts).close()
    with pytest.raises(UserError, match="no recorded text yet"):
        check_finished(tmp_path / "empty")


# --- at the hub ---


def test_there_and_back(hub, tmp_path):
    run = made(tmp_path / "run")
    assert pushed(run, tmp_path / "packed") == f"{hub.url}/datasets/me/run"
    found = hub.data_sets["me/run"]
    assert found.messages == ["initial commit", "a run"]
    wanted = {path: (tmp_path / "packed" / path).read_bytes() for path in ("README.md", "config.json", "texts.parquet")}
    assert found.files().items() >= {**EMPTY, **wanted}.items()
    hub.downloads.clear()
    folder = download("me/run")
    assert unpack(folder, tmp_path / "back") == 5
    same(read_results(tmp_path / "back"), list(read_results(run)))
    assert "session.json" not in [path.name for path in (tmp_path / "back").iterdir()]


def test_pushed_again_it_changes_what_has_changed(hub, tmp_path, monkeypatch):
    run = made(tmp_path / "run", 7)
    monkeypatch.setattr(tables, "SHARD", THREE)
    pushed(run, tmp_path / "a")
    found = hub.data_sets["me/run"]
    assert "data/texts-00002.parquet" in found.files()
    pushed(run, tmp_path / "b")
    assert len(found.messages) == 2, "nothing has changed, so there is no commit"
    monkeypatch.setattr(tables, "SHARD", 2**20)
    sent = dict(hub.stored)
    pushed(run, tmp_path / "c")
    assert len(hub.stored) == len(sent) + 2
    assert [path for path in found.files() if path.startswith("data/")] == [TEXTS, TRIALS]
    assert unpack(download("me/run"), tmp_path / "back") == 7


def test_branches_and_revisions(hub, tmp_path):
    run, other = made(tmp_path / "run"), made(tmp_path / "other", 3)
    pushed(run, tmp_path / "a")
    first = hub.data_sets["me/run"].branches["main"]
    with pytest.raises(UserError, match="hf:me/run: holds another run; give another name, or another --branch"):
        pushed(other, tmp_path / "b")
    pushed(other, tmp_path / "c", branch="three")
    assert unpack(download("me/run", "three"), tmp_path / "three") == 3
    assert unpack(download("me/run", first), tmp_path / "first") == 5
    pushed(run, tmp_path / "d", name="me/new", branch="v1")
    assert set(hub.data_sets["me/new"].branches) == {"main", "v1"}
    assert hub.data_sets["me/new"].files() == EMPTY
    with pytest.raises(UserError, match="no such branch, tag or commit of it"):
        download("me/run", "v9")


def test_a_private_data_set_stays_so(hub, tmp_path, monkeypatch):
    run = made(tmp_path / "run")
    pushed(run, tmp_path / "a", name="me/secret", private=True)
    assert hub.data_sets["me/secret"].private
    pushed(run, tmp_path / "b", name="me/open")
    assert not hub.data_sets["me/open"].private
    with pytest.raises(UserError, match="hf:me/open: is public already"):
        pushed(run, tmp_path / "c", name="me/open", private=True)
    turn_to(hub, tmp_path / "nobody", monkeypatch)
    with pytest.raises(UserError, match="no such data set on the hub, or no access to it"):
        download("me/secret")
    assert unpack(download("me/open"), tmp_path / "back") == 5


def test_other_data_sets_are_left_alone(hub, tmp_path):
    run = made(tmp_path / "run")
    for files, said in (
        ({"train.csv": b"a,b"}, "holds other files, such as 'train.csv', and no run"),
        ({"config.json": b"{}"}, "its config.json is none of a run"),
    ):
        other = hub.data_sets["me/other"] = DataSet()
        other.commit("main", {**EMPTY, **files}, "theirs")
        with pytest.raises(UserError, match=said):
            pushed(run, tmp_path / f"a{len(files)}{said[:3]}", name="me/other")
        assert other.messages == ["theirs"]
        with pytest.raises(UserError, match="no run that onestep push has made"):
            download("me/other")
    other.commit("main", {**EMPTY, "README.md": b"soon"}, "begun on the hub")
    pushed(run, tmp_path / "b", name="me/other")


def test_files_of_strangers_stay_where_they_are(hub, tmp_path, monkeypatch):
    """Only files of exactly these names are fetched, and none that is too large."""
    pushed(made(tmp_path / "run"), tmp_path / "packed")
    found = hub.data_sets["me/run"]
    stranger = {"data/../../x.parquet": b"x", "code.py": b"x", "data/texts-00000.pkl": b"x", "lock": b"x"}
    found.commit("main", {**found.files(), **stranger}, "more")
    hub.downloads.clear()
    folder = download("me/run")
    assert sorted(hub.downloads) == sorted(["README.md", "config.json", "texts.parquet", TEXTS, TRIALS])
    assert unpack(folder, tmp_path / "back") == 5
    monkeypatch.setitem(layout.MOST_BYTES, "config.json", 10)
    with pytest.raises(UserError, match=r"config.json has \d+ bytes; expected at most 10"):
        download("me/run")
    monkeypatch.setattr(layout, "MOST_FILES", 4)
    with pytest.raises(UserError, match="5 files of a run; expected at most 4"):
        download("me/run")


COMMIT = "POST /api/datasets/me/run/commit"


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (COMMIT, 401, "the hub does not know this login (it says no); `hf auth login` again"),
        (COMMIT, 403, "this login may not do that (it says no); it needs a token that may write there"),
        (COMMIT, 404, "the hub refuses (HTTP status 404) (it says no)"),
        (COMMIT, 409, "somebody else changes it at the same time (it says no); run the same command again"),
        (COMMIT, 412, "somebody else changes it at the same time"),
        (COMMIT, 429, "the hub is busy (HTTP status 429)"),
        (COMMIT, 500, "the hub is busy (HTTP status 500) (it says no); try again later"),
        ("POST /datasets/me/run.git/info/lfs", 403, "this login may not do that"),
        ("PUT /lfs/", 400, "the hub refuses (HTTP status 400)"),
        ("POST /api/repos/create", 500, "the hub is busy"),
    ],
)
def test_refusals_while_sending(hub, tmp_path, fault, status, said):
    run = made(tmp_path / "run", 2 + status % 100 + len(fault))  # of no content that the hub has
    hub.faults[fault] = (status, "it says no")
    with pytest.raises(UserError) as told:
        pushed(run, tmp_path / "packed")
    assert str(told.value).startswith(f"hf:me/run: {said}"), told.value
    assert "\n" not in str(told.value)
    pushed(run, tmp_path / "again")
    assert unpack(download("me/run"), tmp_path / "back") > 0


def test_refusals_by_name_and_login(hub, tmp_path, monkeypatch):
    run = made(tmp_path / "run")
    hub.data_sets["org/gated"] = DataSet()
    for name, said in (("org/gated", "gated: accept its terms"), ("org/absent", "no such data set on the hub")):
        with pytest.raises(UserError, match=f"hf:{name}: {said}"):
            download(name)
    turn_to(hub, tmp_path / "reader", monkeypatch, READER)
    with pytest.raises(UserError, match="this login may not do that"):
        pushed(run, tmp_path / "a")
    turn_to(hub, tmp_path / "wrong", monkeypatch, "hf_unknownunknownunknownunk")
    with pytest.raises(UserError, match="the hub does not know this login"):
        pushed(run, tmp_path / "b")
    turn_to(hub, tmp_path / "nobody", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="hf:me/run: the hub cannot be reached \\(ConnectError\\)"):
        download("me/run")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so the hub is not asked"):
        download("me/run")


@pytest.mark.parametrize(
    "address", ["name", "me/run", "hf:run", "hf:a/b/c", "hf:a/b:c", "hf:a/..", "hf:", "hf:a--/b", "hf:a/b\n"]
)
def test_names(address):
    with pytest.raises(UserError, match="expected hf:OWNER/NAME") as told:
        repository(address)
    assert "\n" not in str(told.value)
    assert repository("hf:me/run.v1") == "me/run.v1"


def test_a_full_disk_is_one_line(whole, tmp_path, monkeypatch):
    import errno

    from onestep_jax.store.sharing import packing

    def full(*args, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packing, "write_part", full)
    with pytest.raises(UserError, match="back: cannot write \\(the disk is full\\)"):
        unpack(whole, tmp_path / "back")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(packing, "write_tables", full)
    with pytest.raises(UserError, match="the disk is full"):
        packed(made(tmp_path / "run"), tmp_path / "packed")


def test_the_client_by_its_variables_and_datasets_from_there(hub, tmp_path):
    """A process that knows of this hub by its environment alone, as of a mirror."""
    pushed(made(tmp_path / "run"), tmp_path / "packed")
    found = hub.data_sets["me/run"]
    card = f"---\nconfigs: {json.dumps(layout.configurations())}\n---\n"
    found.commit("main", {**found.files(), "README.md": card.encode()}, "a card")
    code = (
        "from datasets import load_dataset\n"
        "rows = load_dataset('me/run', split='train')\n"
        "print(rows['text'][:], len(rows['e'][0]))\n"
    )
    env = environment(hub, tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
    )
    assert done.stdout.strip() == f"{[f'text {i}' for i in range(5)]} 4", (hub.asked, done.stderr)

"""Names in a run directory: ours are parsed whole; what is foreign is left alone, not read, and named."""

import shutil
from pathlib import Path

import pytest
from store_runs import opened, results, same, task

from onestep_jax import read_results
from onestep_jax.store import commits, parts
from onestep_jax.store.leases import leased
from onestep_jax.store.names import committed, parse
from onestep_jax.store.run import join_run
from onestep_jax.store.status import read_status
from onestep_jax.store.verify import set_aside, verify

NAME = "000001-0000-000000"


@pytest.mark.parametrize(
    ("path", "temporary"),
    [
        (f"results/{NAME}.parquet", False),
        ("traces/1234567-12345-1234567.parquet", False),
        (f"results/{NAME}.parquet.tmp", True),
        (f"embeddings/{NAME}", False),
        (f"embeddings/{NAME}.orbax-checkpoint-tmp", True),
        (f"embeddings/{NAME}.orbax-checkpoint-tmp-1700000000", True),
        (f"state/{NAME}.json", False),
        (f"state/{NAME}", False),
        (f"state/{NAME}.json.tmp", True),
        (f"state/{NAME}.orbax-checkpoint-tmp", True),
    ],
)
def test_our_names(path, temporary):
    name = Path(path).name.split(".")[0]
    assert parse(Path(path)) == (name, temporary)


@pytest.mark.parametrize("path", ["claims/000001-000007", "claims/000001-left-0003", "lock/000012"])
def test_our_names_without_an_end(path):
    assert parse(Path(path)) == (Path(path).name, False)


@pytest.mark.parametrize(
    "path",
    [
        f"results/{NAME} (copy).parquet",
        f"results/{NAME}.sync-conflict-2026.parquet",
        f"results/._{NAME}.parquet",
        f"results/{NAME}.parquet\n",
        f"results/{NAME}1.parquet.bak",
        f"results/{NAME}",
        f"results/{NAME}.json",
        "results/foo.parquet",
        "results/0000001-0000-000000.parquet",
        "results/00001-0000-000000.parquet",
        "results/٠٠٠٠٠١-0000-000000.parquet",
        f"embeddings/{NAME}.parquet",
        f"embeddings/{NAME} (copy)",
        f"embeddings/{NAME}.orbax-checkpoint-tmp.bak",
        f"state/{NAME} (copy).json",
        f"claims/{NAME}",
        "claims/000001-left-3",
        "lock/000012 (copy)",
        "lock/²",
    ],
)
def test_names_that_are_not_ours(path):
    assert parse(Path(path)) is None


def test_names_beyond_six_digits_are_in_order(tmp_path):
    (tmp_path / "results").mkdir()
    names = ["000009-0000-999999", "000009-0000-1000000", "999999-0000-000000", "1000000-0000-000000"]
    for name in names:
        (tmp_path / "results" / f"{name}.parquet").touch()
    assert committed(tmp_path, "results") == names


def copies(folder: Path) -> dict[Path, bytes | None]:
    """Put copies and junk beside every file of a run; what they hold, None for a folder."""
    made = {}
    for kind in ("results", "traces", "embeddings", "state", "claims"):
        for path in list((folder / kind).iterdir()):
            for name in (f"{path.stem} (copy){path.suffix}", f"{path.stem}.sync-conflict-2026{path.suffix}"):
                copy = folder / kind / name
                shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
                made[copy] = None if copy.is_dir() else copy.read_bytes()
        for name in ("foo.parquet", "foo.json", f"._{NAME}.parquet", f"{NAME}.bak.tmp", "foo.tmp"):
            (folder / kind / name).write_bytes(b"junk")
            made[folder / kind / name] = b"junk"
    return made


def intact(made: dict[Path, bytes | None]) -> bool:
    return all(path.is_dir() if content is None else path.read_bytes() == content for path, content in made.items())


def test_copies_beside_a_part_harm_nothing_and_are_named(tmp_path):
    texts, folder = results(6), tmp_path / "run"
    with opened(folder, texts) as run:
        run.append(texts)
        run.save_state({}, {"tasks": [task(0, 5)]})
    made = copies(folder)
    named = sorted(path.relative_to(folder).as_posix() for path in made)
    told = r"run: no files of a run, .*: results/.*, .*, .* and \d+ more$"
    with pytest.warns(UserWarning, match=told) as said:
        run = opened(folder, texts)
    with run:
        assert set(run.recorded()) == {text.text_id for text in texts}
        assert run.session.number == 2
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    same(read_results(folder), texts)
    assert len(read_status(folder).recorded) == 6
    found = verify(folder)
    assert (found.problems, sorted(found.foreign)) == ([], named)
    assert intact(made)


@pytest.mark.filterwarnings("ignore:.*no files of a run")
def test_no_removal_takes_a_copy_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(commits, "COMPACT_AT", 3)
    texts, folder = results(8), tmp_path / "run"
    with opened(folder, texts, processes=2) as run:
        run.append(texts[:4])
        run.save_state({}, {"tasks": [task(4, 5)]})
        run.claim(3)
        run.wait()
        made = copies(folder)
        for text in texts[4:6]:
            run.append([text])  # merges, and deletes what it merged
        join_run(folder, run.config["identity"], 1).close()
    assert intact(made)
    with opened(folder, texts) as run:  # sweeps away, and deletes what is superseded
        run.append(texts)
    opened(folder, texts).close()
    assert intact(made)
    (newest,) = [path for path in (folder / "traces").iterdir() if parse(path)]
    newest.write_bytes(b"")
    set_aside(folder, verify(folder))
    assert verify(folder).problems == []
    assert intact(made)


def test_only_leftovers_of_ours_are_swept_away(tmp_path):
    texts, folder = results(2), tmp_path / "run"
    with opened(folder, texts) as run:
        run.append(texts)
    left = [f"results/{NAME}.parquet.tmp", "traces/000001-0000-000007.parquet", f"state/{NAME}.json.tmp"]
    left += ["claims/000001-000002", "claims/000001-left-0001"]
    folders = [f"embeddings/{NAME}.orbax-checkpoint-tmp", "embeddings/000001-0000-000007", f"state/{NAME}"]
    for path in left:
        (folder / path).write_bytes(b"half")
    for path in folders:
        (folder / path).mkdir()
    opened(folder, texts).close()
    assert not [path for path in left + folders if (folder / path).exists()]
    for kind in parts.KINDS:
        assert len(list((folder / kind).iterdir())) == 1
    same(read_results(folder), texts)


def test_a_lease_leaves_foreign_files_alone(tmp_path):
    folder = tmp_path / "lock"
    folder.mkdir()
    for name in ("000012 (copy)", "²", "notes"):
        (folder / name).touch()
    for number in (1, 2):
        with leased(folder, int):
            assert (folder / f"{number:06d}").exists()
    assert {path.name for path in folder.iterdir()} == {"000002", "000012 (copy)", "²", "notes"}

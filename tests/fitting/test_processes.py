"""Several processes on localhost: one run directory, the same results, nothing twice, nothing lost."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from onestep_jax import OneStep, fit, load_model, read_results
from onestep_jax.cli.parser import main
from onestep_jax.errors import Interrupted
from onestep_jax.fitting.progress import Meter
from onestep_jax.fitting.sweep import Sweep
from onestep_jax.fitting.work_queue import block_size, claim_order, cut
from onestep_jax.store.commits import COMPACT_AT

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "studies"))
from torture import Job, free_port, torture

COUNT = 16


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    rows = np.random.default_rng(7).integers(60, size=(COUNT, 8))
    path.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rows) + "\n")
    return path


def arguments(folder: Path, lines: Path, run: Path, *more: str) -> list[str]:
    words = ["--model", folder, "--texts", lines, "--split", "lines", "--length", 8, "--run", run, "--slots", 2, *more]
    return [str(word) for word in words]


def succeed(job: Job) -> None:
    for code, words in job.wait():
        assert code == 0, words


@pytest.mark.long
def test_results_do_not_depend_on_processes(tiny_folder, lines, tmp_path, one_device):
    paper = arguments(tiny_folder, lines, tmp_path / "paper", "--preset", "paper", "--steps", "50")
    succeed(Job(paper, 4, 2))
    found = read_results(tmp_path / "paper")
    texts = lines.read_text().splitlines()
    alone = fit(load_model(tiny_folder), texts, preset="paper", steps=50, placement=one_device)
    assert [text.text_id for text in found] == [text.text_id for text in alone]
    assert found.steps.tolist() == alone.steps.tolist()
    for leaf in ("e", "m"):
        difference = np.linalg.norm(found.vectors[leaf] - alone.vectors[leaf])
        assert difference <= 1e-3 * np.linalg.norm(alone.vectors[leaf])


@pytest.mark.long
def test_two_that_record_and_merge_all_the_time(tiny_folder, tmp_path):
    """Each reads what the other has recorded while that one merges its parts and removes them."""
    count = 120
    rows = np.random.default_rng(8).integers(60, size=(count, 8))
    (tmp_path / "lines.txt").write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rows) + "\n")
    more = "--steps 2000 --chunk 1 --save-every 0.05".split()
    succeed(Job(arguments(tiny_folder, tmp_path / "lines.txt", tmp_path / "run", *more), 2, 1))
    found = read_results(tmp_path / "run")
    assert found.status == ["solved"] * count
    assert len({text.text_id for text in found}) == count
    parts = [path.stem.split("-") for path in (tmp_path / "run" / "results").iterdir()]
    assert {writer for _, writer, _ in parts} == {"0000", "0001"}
    assert len(parts) <= 2 * COMPACT_AT, "each process merges its small parts where there are so many"
    assert main(["verify", str(tmp_path / "run")]) == 0


@pytest.mark.long
def test_a_group_is_shared_by_all_processes(tiny_folder, lines, tmp_path, one_device):
    """Sixteen texts and one `m`, over 2 × 4 devices in lockstep."""
    more = ["--share", "m", "--group", "all", "--preset", "paper", "--steps", "50", "--chunk", "5"]
    given = arguments(tiny_folder, lines, tmp_path / "run", *more)
    succeed(Job(given, 2, 4))
    found = read_results(tmp_path / "run")
    scheme, texts = OneStep(share="m", group=COUNT), lines.read_text().splitlines()
    alone = fit(load_model(tiny_folder), texts, preset="paper", steps=50, scheme=scheme, placement=one_device)
    assert len({vector.tobytes() for vector in found.vectors["m"]}) == 1
    for leaf in ("e", "m"):
        difference = np.linalg.norm(found.vectors[leaf] - alone.vectors[leaf])
        assert difference <= 1e-3 * np.linalg.norm(alone.vectors[leaf])


@pytest.mark.long
def test_a_run_survives_being_ended_over_and_over(tiny_folder, lines, tmp_path):
    options = ["--split", "lines", "--length", "8", "--slots", "2", "--steps", "4000"]
    found = torture(str(tiny_folder), str(lines), tmp_path, rounds=2, options=options)
    assert found == {
        "rounds survived": 2,
        "texts": COUNT,
        "each once": True,
        "same accuracies": True,
        "verify clean": True,
    }


@pytest.mark.long
def test_one_that_is_asked_to_stop_leaves_the_rest_for_another_call(tiny_folder, lines, tmp_path):
    """Its peer goes on to the end of what it can get, and says what is missing."""
    run = tmp_path / "run"
    slow = arguments(tiny_folder, lines, run, *"--preset paper --steps 1000 --chunk 1 --save-every 0.5".split())
    job = Job(slow, 2, 1)
    deadline = time.monotonic() + 120
    # Until it has saved, a process may still be starting, and a signal ends it.
    while not list((run / "state").glob("*-0001-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send(signal.SIGTERM, [1])
    (first, said), (second, _) = job.wait()
    assert (first, second) == (75, 75)
    assert re.search(r"\d+ texts of .* are not done; the same command resumes them", said)
    assert 0 < len(read_results(run)) < COUNT
    assert main(["fit", *slow]) == 0
    assert len(read_results(run)) == COUNT


@pytest.mark.long
def test_every_process_says_why_a_run_cannot_be_opened(tiny_folder, lines, tmp_path):
    assert main(["fit", *arguments(tiny_folder, lines, tmp_path / "run", "--steps", "1")]) == 0
    (first, said), (second, also) = Job(arguments(tiny_folder, lines, tmp_path / "run", "--steps", "2"), 2, 1).wait()
    assert (first, second) == (2, 2)
    assert "holds another run; steps: 1 there, 2 here" in said
    assert "process 0 could not open the run" in also


@pytest.mark.long
def test_where_one_cannot_begin_all_stop(tiny_folder, lines, tmp_path):
    """The texts are a path of each machine's own, and one of them does not have it."""
    there = tmp_path / "machine-0" / "lines.txt"
    there.parent.mkdir()
    there.write_bytes(lines.read_bytes())
    job = Job(arguments(tiny_folder, tmp_path / "machine-{process}" / "lines.txt", tmp_path / "run"), 2, 1)
    (first, also), (second, said) = job.wait()
    assert (first, second) == (2, 2)
    assert "machine-1/lines.txt" in said
    assert "process 1 could not read the texts and the model and says why" in also


def test_texts_that_another_process_takes_back_are_said(tiny, token_lists, one_device, tmp_path, monkeypatch):
    """They counted as recorded when this session began."""
    options = {"run": tmp_path / "run", "steps": 5, "placement": one_device}
    assert len(fit(tiny, token_lists[:3], **options)) == 3
    optimise = Sweep.optimise

    def meanwhile(sweep):
        optimise(sweep)
        for path in (tmp_path / "run" / "results").iterdir():
            path.unlink()

    monkeypatch.setattr(Sweep, "optimise", meanwhile)
    with pytest.raises(Interrupted, match=r"3 texts of .* are recorded no longer; the same command fits them"):
        fit(tiny, token_lists[:3], **options)
    monkeypatch.undo()
    assert len(fit(tiny, token_lists[:3], **options)) == 3


def test_sigterm_while_starting_ends_a_process():
    """JAX's own handler, put there on joining, would let it go on."""
    joined = f"from onestep_jax.fitting.distributed import join_job; join_job('localhost:{free_port()}', 1, 0)"
    ending = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(5); print('alive')"
    done = subprocess.run([sys.executable, "-c", f"{joined}; {ending}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--coordinator", "localhost:1"], "--coordinator localhost:1 goes with --distributed"),
        (["--distributed", "--processes", "2"], "--coordinator and --process missing"),
        (
            ["--distributed", "--coordinator", "localhost:1", "--processes", "2", "--process", "2"],
            "--process = 2: expected at most 1",
        ),
        (["--distributed"], "cannot join the job"),
    ],
)
def test_half_a_job_is_refused(tmp_path, capsys, given, said):
    assert main(["fit", "--texts", "x.txt", "--length", "8", "--run", str(tmp_path / "run"), *given]) == 2
    assert said in capsys.readouterr().err


GROUPS = [(i,) for i in range(10)]
PADDED = [8, 8, 16, 8, 16, 8, 8, 8, 8, 16]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_blocks_have_every_group_once_longest_first(size):
    blocks = cut(GROUPS, PADDED, size)
    assert list(blocks) == [16, 8]
    flat = [block for of_length in blocks.values() for block in of_length]
    assert [block.number for block in flat] == list(range(len(flat)))
    assert sorted(group for block in flat for group in block.groups) == GROUPS
    assert all(len(block.groups) <= size for block in flat)
    assert {PADDED[group[0]] for block in blocks[16] for group in block.groups} == {16}


def test_processes_begin_at_places_of_their_own():
    blocks = cut(GROUPS, [8] * 10, 1)[8]
    orders = [[block.number for block in claim_order(blocks, process, 3)] for process in range(3)]
    assert [order[0] for order in orders] == [0, 3, 6]
    assert all(sorted(order) == list(range(10)) for order in orders)


def test_blocks_fill_the_slots_and_are_few():
    assert block_size(1000, slots=8, processes=1) == 1000
    assert block_size(1000, slots=8, processes=2) == 8
    assert -(-100_000 // block_size(100_000, slots=8, processes=4)) <= 64 * 4


def test_what_others_record_is_counted_once():
    seen = []
    meter = Meter(4, 1, seen.append, {})
    meter.show_recorded({"a": 1.0, "b": 0.5})
    meter.show_recorded({"a": 1.0, "b": 0.5, "c": 1.0})
    assert [(state.texts, state.finished, state.solved, state.waiting) for state in seen] == [
        (4, 2, 1, 2),
        (4, 3, 2, 1),
    ]

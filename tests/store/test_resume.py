"""A real process, killed in the middle: nothing lost, nothing twice, work in flight continued."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from onestep_jax import load_model, read_results
from onestep_jax.cli.parser import main
from onestep_jax.prototokens.reconstruction import decoding_of
from onestep_jax.store.orbax_arrays import Arrays
from onestep_jax.store.reading import read_config, read_texts
from onestep_jax.store.saved_states import origin, own_states
from onestep_jax.store.status import read_status
from onestep_jax.store.verify import verify

COUNT = 24


def words(folder, texts, run):
    options = ["--model", folder, "--texts", texts, "--split", "lines", "--length", "8", "--run", run]
    options += ["--preset", "paper", "--steps", "1500", "--slots", "8", "--save-every", "0.2", "--seeds", "2"]
    return ["fit", *map(str, options)]


def command(folder, texts, run):
    return [sys.executable, "-m", "onestep_jax.cli", *words(folder, texts, run)]


def environment():
    return os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def recorded(run):
    """Indices of the texts that have a result; empty before the run has begun."""
    return {text.index for text in read_results(run)} if (run / "config.json").exists() else set()


def saved_tasks(run):
    """The newest saved task of every unrecorded text, by its index."""
    identity = read_config(run)["identity"]
    of = origin(identity, read_texts(run, identity))
    records = [state.record for _, state in own_states(run, of, Arrays())[0]][:1]
    done = recorded(run)
    tasks = [task for record in records for task in record.get("tasks", ())]
    return {task["texts"][0]: task for task in tasks if task["texts"][0] not in done}


def in_flight(run):
    """Saved tasks of unrecorded texts that have made some steps."""
    return {index: task for index, task in saved_tasks(run).items() if task["trace"]}


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    path.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rng.integers(60, size=(COUNT, 8))) + "\n")
    return path


@pytest.fixture(scope="module")
def untouched(tiny_folder, texts, tmp_path_factory):
    run = tmp_path_factory.mktemp("untouched") / "run"
    assert main(words(tiny_folder, texts, run)) == 0
    return read_results(run)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_runs_end_like_untouched_ones(tiny_folder, texts, untouched, tmp_path, number):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(tiny_folder, texts, run), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    wait_for(lambda: recorded(run) and in_flight(run), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 75
        assert b"the same command goes on from there" in errors
    else:
        assert process.returncode == -signal.SIGKILL
    before = read_results(run)
    assert 0 < len(before) < COUNT
    continued = in_flight(run)
    assert continued
    status = read_status(run)
    assert (len(status.recorded), status.left, status.owner) == (len(before), COUNT - len(before), None)
    assert {flight.index: flight.steps for flight in status.in_flight} == {
        index: task["trace"][-1][0] if task["trace"] else 0 for index, task in saved_tasks(run).items()
    }

    subprocess.run(command(tiny_folder, texts, run), check=True, env=environment(), capture_output=True)
    after = read_results(run)
    assert [text.index for text in after] == list(range(COUNT))
    assert len({text.text_id for text in after}) == COUNT
    for text in before:
        assert text.steps == after[text.index].steps
        for name, vector in text.vectors.items():
            np.testing.assert_array_equal(vector, after[text.index].vectors[name])
    for index, task in continued.items():
        saved = np.asarray(task["trace"], float)
        trial = next(trial for trial in after[index].trials if trial.seed == task["seed"])
        np.testing.assert_allclose(trial.trace[: len(saved)], saved, rtol=1e-6)
        assert trial.steps >= saved[-1, 0]  # equal where the chunk before the save was its last
    assert [text.accuracy == 1 for text in after] == [text.accuracy == 1 for text in untouched]
    assert verify(run, decoding_of(load_model(tiny_folder))).problems == []


@pytest.mark.long
def test_a_finished_run_is_left_alone(tiny_folder, texts, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [*words(tiny_folder, texts, run), "--limit", "3", "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    files = {path: path.stat().st_mtime_ns for path in (run / "results").iterdir()}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "results").iterdir()} == files
    assert json.loads(capsys.readouterr().out)["solved"] == first["solved"]

"""Starting JAX: each error of its devices or of joining a job is one line and status 2, in time, without an abort."""

import socket
import subprocess
import sys
import time

import jax
import pytest

from onestep_jax import UserError, fit
from onestep_jax.cli.parser import main
from onestep_jax.devices import placement
from onestep_jax.devices.placement import Pmap
from onestep_jax.fitting.distributed import join_job

FIT = ["fit", "--texts", "demo", "--limit", "1", "--length", "4", "--run", "run"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("localhost", 1, 0), "--coordinator localhost: expected HOST:PORT"),
        ((":1234", 1, 0), "expected HOST:PORT"),
        (("localhost:abc", 1, 0), "expected HOST:PORT"),
        (("http://localhost:1234", 1, 0), "expected HOST:PORT"),
        (("localhost:²", 1, 0), "expected HOST:PORT"),
        (("localhost:0", 1, 0), "port = 0: expected at least 1"),
        (("localhost:70000", 1, 0), "port = 70000: expected at most 65,535"),
        (("localhost:" + "9" * 5000, 1, 0), "expected at most 65,535"),
        (("localhost:1234", 0, 0), "--processes = 0: expected at least 1"),
        (("localhost:1234", -1, 0), "--processes = -1: expected at least 1"),
        (("localhost:1234", 2, 2), "--process = 2: expected at most 1"),
        (("localhost:1234", 2, -1), "--process = -1: expected at least 0"),
        (("localhost:1234", 2.5, 0), "--processes = 2.5: expected a whole number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_job_that_cannot_be(given, said, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("asked JAX"))
    with pytest.raises(UserError, match=said):
        join_job(*given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["localhost", "1", "0"], "--coordinator localhost: expected HOST:PORT"),
        (["localhost:1234", "0", "0"], "argument --processes: 0: expected at least 1"),
        (["localhost:1234", "1", "1"], "--process = 1: expected at most 0"),
    ],
)
def test_a_job_that_cannot_be_by_options(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = zip(("--coordinator", "--processes", "--process"), words, strict=True)
    assert main([*FIT, "--distributed", *(word for pair in options for word in pair)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == []


JOIN = """
import functools, sys
from onestep_jax.cli import fit, parser
fit.join_job = functools.partial(fit.join_job, seconds=2.0)
sys.exit(parser.main(sys.argv[1:]))
"""


def joined(port, processes, process):
    """A fit that waits two seconds for the others: exit status, lines on standard error, seconds."""
    job = ["--distributed", "--coordinator", f"localhost:{port}", "--processes", processes, "--process", process]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", JOIN, *FIT, *map(str, job)], capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines(), time.monotonic() - began


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        code, lines, _ = joined(taken.getsockname()[1], 1, 0)
    assert code == 2
    assert "cannot listen there (Address already in use)" in lines[-1]
    assert "give all processes another" in lines[-1]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("process", "said"),
    [(0, "not all of 2 processes came within 2 s"), pytest.param(1, "no answer from", marks=pytest.mark.long)],
)
def test_a_peer_that_never_comes(process, said):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    code, lines, seconds = joined(port, 2, process)
    assert code == 2
    assert "onestep: waiting for the other processes of the job, 1 s more at most" in lines
    assert said in lines[-1]
    assert "start processes 0 to 1" in lines[-1]
    assert not any("Traceback" in line or "Check failed" in line for line in lines)
    assert seconds < 60


# --- devices ---


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_device_that_is_not_there(platform, tmp_path):
    program = f"import os; os.environ['JAX_PLATFORMS'] = '{platform}'; import sys"
    program += "; from onestep_jax.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, *FIT], capture_output=True, text=True, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("onestep")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1
    assert f"JAX cannot start its devices (JAX_PLATFORMS={platform}: " in lines[0]
    assert "unset JAX_PLATFORMS" in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to\nstart"), ValueError("x" * 900)])
def test_the_functions_say_the_same(tiny, token_lists, monkeypatch, error):
    def refuse():
        raise error

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(placement.jax, "local_devices", refuse)
    for call in (Pmap, lambda: fit(tiny, token_lists[:1])):
        with pytest.raises(UserError, match=r"^JAX cannot start its devices \([^\n]*\); unset JAX_PLATFORMS") as said:
            call()
        assert len(str(said.value)) < 500

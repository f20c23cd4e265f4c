"""Standard streams that are full, gone, closed or of no width, and a working folder that is gone: one line, or none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onestep_jax.cli.parser import main


def command(words, **how):
    words = [sys.executable, "-m", "onestep_jax.cli", *map(str, words)]
    return subprocess.run(words, stderr=subprocess.PIPE, text=True, **how)


# Where nothing is buffered, argparse overlooks that its --help was not taken.
FULL = [("--help", ""), ("status", "1"), ("status --json", "")]
# It loads all libraries in a process of its own.
FULL += [pytest.param("decode", buffer, marks=pytest.mark.long) for buffer in ("", "1")]


@pytest.mark.parametrize(("words", "unbuffered"), FULL)
def test_a_full_disk_under_standard_output_is_one_line(run, words, unbuffered):
    words = words.split()[:1] + [run] * (words != "--help") + words.split()[1:]
    with open("/dev/full", "w") as full:
        done = command(words, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert done.stderr == "onestep: error: standard output: cannot write (the disk is full); free some space\n"
    assert done.returncode == 2


def test_a_reader_that_goes_away_is_no_error(run):
    heard, told = os.pipe()
    os.close(heard)
    done = command(["decode", run], stdout=told)
    os.close(told)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_streams_are_no_place_for_files(run, tiny_folder, tmp_path):
    """A file of a run would get the number of standard error, and what libraries print would go into it."""
    program = """
import os, sys
from onestep_jax.cli.signals import end_by_signal
end_by_signal()
with open("file", "wb") as file:
    assert file.fileno() > 2, file.fileno()
    os.write(2, b"noise")
from onestep_jax.cli.terminal import say_line
say_line("a line that is for no one")
"""
    closed = f"exec {sys.executable} -c '{program}' <&- 2>&-"
    done = subprocess.run(["sh", "-c", closed], stdout=subprocess.PIPE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_working_folder_that_is_gone_is_one_line(run, tmp_path):
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", f"rmdir ../gone; exec {sys.executable} -m onestep_jax.cli status {run}"],
        capture_output=True,
        text=True,
        cwd=tmp_path / "gone",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("onestep: error: the working folder cannot be found")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("columns", ["0", "1"])
def test_no_table_is_lost_to_a_width_of_nothing(run, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["status", str(run)]) == 0
    assert "2 of 2 recorded" in capsys.readouterr().out

"""SIGINT and SIGTERM at any moment of a command: one line, exit status 130 or 143, or 75 where a fit has saved."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from options import quick_of

from onestep_jax.cli.parser import main

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the caught signals")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def home(tiny_folder, tmp_path_factory) -> Path:
    """The folder that holds lines.txt and a finished run."""
    home = tmp_path_factory.mktemp("home")
    rows = np.random.default_rng(7).integers(60, size=(8, 8))
    (home / "lines.txt").write_text("\n".join(" ".join(f"w{i}" for i in row) for row in rows) + "\n")
    assert main([*fit_words(tiny_folder, home, home / "run"), "--limit", "2"]) == 0
    return home


def fit_words(model, home, run, *more):
    words = ["fit", "--model", model, "--texts", home / "lines.txt", "--split", "lines", "--length", 6, "--run", run]
    return [str(word) for word in (*words, "--slots", 2, *more)]


def started(words, before="", *, listening=True) -> subprocess.Popen:
    """A command, and if asked for, only once its process listens to signals.

    It does not ignore SIGINT, which whoever runs the tests may have been told to.
    """
    heeding = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeding}\n{before}\nfrom onestep_jax.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while listening and process.poll() is None and not caught(process.pid):
        time.sleep(0.002)
    return process


def busy(before: str, *, listening: bool = True) -> subprocess.Popen:
    """A process that has said that it is busy; `before` puts that into the place of a command."""
    process = started([], before, listening=listening)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    return process


def caught(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def check_end(process, number, *more_codes):
    out, errors = process.communicate(timeout=120)
    assert process.returncode in (CODES[number], *more_codes), errors
    assert "Traceback" not in errors
    said = [line for line in errors.splitlines() if line.startswith("onestep: ") and "warning" not in line]
    assert len(said) == (process.returncode > 0), (out, errors)


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.1), (signal.SIGINT, 0.5)])
def test_a_signal_while_python_imports(home, number, moment):
    process = started(["status", str(home / "run")])
    time.sleep(moment)
    process.send_signal(number)
    check_end(process, number)


def test_signals_are_heard_before_anything_slow_is_imported():
    """What takes longer than all that is needed: `typing` alone does."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); import onestep_jax.cli"
    program += "; print(*{'typing', 're', 'contextlib', 'argparse', 'numpy', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


BUSY = """
import hashlib, onestep_jax.cli.parser as parser
def main(argv):
    print("busy", flush=True)
    # Minutes in compiled code that gives the interpreter free, as XLA's compiler does.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
parser.main = main
"""


@pytest.mark.parametrize("number", quick_of(CODES))
def test_a_signal_while_the_main_thread_is_in_compiled_code(number):
    process = busy(BUSY)
    began = time.monotonic()
    process.send_signal(number)
    check_end(process, number)
    assert time.monotonic() - began < 10


SWALLOWING = """
import time, onestep_jax.cli.parser as parser
def main(argv):
    print("busy", flush=True)
    for _ in range(600):
        try:
            time.sleep(0.1)
        except BaseException:
            pass
parser.main = main
"""


def test_a_signal_is_not_swallowed():
    process = busy(SWALLOWING)
    process.send_signal(signal.SIGINT)
    check_end(process, signal.SIGINT)


SAVING = """
import time, onestep_jax.cli.parser as parser
from onestep_jax.devices.stop_signals import signals_caught
def main(argv):
    with signals_caught() as asked:
        print("busy", flush=True)
        asked.wait(60)
        print("asked", flush=True)
        time.sleep(60)
parser.main = main
"""


@pytest.mark.parametrize("number", CODES)
def test_a_fit_saves_at_the_first_signal_and_ends_at_the_second(number):
    process = busy(SAVING)
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    check_end(process, number)


LISTENING_LATE = """
import os, time, onestep_jax.cli.parser as parser
from onestep_jax.devices.stop_signals import signals_caught
read = os.read
def late(pipe, size):
    heard = read(pipe, size)
    time.sleep(1.0)
    return heard
os.read = late

def main(argv):
    with signals_caught() as asked:
        os.write(1, b"busy\\n")
        asked.wait()
    time.sleep(2.0)
    return 75
parser.main = main
"""


@pytest.mark.parametrize("number", quick_of(CODES))
def test_a_fit_that_has_saved_before_the_signal_is_looked_at_ends_as_it_meant_to(number):
    process = busy(LISTENING_LATE)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (75, "")


def test_a_signal_that_is_ignored_stays_so():
    process = busy(f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{SWALLOWING}")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    check_end(process, signal.SIGTERM)


TAKEN_DOWN = """
import os, onestep_jax.cli.parser as parser
class Slow:
    def __del__(self, write=os.write, read=os.read, pipe=os.pipe()):
        write(1, b"busy\\n")
        read(pipe[0], 1)
slow = Slow()
parser.main = lambda argv: 0
"""


@pytest.mark.parametrize("number", quick_of(CODES))
def test_a_signal_while_the_interpreter_is_taken_down(number):
    process = busy(TAKEN_DOWN, listening=False)
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (-number, "", "")  # 130 and 143 to a shell


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_signals_at_many_moments(tiny_folder, home, tmp_path, seed):
    rng = random.Random(seed)
    for i in range(6):
        fitting = rng.random() < 0.6
        run = tmp_path / f"run{i}"
        words = fit_words(tiny_folder, home, run) if fitting else [rng.choice(["status", "decode"]), str(home / "run")]
        process, number = started(words), rng.choice(list(CODES))
        time.sleep(rng.choice([0.05, 0.2, 1.0, rng.uniform(0, 10)]))
        process.send_signal(number)
        check_end(process, number, 0, -number, *([75] if fitting else []))
        if fitting and os.path.exists(run / "config.json"):
            assert main(fit_words(tiny_folder, home, run)) == 0

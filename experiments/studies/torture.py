"""A run that is killed over and over: every text ends up recorded once, as if nothing had happened.

    python experiments/studies/torture.py --rounds 100 --count 240 --out runs/torture

A run of some texts in one or several processes (gloo on localhost, virtual CPU devices) is ended at random moments: by
`kill -9`, by SIGTERM, or by `kill -9` while one of its processes is stopped and the others go on. Each time another
number of processes and devices resumes it, now and then from a copy of its folder in another place. At the end every
text must be there once, `onestep verify` must find nothing, and accuracies must be those of a run that was never
touched. rounds.csv says what was done to it and what was recorded after each round.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onestep_jax import read_results
from onestep_jax.store.records import json_text

SHAPES = [(2, 1), (2, 2), (1, 4), (3, 1), (1, 1), (2, 4), (1, 2)]  # processes, devices of each
EARLY = 0.3  # share of the rounds that end at some moment of the first seconds, while everything starts
COPIED = 0.2  # share of the rounds after which the folder is copied elsewhere, and the copy goes on
ENDINGS = ["kill -9 of one", "kill -9 of all", "SIGTERM of all", "SIGSTOP of one, then kill -9 of all"]
PATIENCE = 300.0  # seconds for processes to end once they are told to
RESUME = 75


class Job:
    """Processes of one job on this machine, all running the same `onestep fit`; {process} is the number of each."""

    def __init__(self, arguments: Sequence[str], processes: int, devices: int):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags.strip()}
        command = [sys.executable, "-m", "onestep_jax.cli", "fit", *arguments]
        job = [
            "--distributed",
            "--coordinator",
            f"localhost:{free_port()}",
            "--processes",
            str(processes),
            "--process",
            "{process}",
        ]
        self.processes = [
            subprocess.Popen(
                [word.replace("{process}", str(i)) for word in [*command, *(job if processes > 1 else [])]],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]

    def send(self, number: signal.Signals, members: Sequence[int]) -> None:
        for i in members:
            self.processes[i].send_signal(number)

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait(self) -> list[tuple[int, str]]:
        """Exit status and last words of every process."""
        ends = [process.communicate(timeout=PATIENCE) for process in self.processes]
        return [(process.returncode, errors[-2000:]) for process, (_, errors) in zip(self.processes, ends, strict=True)]


def torture(model: str, texts: str, out: Path, *, rounds: int, options: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Run, end, go on, `rounds` times; then to the end.

    Args:
      model, texts: as of `onestep fit`.
      out: folder for the runs and rounds.csv.
      rounds: how often the run is ended.
      options: further ones of `onestep fit`.
      seed: of moments, signals and shapes.

    Returns:
      rounds survived, texts, whether every text is recorded once, the accuracies equal, and verify found nothing.
    """
    rng = random.Random(seed)
    given = ["--model", model, "--texts", texts, *options, "--save-every", "1"]
    job = Job([*given, "--run", str(out / "untouched")], 1, 2)
    while job.running() and not _files(out / "untouched"):
        time.sleep(0.05)
    began = time.monotonic()
    _check(job.wait(), (0,))
    untouched = read_results(out / "untouched")
    pause = (time.monotonic() - began) / rounds
    rows, run = [], out / "run"
    for number in range(rounds):
        processes, devices = rng.choice(SHAPES)
        rows.append(_round(Job([*given, "--run", str(run)], processes, devices), run, pause, rng))
        copied = run.exists() and rng.random() < COPIED
        run = _copied(run, out / f"run-{number}") if copied else run
        rows[-1] |= {"round": number, "processes": processes, "devices of each": devices, "then copied": copied}
        print(json_text(rows[-1]), flush=True)
    _check(Job([*given, "--run", str(run)], 2, 2).wait(), (0,))
    with (out / "rounds.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    found = read_results(run)
    verify = subprocess.run([sys.executable, "-m", "onestep_jax.cli", "verify", str(run)], capture_output=True)
    return {
        "rounds survived": len(rows),
        "texts": len(untouched),
        "each once": sorted(_recorded_rows(run)) == sorted(text.text_id for text in untouched),
        "same accuracies": [text.accuracy for text in found] == [text.accuracy for text in untouched],
        "verify clean": verify.returncode == 0,
    }


def _round(job: Job, run: Path, pause: float, rng: random.Random) -> dict[str, Any]:
    """Let a job work for a while, end it, and say what was recorded."""
    before = _files(run)
    early = rng.random() < EARLY
    deadline = time.monotonic() + (rng.uniform(0, 8) if early else PATIENCE)
    while job.running() and time.monotonic() < deadline and (early or _files(run) == before):
        time.sleep(0.05)
    if not early:
        time.sleep(rng.uniform(0, pause))
    how = rng.choice(ENDINGS)
    everyone = range(len(job.processes))
    if how == "SIGTERM of all":
        job.send(signal.SIGTERM, everyone)
    elif how != "kill -9 of all":
        first = signal.SIGSTOP if how.startswith("SIGSTOP") else signal.SIGKILL
        job.send(first, [rng.choice(everyone)])
        time.sleep(rng.uniform(0, 2))  # the others go on for a moment; JAX would end them within minutes
    if how != "SIGTERM of all":
        job.send(signal.SIGKILL, everyone)
    # Before its handler is there a process dies of SIGTERM; one whose work was done ends well.
    ends = job.wait()
    ended = (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL, -signal.SIGABRT)
    _check(ends, (0, RESUME, *ended))
    recorded = len(read_results(run)) if (run / "config.json").exists() else 0
    return {"ended by": how, "early": early, "recorded": recorded, "exit": " ".join(str(code) for code, _ in ends)}


def _copied(run: Path, place: Path) -> Path:
    """The run directory as a copy, of which no file is as old as it was; the first one is gone."""
    shutil.copytree(run, place, copy_function=shutil.copyfile)
    shutil.rmtree(run)
    return place


def _files(run: Path) -> set[str]:
    return {path.name for kind in ("results", "state") for path in (run / kind).glob("*")}


def _recorded_rows(run: Path) -> list[str]:
    """text_id of every row of every part."""
    import pyarrow.parquet as pq

    return [name for path in (run / "results").glob("*.parquet") for name in pq.read_table(path)["text_id"].to_pylist()]


def _check(ends: list[tuple[int, str]], expected: Sequence[int]) -> None:
    for code, words in ends:
        if code not in expected:
            raise SystemExit(f"a process ended with status {code}, expected one of {list(expected)}:\n{words}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="default, a folder or a hub id (default: default)")
    parser.add_argument("--texts", default="gen", help="as of onestep fit (default: gen)")
    parser.add_argument("--count", type=int, default=60, help="texts (default: 60)")
    parser.add_argument("--length", type=int, default=16, help="tokens of each (default: 16)")
    parser.add_argument("--slots", type=int, default=4, help="texts at a time of a process (default: 4)")
    parser.add_argument("--rounds", type=int, default=20, help="how often the run is ended (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of moments, signals and shapes (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"), help="folder (default: runs/torture)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = ["--limit", str(args.count), "--length", str(args.length), "--slots", str(args.slots)]
    found = torture(args.model, args.texts, args.out, rounds=args.rounds, options=options, seed=args.seed)
    print(json_text(found))
    sys.exit(not all(found.values()))


if __name__ == "__main__":
    main()

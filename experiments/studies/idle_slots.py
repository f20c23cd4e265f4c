"""What the next seeds of texts that still run would save, if idle slots at the end of a sweep began them ahead.

    python experiments/studies/idle_slots.py RUN … --out experiments/results/idle_slots

A seed that runs ahead may count only if all seeds of its text before it have failed, or else the result would depend on
which slots happened to be idle. From the recorded trials of run directories, which say how many gradient evaluations
each seed took, this replays a sweep twice: seeds one after the other, as the engine has it, and the next ones ahead in
idle slots. Slots are halved when half of them suffice; what compiling costs is left out. A seed ahead that turns out
not to be needed costs what it occupies. There are two prices: steps from the first to the last (what an accelerator
waits for) and steps times slots (what a processor works). idle_slots.csv has a row a run and number of slots, for runs
with a text that took a second seed; summary.json has the sums over all runs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onestep_jax import UserError, read_results
from onestep_jax.store.records import json_text

CHUNK = 10  # steps between two looks of the host
UNKNOWN = 10**9  # steps of a seed that no trial is recorded of: nobody needed it


class Price(NamedTuple):
    """Of a sweep: steps from its first to its last, and the same times the slots of each."""

    steps: int
    slot_steps: int


class Replay:
    """A sweep of texts of which each seed's evaluations are known.

    Args:
      trials: evaluations of each seed of each text, the last one being that which ended the text.
      slots: at the beginning.
      ahead: whether idle slots begin the next seeds of running texts.
      halve: whether slots are halved when half of them suffice.
    """

    def __init__(self, trials: Sequence[Sequence[int]], slots: int, *, ahead: bool, halve: bool):
        self.trials, self.slots, self.ahead, self.halve = trials, slots, ahead, halve
        self.waiting = deque((text, 0) for text in range(len(trials)))
        self.running: dict[tuple[int, int], int] = {}  # (text, seed) → steps left
        self.ended: set[tuple[int, int]] = set()
        self.wanted = [0] * len(trials)  # the seed of each text that decides what comes next

    def price(self) -> Price:
        """Carry the sweep out."""
        steps = slot_steps = 0
        while self.waiting or self.running:
            self._fill()
            steps, slot_steps = steps + CHUNK, slot_steps + CHUNK * self.slots
            self.running = {task: left - CHUNK for task, left in self.running.items()}
            over = {task for task, left in self.running.items() if left <= 0}
            self.ended |= over
            self.running = {task: left for task, left in self.running.items() if task not in over}
            for text in {text for text, _ in over}:
                self._go_on(text)
        return Price(steps, slot_steps)

    def _fill(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            text, seed = self.waiting.popleft()
            self.running[text, seed] = self.trials[text][seed]
        if self.waiting:
            return
        needed = sum(seed == self.wanted[text] for text, seed in self.running)
        while self.halve and self.slots > 1 and needed <= -(-self.slots // 2):
            self.slots = -(-self.slots // 2)
        ahead = sorted((task for task in self.running if task[1] > self.wanted[task[0]]), key=lambda task: task[1])
        while len(self.running) > self.slots:
            del self.running[ahead.pop()]
        while self.ahead and len(self.running) < self.slots:
            # The text with the fewest seeds under way first, and of those the one that was taken first.
            seeds = {text: self._next(text) for text, _ in self.running}
            text = min(seeds, key=lambda text: (seeds[text] - self.wanted[text], text))
            of_text, seed = self.trials[text], seeds[text]
            self.running[text, seed] = of_text[seed] if seed < len(of_text) else UNKNOWN

    def _next(self, text: int) -> int:
        """The first seed of a text that neither runs nor has ended."""
        seed = self.wanted[text]
        while (text, seed) in self.running or (text, seed) in self.ended:
            seed += 1
        return seed

    def _go_on(self, text: int) -> None:
        """What follows from the seeds of a text that have ended: it is over, or its next seed is wanted."""
        while (text, self.wanted[text]) in self.ended:
            self.wanted[text] += 1
        if self.wanted[text] >= len(self.trials[text]):
            self.running = {task: left for task, left in self.running.items() if task[0] != text}
        elif (text, self.wanted[text]) not in self.running and (text, self.wanted[text]) not in self.waiting:
            self.waiting.append((text, self.wanted[text]))


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of one run directory: as many slots as texts, half of them, a quarter; halved and not."""
    results = read_results(run)
    trials = [[trial.steps for trial in text.trials] for text in results]
    rows: list[dict[str, Any]] = []
    for slots in sorted({-(-len(trials) // part) for part in (1, 2, 4)}):
        for halve in (True, False):
            before, after = (Replay(trials, slots, ahead=ahead, halve=halve).price() for ahead in (False, True))
            rows.append({
                "run": "/".join(run.parts[-4:]), "tokens": max(len(text.tokens) for text in results),
                "texts": len(trials), "of more than one seed": sum(len(seeds) > 1 for seeds in trials),
                "slots": slots, "halved": halve, "steps": before.steps, "steps with seeds ahead": after.steps,
                "slot steps": before.slot_steps, "slot steps with seeds ahead": after.slot_steps,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", type=Path, default=Path("runs/idle_slots"), help="folder (default: runs/idle_slots)")
    args = parser.parse_args()
    try:
        rows = [row for run in args.runs for row in rows_of(run)]
    except UserError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "idle_slots.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(row for row in rows if row["of more than one seed"])
    found = json_text(summary(rows), indent=2)
    (args.out / "summary.json").write_text(found + "\n")
    print(found)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all runs: texts, and what is left of both prices."""
    whole = [row for row in rows if row["slots"] == row["texts"] and row["halved"]]
    found: dict[str, Any] = {"runs": len(whole)}
    found |= {name: sum(row[name] for row in whole) for name in ("texts", "of more than one seed")}
    for halve, name in itertools.product((True, False), ("steps", "slot steps")):
        chosen = [row for row in rows if row["halved"] == halve]
        before, after = (sum(row[key] for row in chosen) for key in (name, f"{name} with seeds ahead"))
        found[f"{name} with seeds ahead, {'halved' if halve else 'fixed'} slots"] = round(after / before, 4)
    return found


if __name__ == "__main__":
    main()

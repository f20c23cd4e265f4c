"""Everything that has to be measured on a GPU or TPU, in one call of a few minutes.

    python experiments/studies/accelerator.py --out runs/accelerator

Runs `onestep bench` on random weights of published shapes, in bfloat16, each benchmark in a process of its own that is
ended when its time and what earlier ones left of theirs is over, so that one that fails or hangs costs the others
nothing. A benchmark begins no further contender after a share `BEGINNING` of its time, so that those begun by then are
timed and recorded; most of the time goes into compiling, and the contenders that matter most come first.

    Llama-3.2-1B  N = 256 and 64   step, slots auto, beside PyTorch at batch 1 and at our batch, eager and compiled; at
                                   256 also a scan over the layers
    Llama-3.1-8B  N = 512          step, slots auto, without PyTorch; here and at N = 256 with cuDNN's attention as well
    Pythia-160M   N = 128          step, slots auto, beside eager PyTorch
    Llama-3.2-1B                   scale: slots, lengths and vocabularies
    Llama-3.2-1B                   decode: one pass against token by token

Targets, on one H200: at least half of the matrix-product ceiling at N = 256 and 45 % on the 8B shape; 4 times the
text-steps per second of eager PyTorch at batch 1 at N = 256 and 10 times at N = 64; 1.2 times PyTorch compiled at our
batch. `--smoke` runs the same list on the packaged model at tiny sizes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ONE_B, EIGHT_B, PYTHIA = "shape:llama-3.2-1b", "shape:llama-3.1-8b", "shape:pythia-160m"
BEGINNING = 0.6  # the rest is for start-up, for the last one's compiling and for the rounds
# name → words of `onestep bench`, and its seconds
PLAN: dict[str, tuple[str, int]] = {
    "step-1b-256": (
        f"step --model {ONE_B} --length 256 --slots auto --repeats 5 --chunk 5 --compiled --fused --scan-layers",
        180,
    ),
    "step-1b-64": (f"step --model {ONE_B} --length 64 --slots auto --repeats 5 --chunk 5", 70),
    "step-8b-512": (f"step --model {EIGHT_B} --length 512 --slots auto --repeats 3 --chunk 2 --no-torch --fused", 135),
    "step-160m-128": (f"step --model {PYTHIA} --length 128 --slots auto --repeats 5 --chunk 5", 50),
    "decode-1b": (f"decode --model {ONE_B} --lengths 64,256 --batches 1,16 --repeats 5", 50),
    "scale-1b": (
        f"scale --model {ONE_B} --slots 1,8,64 --lengths 64,256 --vocabularies 32768,128256 --budget 16384 --repeats 3",
        55,
    ),
}
SMOKE: dict[str, tuple[str, int]] = {
    "step": ("step --length 8 --slots auto --repeats 1 --chunk 1 --no-torch", 300),
    "scale": ("scale --slots 1,2 --lengths 8 --budget 8 --repeats 1", 300),
    "decode": ("decode --lengths 8 --batches 1 --repeats 1", 300),
}


def run(name: str, words: str, seconds: float, out: Path) -> bool:
    """One benchmark in a process of its own; its output goes to the terminal, its record to `out`."""
    program = "import sys; from onestep_jax.cli import main; sys.exit(main())"
    limit = ["--limit", f"{BEGINNING * seconds:.0f}"]
    command = [sys.executable, "-c", program, "bench", *words.split(), *limit, "--out", str(out / f"{name}.json")]
    print(f"== {name}: onestep bench {words}", flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(command, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
        print(f"{name}: ended after {seconds:.0f} s", flush=True)
    print(f"{name}: {'done' if done else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return done


def run_all(plan: dict[str, tuple[str, int]], out: Path) -> list[str]:
    """All benchmarks of a plan, each until the seconds of all up to it are over; the names of those that failed."""
    failed, ends = [], time.monotonic()
    for name, (words, seconds) in plan.items():
        ends += seconds
        if not run(name, words, ends - time.monotonic(), out):
            failed.append(name)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"), help="folder of the records")
    parser.add_argument("--only", nargs="*", help=f"of {', '.join(PLAN)}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the packaged model")
    args = parser.parse_args()
    plan = SMOKE if args.smoke else PLAN
    chosen = {name: task for name, task in plan.items() if not args.only or name in args.only}
    args.out.mkdir(parents=True, exist_ok=True)
    failed = run_all(chosen, args.out)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} done; records in {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

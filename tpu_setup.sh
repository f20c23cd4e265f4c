#!/usr/bin/env bash
# Set up onestep_jax on one worker of a Cloud TPU slice, or on a GPU host: a virtual environment with the extra for its
# devices, and its caches. Run it on every worker, whatever provisioned them, for example
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command 'onestep_jax/tpu_setup.sh'
# Running it again repairs what is broken, brings the environment up to this clone and leaves the rest alone.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: tpu_setup.sh [--extra tpu|cuda12|cuda13] [--venv DIR] [--cache DIR] [--python PYTHON] [--wheels DIR] [--check]
  --extra NAME     devices of this machine                (default: tpu)
  --venv DIR       virtual environment to make or reuse   (default: ~/onestep-venv)
  --cache DIR      Hugging Face and XLA caches, which workers may share  (default: ~/onestep-cache)
  --python PYTHON  interpreter of Python 3.11 or newer    (default: the first of python3, python3.13, .12, .11)
  --wheels DIR     install from the wheels of this folder, without a network; made on a like machine by
                   pip wheel --wheel-dir DIR '.[tpu]' 'setuptools>=77'
  --check          only count the devices; every worker of a slice must run it at the same time, since none
                   is told of its devices before all are there
TEXT
}

fail() {
    printf 'tpu_setup.sh: %s\n' "$1" >&2
    exit 2
}

extra=tpu
venv="$HOME/onestep-venv"
cache="$HOME/onestep-cache"
python=
wheels=
check=no
while (($#)); do
    case "$1" in
        --extra | --venv | --cache | --python | --wheels)
            [[ $# -ge 2 && -n $2 ]] || fail "$1 needs a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        --check) check=yes; shift ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; fail "unknown argument $1" ;;
    esac
done
case "$extra" in tpu | cuda12 | cuda13) ;; *) fail "--extra $extra: expected tpu, cuda12 or cuda13" ;; esac
[[ -z $wheels || -d $wheels ]] || fail "--wheels $wheels: no such folder"

if [[ $check == yes ]]; then
    [[ -x "$venv/bin/python" ]] || fail "no environment in $venv; run it without --check first"
    status=0
    "$venv/bin/python" - <<'PYTHON' || status=$?
import sys

import jax

print("counting the devices; in a slice this waits for the other workers, which must run it too", file=sys.stderr)
try:
    jax.distributed.initialize(initialization_timeout=120)
except ValueError:
    print("neither a TPU slice nor a Slurm step: counting this machine alone", file=sys.stderr)
if jax.default_backend() == "cpu":
    sys.exit("JAX finds no accelerator here, only the CPU")
here, everywhere, kind = jax.local_device_count(), jax.device_count(), jax.local_devices()[0].device_kind
print(f"process {jax.process_index()} of {jax.process_count()}: {here} of {everywhere} devices, {kind}")
PYTHON
    # JAX ends a process that waits in vain by SIGABRT: no Python can explain it.
    ((status < 128)) || echo "tpu_setup.sh: not every worker came; run --check on all of them at the same time" >&2
    exit "$status"
fi

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
cure="on Ubuntu 22.04: sudo apt-get install -y python3.11 python3.11-venv"
if [[ -z $python ]]; then
    for python in python3 python3.13 python3.12 python3.11 none; do
        if recent "$python"; then break; fi
    done
    [[ $python != none ]] || fail "no Python 3.11 or newer on PATH ($cure; or name one with --python)"
fi
recent "$python" || fail "$python is not Python 3.11 or newer ($cure; or name another with --python)"

mkdir -p "$(dirname "$venv")" "$cache/huggingface" "$cache/xla"
cache="$(cd "$cache" && pwd)"
venv="$(cd "$(dirname "$venv")" && pwd)/$(basename "$venv")"
if command -v flock >/dev/null; then # workers that share a home directory take turns
    exec 9>"$venv.lock"
    flock 9
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || {
        name="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        fail "$python cannot make virtual environments (on Debian and Ubuntu: sudo apt-get install -y $name)"
    }
    "$python" -m venv "$venv"
fi

# Built from a copy: workers may share the clone, and it may be read-only.
source="$(mktemp -d)"
trap 'rm -rf "$source"' EXIT
here="$(cd "$(dirname "$0")" && pwd)"
cp -R "$here/pyproject.toml" "$here/README.md" "$here/LICENSE" "$here/onestep_jax" "$source"
offline=()
[[ -z $wheels ]] || offline=(--no-index --find-links "$wheels")
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${offline[@]}" "$source[$extra]"

# Only what is large goes to the cache, which may be shared: a token stays where `hf auth login` keeps it.
cat >"$venv/bin/onestep-caches.sh" <<TEXT
export HF_HUB_CACHE=$(printf %q "$cache/huggingface/hub")
export HF_DATASETS_CACHE=$(printf %q "$cache/huggingface/datasets")
export JAX_COMPILATION_CACHE_DIR=$(printf %q "$cache/xla")
TEXT
line='. "$VIRTUAL_ENV/bin/onestep-caches.sh"'
grep -qxF "$line" "$venv/bin/activate" || printf '%s\n' "$line" >>"$venv/bin/activate"
echo "ready: . $venv/bin/activate && onestep --help"

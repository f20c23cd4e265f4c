#!/usr/bin/env bash
# Set up onestep_jax on one worker of a Cloud TPU slice: a virtual environment with the `tpu` extra, and its caches.
# Run it on every worker, whatever provisioned them, for example
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command 'cd onestep_jax && ./tpu_setup.sh'
# Running it again changes nothing that is already right.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: tpu_setup.sh [--venv DIR] [--cache DIR] [--python PYTHON] [--check]
  --venv DIR       virtual environment to make or reuse   (default: ~/onestep-venv)
  --cache DIR      Hugging Face and XLA caches            (default: ~/onestep-cache)
  --python PYTHON  interpreter of Python 3.11 or newer    (default: python3)
  --check          only count the TPU devices; every worker of the slice must run it at the same time
TEXT
}

venv="$HOME/onestep-venv"
cache="$HOME/onestep-cache"
python=python3
check=no
while (($#)); do
    case "$1" in
        --venv | --cache | --python)
            [[ $# -ge 2 ]] || { echo "tpu_setup.sh: $1 needs a value" >&2; exit 2; }
            case "$1" in --venv) venv="$2" ;; --cache) cache="$2" ;; --python) python="$2" ;; esac
            shift 2
            ;;
        --check) check=yes; shift ;;
        --help | -h) usage; exit 0 ;;
        *) echo "tpu_setup.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
done

if [[ $check == yes ]]; then
    [[ -x "$venv/bin/python" ]] || { echo "tpu_setup.sh: no environment in $venv; run it without --check first" >&2; exit 2; }
    exec "$venv/bin/python" -c '
import jax
jax.distributed.initialize()
print(f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of {jax.device_count()} devices")'
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "tpu_setup.sh: $python is older than Python 3.11; give another with --python" >&2
    exit 2
}
here="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$cache/huggingface" "$cache/xla"
[[ -x "$venv/bin/python" ]] || "$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade "$here[tpu]"

settings="$venv/bin/activate.d-onestep"
printf 'export HF_HOME=%q\nexport JAX_COMPILATION_CACHE_DIR=%q\n' "$cache/huggingface" "$cache/xla" >"$settings"
line=". \"$settings\""
grep -qxF "$line" "$venv/bin/activate" || printf '%s\n' "$line" >>"$venv/bin/activate"
echo "ready: . $venv/bin/activate && onestep --help"

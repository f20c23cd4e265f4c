"""tpu_setup.sh for real, with interpreters whose pip only notes what it is asked for."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tpu_setup.sh"

# Stands in for python3 and for the python of the environments it makes. FAKE_OLD: is too old; FAKE_BARE: has no
# ensurepip; FAKE_SLOW: seconds that pip takes.
PYTHON = f"""#!/bin/bash
printf '%s\\n' "$*" >>"$FAKE_LOG"
case "$*" in
    *"version_info <"*) exit ${{FAKE_OLD:-0}} ;;
    *ensurepip*) exit ${{FAKE_BARE:-0}} ;;
    "-c "*) exec {sys.executable} "$@" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo 'VIRTUAL_ENV="'"$3"'"' >"$3/bin/activate" ;;
    "-m pip install "*) sleep "${{FAKE_SLOW:-0}}"; ls "${{@: -1}}" >/dev/null 2>&1; echo end of pip >>"$FAKE_LOG" ;;
    "-m pip --version") ;;
    *) exit 9 ;;
esac
"""
# Stands in for pip in an environment that is real otherwise.
PIP = "import os, sys; open(os.environ['FAKE_LOG'], 'a').write(' '.join(sys.argv[1:]) + '\\n')"


class Host:
    """A machine with nothing but a python3, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log"
        self.environment = {**os.environ, "HOME": str(folder), "FAKE_LOG": str(self.log)}
        (folder / "bin").mkdir()
        self.add_python("python3")
        for tool in "bash mkdir dirname basename cat cp rm grep mktemp sleep ls flock".split():
            if found := shutil.which(tool):
                (folder / "bin" / tool).symlink_to(found)
        self.environment["PATH"] = str(folder / "bin")

    def add_python(self, name: str) -> Path:
        path = self.folder / "bin" / name
        path.write_text(PYTHON)
        path.chmod(0o755)
        return path

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([SCRIPT, *words], env={**self.environment, **environment}, cwd=self.folder, **pipes)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def calls(self, beginning: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(beginning)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_help_names_every_option(host: Host):
    done = host.run("--help")
    assert done.returncode == 0
    taken = set(re.findall(r"--[a-z]+(?= \||\))", SCRIPT.read_text()))
    assert taken >= {"--extra", "--venv", "--cache", "--python", "--wheels", "--check"}
    assert taken <= set(re.findall(r"--[a-z]+", done.stdout)) | {"--help"}
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert not host.log.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chek"], "unknown argument --chek"),
        (["--venv"], "--venv needs a value"),
        (["--cache", ""], "--cache needs a value"),
        (["--extra", "rocm"], "--extra rocm: expected tpu, cuda12 or cuda13"),
        (["--wheels", "nowhere"], "--wheels nowhere: no such folder"),
        (["--python", "python9"], "python9 is not Python 3.11 or newer"),
        (["--check"], "run it without --check first"),
    ],
)
def test_wrong_arguments_change_nothing(host: Host, words: list[str], said: str):
    done = host.run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert {path.name for path in host.folder.iterdir()} <= {"bin", "log"}
    assert not host.calls("-m")


def test_old_python_is_refused_with_the_cure(host: Host):
    done = host.run(FAKE_OLD="1")
    assert done.returncode == 2
    assert "sudo apt-get install -y python3.11 python3.11-venv" in done.stderr


def test_newer_python_beside_an_old_one_is_found(host: Host):
    (host.folder / "bin" / "python3").write_text("#!/bin/bash\nexit 1\n")
    host.add_python("python3.12")
    assert host.run().returncode == 0
    assert len(host.calls("-m venv")) == 1


def test_missing_venv_package_is_refused_with_the_cure(host: Host):
    done = host.run(FAKE_BARE="1")
    assert done.returncode == 2
    assert f"sudo apt-get install -y python3.{sys.version_info.minor}-venv" in done.stderr
    assert not host.calls("-m venv")


def test_installs_the_extra_once_and_repairs(host: Host):
    done = host.run()
    assert done.returncode == 0
    assert done.stdout == f"ready: . {host.folder}/onestep-venv/bin/activate && onestep --help\n"
    (first,) = host.calls("-m pip install")
    assert first.endswith("[tpu]")
    activate = host.folder / "onestep-venv" / "bin" / "activate"
    before = activate.read_text()

    assert host.run("--extra", "cuda13").returncode == 0
    assert len(host.calls("-m venv")) == 1
    assert host.calls("-m pip install")[1].endswith("[cuda13]")
    assert activate.read_text() == before

    (activate.parent / "python").write_text("#!/bin/bash\nexit 1\n")  # as where ensurepip failed, and no pip is there
    assert host.run().returncode == 0
    assert len(host.calls("-m venv")) == 2


def test_built_from_a_copy_of_what_the_package_needs(host: Host):
    """Several workers may share the clone."""
    before = {path.name for path in SCRIPT.parent.iterdir()}
    assert host.run(TMPDIR=str(host.folder)).returncode == 0
    (line,) = host.calls("-m pip install")
    source = Path(line.split()[-1].removesuffix("[tpu]"))
    assert source.parent == host.folder
    assert not source.exists()  # removed in the end
    assert {path.name for path in SCRIPT.parent.iterdir()} == before


def test_wheels_mean_no_network(host: Host):
    (host.folder / "wheels").mkdir()
    assert host.run("--wheels", "wheels").returncode == 0
    (line,) = host.calls("-m pip install")
    assert "--no-index --find-links wheels" in line


@pytest.mark.long
def test_failing_pip_fails(host: Host):
    (host.folder / "wheels").mkdir()
    done = host.run("--python", sys.executable, "--wheels", "wheels", PATH=os.environ["PATH"])
    assert done.returncode != 0
    assert "ready" not in done.stdout
    assert "setuptools" in done.stderr


@pytest.mark.skipif(shutil.which("flock") is None, reason="workers take turns by flock")
def test_workers_with_one_home_take_turns(host: Host):
    workers = [host.start(FAKE_SLOW="0.3") for _ in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    for worker in workers:
        worker.communicate()
    lines = [line for line in host.log.read_text().splitlines() if line.startswith(("-m pip install", "end of pip"))]
    assert len(lines) == 6
    assert lines[1::2] == ["end of pip"] * 3
    assert len(host.calls("-m venv")) == 1


@pytest.fixture
def real(host: Host) -> Host:
    """A host whose environment is real, but for pip."""
    venv.create(host.folder / "env", with_pip=False)
    packages = next((host.folder / "env" / "lib").iterdir()) / "site-packages"
    (packages / "pip").mkdir()
    (packages / "pip" / "__main__.py").write_text(PIP)
    return host


def test_caches_wherever_they_are_asked_for(real: Host):
    words = ["--venv", "env", "--cache", "shared disk/cache"]
    show = (
        ". env/bin/activate && cd / && python -c 'import os; print(*map(os.environ.get, os.sys.argv[1:]), sep=chr(10))'"
    )
    names = ["HF_HUB_CACHE", "HF_DATASETS_CACHE", "JAX_COMPILATION_CACHE_DIR"]

    def caches() -> list[str]:
        shell = ["bash", "-c", f"{show} {' '.join(names)}"]
        return subprocess.check_output(shell, cwd=real.folder, env=real.environment, text=True).splitlines()

    for _ in range(2):
        assert real.run(*words).returncode == 0
        folder = f"{real.folder}/shared disk/cache"
        assert caches() == [f"{folder}/huggingface/hub", f"{folder}/huggingface/datasets", f"{folder}/xla"]
    assert real.run("--venv", "env", "--cache", "other").returncode == 0
    assert caches()[2] == f"{real.folder}/other/xla"
    assert (real.folder / "env" / "bin" / "activate").read_text().count("onestep-caches.sh") == 1


def test_tokens_are_neither_shown_nor_kept(real: Host):
    secret = "hf_notforanyone"
    index = f"https://reader:{secret}@example.org/simple"
    done = real.run("--venv", "env", HF_TOKEN=secret, HUGGING_FACE_HUB_TOKEN=secret, PIP_INDEX_URL=index)
    assert done.returncode == 0
    assert secret not in done.stdout + done.stderr
    kept = [real.folder / "onestep-cache", *(real.folder / "env" / "bin").iterdir()]
    for path in kept:
        assert not path.is_file() or secret not in path.read_text(errors="ignore")
    assert "set -x" not in SCRIPT.read_text()


def test_check_without_an_accelerator_says_so(host: Host):
    python = host.folder / "onestep-venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = host.run("--check", JAX_PLATFORMS="cpu")
    assert done.returncode == 1
    assert "waits for the other workers, which must run it too" in done.stderr
    assert "neither a TPU slice nor a Slurm step" in done.stderr
    assert "no accelerator" in done.stderr


@pytest.mark.parametrize(("status", "said"), [(134, True), (1, False), (0, False)])
def test_check_explains_a_wait_in_vain(host: Host, status: int, said: bool):
    python = host.folder / "onestep-venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/bash\nexit {status}\n")
    python.chmod(0o755)
    done = host.run("--check")
    assert done.returncode == status
    assert ("on all of them at the same time" in done.stderr) == said

"""The scripts of docs/tpu.md and docs/gpu.md, with stand-ins for the programs of a pod; the JobSet manifest."""

import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from onestep_jax.cli.parser import build_parser

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def script(page: str) -> str:
    (found,) = [block for block in blocks(page, "sh") if block.startswith("#!")]
    return found


@pytest.mark.parametrize("page", ["tpu", "gpu"])
def test_blocks_are_shell(page: str):
    for block in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


class Pod:
    """A folder of stand-ins, each of which notes its arguments; `onestep` and `srun` exit with what `statuses` says."""

    def __init__(self, folder: Path, statuses: list[int]):
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        for name in ("apt-get", "mount", "scontrol", "sleep"):
            self.stand_in(folder / "bin" / name, "")
        # takes the first line of the statuses away
        take = f'read -r status <"{folder}/statuses"; sed -i 1d "{folder}/statuses"; exit "$status"'
        for name in ("onestep", "srun"):
            self.stand_in(folder / "bin" / name, take)
        self.stand_in(folder / "onestep_jax" / "tpu_setup.sh", "")
        for venv in ("onestep", "onestep-venv"):
            activate = folder / venv / "bin" / "activate"
            activate.parent.mkdir(parents=True)
            activate.write_text("")

    def stand_in(self, path: Path, rest: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\necho "{path.name} $*" >>"{self.log}"\n{rest}\n')
        path.chmod(0o755)

    def run(self, text: str, **environment: str) -> int:
        for place in ("/mnt/onestep", "/opt/onestep"):
            text = text.replace(place, str(self.folder / "onestep" if place.startswith("/opt") else self.folder))
        path = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder)}
        return subprocess.run(["bash", "-c", text], env=path | environment, timeout=60).returncode

    def calls(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(name + " ")]


@pytest.mark.parametrize(
    ("statuses", "ended"),
    [([0], 0), ([75, 0], 0), ([134, 75, 137, 0], 0), ([75, 2], 2)],
)
def test_a_worker_goes_on_until_it_is_done(tmp_path: Path, statuses: list[int], ended: int):
    pod = Pod(tmp_path, statuses)
    assert pod.run(script("tpu")) == ended
    assert len(pod.calls("onestep")) == len(statuses)
    assert len(set(pod.calls("onestep"))) == 1  # the same command
    assert (tmp_path / "statuses").read_text() == ""
    (setup,) = pod.calls("tpu_setup.sh")
    assert setup == f"tpu_setup.sh --venv {tmp_path}/onestep --cache {tmp_path}/cache"


def test_a_worker_that_cannot_be_set_up_does_not_fit(tmp_path: Path):
    pod = Pod(tmp_path, [0])
    pod.stand_in(tmp_path / "onestep_jax" / "tpu_setup.sh", "exit 2")
    assert pod.run(script("tpu")) == 1
    assert not pod.calls("onestep")


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, "", False), (2, "", False), (75, "", True), (134, "3", True), (75, "50", False)],
)
def test_slurm_job_queues_again_when_it_is_not_done(tmp_path: Path, status: int, restarts: str, requeued: bool):
    pod = Pod(tmp_path, [status])
    variables = {"SLURM_JOB_ID": "17"} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    assert pod.run(script("gpu"), **variables) == status
    (step,) = pod.calls("srun")
    assert step.startswith("srun --kill-on-bad-exit=0 onestep fit --distributed ")
    assert pod.calls("scontrol") == ["scontrol requeue 17"] * requeued


def test_slurm_job_names_all_gpus_of_a_node():
    text = script("gpu")
    gpus = int(re.findall(r"--gpus-per-node=(\d+)", text)[0])
    assert "--ntasks-per-node=1 " in text
    assert f"JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(gpus)))}\n" in text


def test_jobset():
    (manifest,) = map(yaml.safe_load, blocks("tpu", "yaml"))
    (slice_,) = manifest["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"] * job["parallelism"]
    assert chips == math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert job["parallelism"] == job["completions"]
    program, *words = container["command"]
    assert program == "onestep"
    args, rest = build_parser().parse_known_args(words)
    assert args.command == "fit"
    assert set(rest) <= {"--distributed"}
    (mount,) = container["volumeMounts"]
    assert str(args.run).startswith(mount["mountPath"])
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]

"""Checkpoints from the hub, against a small server that speaks its protocol: what is fetched, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from family_cases import GOLDEN_FOLDER
from hub_server import COMMITS, Hub, serving
from hub_server import environment as settings


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a sharded model among files that nobody wants, one in a single file, the same with an index, one with
    pickles only.
    """
    root = tmp_path_factory.mktemp("hub")
    sharded, single, indexed, pickles = (root / name for name in ("sharded", "single", "indexed", "pickles"))
    shutil.copytree(GOLDEN_FOLDER / "llama_sharded", sharded)
    shutil.copytree(GOLDEN_FOLDER / "llama", single)
    shutil.copytree(GOLDEN_FOLDER / "llama", indexed)
    weight_map = {"model.norm.weight": "model.safetensors"}
    (indexed / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shutil.copytree(GOLDEN_FOLDER / "llama", pickles)
    (pickles / "model.safetensors").rename(pickles / "pytorch_model.bin")
    (sharded / "onnx").mkdir()
    unwanted = "onnx/config.json onnx/model.safetensors consolidated.safetensors pytorch_model.bin README.md train.json"
    for name in unwanted.split():
        (sharded / name).write_text("{}")
    folders = {"org/sharded": sharded, "org/single": single, "org/indexed": indexed, "org/pickles": pickles}
    with serving(folders) as server:
        yield server


def load(hub: Hub, home: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Load a model in a process of its own, whose hub and HF_HOME these are; prints its fingerprint."""
    hub.downloads.clear()
    revision = environment.pop("revision", None)
    code = (
        "import sys; from onestep_jax import load_model, UserError\n"
        f"try: print(load_model({name!r}, revision={revision!r}).fingerprint)\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    env = {**os.environ, **settings(hub, home), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


def fingerprint(folder: str) -> str:
    from onestep_jax import load_model

    return load_model(GOLDEN_FOLDER / folder).fingerprint


def test_only_the_needed_files_are_fetched(hub: Hub, tmp_path: Path):
    done = load(hub, tmp_path, "org/sharded")
    assert done.stdout.strip() == fingerprint("llama_sharded"), done.stderr
    shards = {path.name for path in (GOLDEN_FOLDER / "llama_sharded").glob("*.safetensors")}
    assert len(shards) == 3
    assert sorted(hub.downloads) == sorted({"config.json", "model.safetensors.index.json", *shards})
    assert list((tmp_path / "hub").glob("models--org--sharded/snapshots/*"))


@pytest.mark.long
def test_second_load_fetches_nothing_and_needs_no_hub(hub: Hub, tmp_path: Path):
    load(hub, tmp_path, "org/single")
    again = load(hub, tmp_path, "org/single")
    assert again.stdout.strip() == fingerprint("llama"), again.stderr
    assert not hub.downloads
    offline = load(hub, tmp_path, "org/single", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout.strip() == fingerprint("llama"), offline.stderr


@pytest.mark.long
def test_a_single_file_that_an_index_names(hub: Hub, tmp_path: Path):
    done = load(hub, tmp_path, "org/indexed")
    assert done.stdout.strip() == fingerprint("llama"), done.stderr
    assert sorted(hub.downloads) == ["config.json", "model.safetensors", "model.safetensors.index.json"]


def test_revision(hub: Hub, tmp_path: Path):
    done = load(hub, tmp_path, "org/single", revision="v2")
    assert done.stdout.strip() == fingerprint("llama"), done.stderr
    (snapshot,) = (tmp_path / "hub").glob("models--org--single/snapshots/*")
    assert snapshot.name == COMMITS["v2"]


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("org/gated", "main", "gated: accept its licence on the hub and log in with `hf auth login`"),
        ("org/absent", "main", "no such repository on the hub, or no access to it"),
        ("org/single", "v9", "the hub has no revision 'v9' of it"),
        ("org/pickles", "main", "only pickled weights (.bin), which can run code when read; convert them once"),
        ("org/pickles", "main", "AutoModelForCausalLM.from_pretrained('org/pickles', revision='main')"),
    ],
)
def test_refusals_in_plain_words(hub: Hub, tmp_path: Path, name: str, revision: str, said: str):
    done = load(hub, tmp_path, name, revision=revision)
    assert done.returncode == 1
    assert said in done.stderr
    assert repr(name) in done.stderr
    assert "Traceback" not in done.stderr


def test_hub_that_cannot_be_reached(hub: Hub, tmp_path: Path):
    done = load(hub, tmp_path, "org/single", HF_HUB_OFFLINE="1")
    assert "no such folder, not in the local cache, and the hub cannot be reached" in done.stderr

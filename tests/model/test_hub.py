"""Checkpoints from the hub, against a small server that speaks its protocol: what is fetched, and what is said."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from family_cases import GOLDEN_FOLDER

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a folder; remembers what was downloaded."""

    def __init__(self, repositories: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.downloads = repositories, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", X_Error_Code=code, X_Error_Message=code, Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, revision, file = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", None
        else:
            name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if name == "org/gated":
            return self.refuse(403, "GatedRepo")
        if name not in self.server.repositories:
            return self.refuse(404, "RepoNotFound")
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            return self.refuse(404, "RevisionNotFound")
        folder = self.server.repositories[name]
        if file is None:
            files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
            about: Any = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            if "tree" in parts:
                sizes = {file: path.stat().st_size for file, path in files.items()}
                about = [{"type": "file", "path": file, "size": size, "oid": "c" * 40} for file, size in sizes.items()]
            return self.answer(200, json.dumps(about).encode(), Content_Type="application/json")
        if not (folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        content = (folder / file).read_bytes()
        if self.command == "GET":
            self.server.downloads.append(file)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(200, content, ETag=etag, X_Repo_Commit=commit)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a sharded model among files that nobody wants, one in a single file, one with pickles only."""
    root = tmp_path_factory.mktemp("hub")
    sharded, single, pickles = (root / name for name in ("sharded", "single", "pickles"))
    shutil.copytree(GOLDEN_FOLDER / "llama_sharded", sharded)
    shutil.copytree(GOLDEN_FOLDER / "llama", single)
    shutil.copytree(GOLDEN_FOLDER / "llama", pickles)
    (pickles / "model.safetensors").rename(pickles / "pytorch_model.bin")
    (sharded / "onnx").mkdir()
    unwanted = "onnx/config.json onnx/model.safetensors consolidated.safetensors pytorch_model.bin README.md train.json"
    for name in unwanted.split():
        (sharded / name).write_text("{}")
    server = Hub({"org/sharded": sharded, "org/single": single, "org/pickles": pickles})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def load(hub: Hub, home: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Load a model in a process of its own, whose hub and HF_HOME these are; prints its fingerprint."""
    hub.downloads.clear()
    revision = environment.pop("revision", None)
    code = (
        "import sys; from onestep_jax import load_model, UserError\n"
        f"try: print(load_model({name!r}, revision={revision!r}).fingerprint)\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **settings, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
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


def test_second_load_fetches_nothing_and_needs_no_hub(hub: Hub, tmp_path: Path):
    load(hub, tmp_path, "org/single")
    again = load(hub, tmp_path, "org/single")
    assert again.stdout.strip() == fingerprint("llama"), again.stderr
    assert not hub.downloads
    offline = load(hub, tmp_path, "org/single", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout.strip() == fingerprint("llama"), offline.stderr


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

"""A small server that speaks as much of the hub's protocol as huggingface_hub's client needs, on this machine.

Models are folders, which it gives. Data sets are made, changed in commits and given; each commit keeps its files whole.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMITS = {"main": "a" * 40, "v2": "b" * 40}  # of every model
WRITER, READER = "hf_writerwriterwriterwriter", "a-token-of-another-form"  # tokens that it knows
EMPTY = {".gitattributes": b"*.parquet filter=lfs\n"}  # what a new data set has


@dataclasses.dataclass
class DataSet:
    """Commit → its files; branch → its last commit."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    messages: list[str] = dataclasses.field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


class Hub(ThreadingHTTPServer):
    """Models by name, each a folder, and data sets; remembers what was downloaded, asked and sent.

    `faults` has "METHOD /path" → (status, message) with which the first request that contains it is refused.
    """

    def __init__(self, repositories: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.downloads = repositories, list[str]()
        self.data_sets: dict[str, DataSet] = {}
        self.stored: dict[str, bytes] = {}
        self.faults: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Refused(Exception):
    """A request that was answered with a refusal."""


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def tell(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str, message: str | None = None, **more: str) -> NoReturn:
        said = {"X_Error_Code": code, "X_Error_Message": message or code}
        body = json.dumps({"error": message or code, **more}).encode()
        self.answer(status, body, **said, Content_Type="application/json")
        raise _Refused

    def do_HEAD(self) -> None:
        self.handle_one("HEAD")

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def do_PUT(self) -> None:
        self.handle_one("PUT")

    def handle_one(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        request = f"{method} {path}"
        self.server.asked.append(request)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        try:
            fault = next((fault for fault in self.server.faults if fault in request), None)
            if fault is not None:
                status, message = self.server.faults.pop(fault)
                self.refuse(status, "", message)
            if method == "PUT":
                self.store(parts)
            elif path in ("/api/repos/create", "/api/validate-yaml"):
                (self.create if path.endswith("create") else self.validate)(json.loads(self.body))
            elif "datasets" in parts[:2]:
                self.data_set(method, parts)
            elif len(parts) > 3:
                self.model(parts)
            else:
                self.refuse(404, "")
        except _Refused:
            pass

    # --- models ---

    def model(self, parts: list[str]) -> None:
        if parts[:2] == ["api", "models"]:
            name, revision, file = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", None
        else:
            name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if name == "org/gated":
            self.refuse(403, "GatedRepo")
        if name not in self.server.repositories:
            self.refuse(404, "RepoNotFound")
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            self.refuse(404, "RevisionNotFound")
        folder = self.server.repositories[name]
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        if file is not None:
            self.give(commit, file, files[file].read_bytes() if file in files else None)
        elif "tree" in parts:
            self.tell(tree({file: path.read_bytes() for file, path in files.items()}))
        else:
            self.tell({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})

    def give(self, commit: str, file: str, content: bytes | None) -> None:
        """A file, of which the client first asks what it is."""
        if content is None:
            self.refuse(404, "EntryNotFound")
        if self.command == "GET":
            self.server.downloads.append(file)
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)

    # --- data sets ---

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def check_token(self, write: bool = False) -> None:
        if self.token and self.token not in (WRITER, READER):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        if write and self.token != WRITER:
            self.refuse(403 if self.token else 401, "", "this token may not write")

    def create(self, asked: dict[str, Any]) -> None:
        self.check_token(write=True)
        name = f"{asked['organization']}/{asked['name']}"
        assert asked["type"] == "dataset"
        url = f"{self.server.url}/datasets/{name}"
        if name in self.server.data_sets:
            self.refuse(409, "", "You already created this dataset repo", url=url)
        made = self.server.data_sets[name] = DataSet(asked.get("visibility") == "private" or bool(asked.get("private")))
        made.commit("main", dict(EMPTY), "initial commit")
        self.tell({"url": url, "id": "1", "name": name})

    def validate(self, asked: dict[str, Any]) -> None:
        """The head of a card; the hub knows the licences, here "bogus" is the one that it does not."""
        import yaml

        _, _, rest = asked["content"].partition("---\n")
        head = yaml.safe_load(rest.partition("---\n")[0]) or {}
        if head.get("license") == "bogus":
            body = {"errors": [{"message": '"license" must be one of [apache-2.0, …]'}], "warnings": []}
            self.answer(400, json.dumps(body).encode(), Content_Type="application/json")
            return
        self.tell({"errors": [], "warnings": []})

    def data_set(self, method: str, parts: list[str]) -> None:
        api = parts[0] == "api"
        owner, name, *rest = parts[2:] if api else parts[1:]
        found: DataSet | None = self.server.data_sets.get(f"{owner}/{name.removesuffix('.git')}")
        self.check_token()
        if f"{owner}/{name}" == "org/gated":
            self.refuse(403, "GatedRepo")
        if found is None or (found.private and not self.token):
            self.refuse(404 if self.token else 401, "RepoNotFound")
        if method == "POST" and rest[0] != "paths-info":
            self.check_token(write=True)
            if rest[0] == "branch":
                found.branches.setdefault(rest[1], json.loads(self.body).get("startingPoint", found.branches["main"]))
                return self.tell({})
            if rest[0] == "info":
                return self.large(json.loads(self.body))
        revision = rest[1] if len(rest) > 1 else "main"
        commit = found.resolve(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
        files = found.commits[commit]
        if not api:
            return self.give(commit, "/".join(rest[2:]), files.get("/".join(rest[2:])))
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": file} for file in files]
            about = {"id": f"{owner}/{name}", "sha": commit, "private": found.private, "siblings": siblings}
            return self.tell(about | {"tags": [], "downloads": 0, "likes": 0})
        if rest[0] == "tree":
            whole = parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]
            return self.tell(tree(files, "/".join(rest[2:]), whole))
        if rest[0] == "paths-info":
            return self.paths_info(files)
        if rest[0] == "commits":
            about = {"authors": [], "date": "2025-01-01T00:00:00.000Z", "title": "", "message": ""}
            return self.tell([{"id": sha, **about} for sha in reversed(found.commits)])
        if rest[0] == "preupload":
            return self.preupload(files)
        assert rest[0] == "commit", rest
        return self.commit(found, f"{owner}/{name}", revision, files)

    def paths_info(self, files: dict[str, bytes]) -> None:
        asked = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        self.tell([entry for entry in tree(files) if entry["path"] in asked])

    def preupload(self, files: dict[str, bytes]) -> None:
        told = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            large = path.endswith(".parquet")
            now = None if path not in files else hashlib.sha256(files[path]).hexdigest() if large else oid(files[path])
            told.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": now})
        self.tell({"files": told})

    def large(self, asked: dict[str, Any]) -> None:
        """Where large files go; those that are there already need not be sent."""
        objects = []
        for one in asked["objects"]:
            told = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.stored:
                told["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
            objects.append(told)
        self.tell({"transfer": "basic", "objects": objects})

    def store(self, parts: list[str]) -> None:
        assert hashlib.sha256(self.body).hexdigest() == parts[1]
        self.server.stored[parts[1]] = self.body
        self.answer(200, b"")

    def commit(self, found: DataSet, name: str, branch: str, files: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        head, *changes = [(line["key"], line["value"]) for line in lines]
        if head[1].get("parentCommit") not in (None, found.branches[branch]):
            self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for key, value in changes:
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                del files[value["path"]]
        sha = found.commit(branch, files, head[1]["summary"])
        url = f"{self.server.url}/datasets/{name}/commit/{sha}"
        self.tell({"commitUrl": url, "commitOid": sha, "pullRequestUrl": None})


def tree(files: dict[str, bytes], below: str = "", whole: bool = True) -> list[dict[str, Any]]:
    """What the hub says of the files and folders in a folder of a commit, and if `whole` in those below it."""
    top, entries = PurePosixPath(below), dict[PurePosixPath, dict[str, Any]]()
    for path, content in files.items():
        place = PurePosixPath(path)
        entries[place] = {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
        for folder in list(place.parents)[:-1]:
            entries[folder] = {"type": "directory", "path": str(folder), "size": 0, "oid": "0" * 40}
    return [entry for place, entry in entries.items() if place.parent == top or (whole and top in place.parents)]


def oid(content: bytes) -> str:
    """What git calls a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[Hub]:
    """A hub that answers, with these models."""
    server = Hub(repositories)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(hub: Hub, home: Path, token: str | None = None) -> dict[str, str]:
    """Variables by which a process of its own takes this hub for the hub."""
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return told | {"HF_HUB_DISABLE_TELEMETRY": "1"} | ({"HF_TOKEN": token} if token else {})


def turn_to(hub: Hub, home: Path, patch: pytest.MonkeyPatch, token: str | None = None) -> None:
    """Let huggingface_hub in this process, which has read its variables, take this hub for the hub."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    for name, value in environment(hub, home, token).items():
        patch.setenv(name, value)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))

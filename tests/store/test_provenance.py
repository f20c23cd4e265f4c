"""The commit in config.json is that of the repository that tracks the package, and of no other."""

import shutil
import subprocess
from pathlib import Path

import pytest

from onestep_jax.store import sessions

git = shutil.which("git")
pytestmark = pytest.mark.skipif(git is None, reason="needs git")


def repository(folder: Path, *tracked: str) -> str:
    """Make a repository that tracks these files; its commit."""
    folder.mkdir(parents=True, exist_ok=True)

    def run(*words: str) -> str:
        me = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            [str(git), "-C", str(folder), *me, *words], check=True, capture_output=True, text=True
        ).stdout

    run("init", "-q")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1\n")
        run("add", name)
    run("commit", "-q", "--allow-empty", "-m", "a")
    return run("rev-parse", "HEAD").strip()


def test_the_repository_that_tracks_the_file(tmp_path):
    commit = repository(tmp_path, "package/sessions.py")
    assert sessions._commit(tmp_path / "package" / "sessions.py") == commit


def test_a_repository_around_an_installed_package(tmp_path):
    repository(tmp_path, "work.py")
    installed = tmp_path / "venv" / "lib" / "sessions.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("1\n")
    assert sessions._commit(installed) is None


def test_a_process_that_git_started_elsewhere(tmp_path, monkeypatch):
    commit, other = repository(tmp_path / "ours", "sessions.py"), repository(tmp_path / "other", "sessions.py", "b.py")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert commit != other
    assert sessions._commit(tmp_path / "ours" / "sessions.py") == commit


def test_without_git(tmp_path, monkeypatch):
    repository(tmp_path, "sessions.py")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sessions._commit(tmp_path / "sessions.py") is None
